#include "kernels/epps_pulley_distance/epps_pulley_distance.h"

#include <cmath>

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The arguments that forward and backward share, checked and dense.
struct CheckedSums {
  Tensor sums, phi, weights, images;
  kernels::EppsPulleySums plain;

  CheckedSums(const Tensor& sums_, const OptionalTensor& images_tensor, double images_,
              const Tensor& phi_, const Tensor& weights_) {
    TORCH_CHECK_VALUE(
        sums_.dim() == 4 && sums_.size(1) >= 1 && sums_.size(2) == 2 && sums_.size(3) >= 1,
        "sums must have shape [V, K, 2, M] with K >= 1 and M >= 1, got ", sums_.sizes());
    const DType dtype = dtype_of(sums_, "sums");
    TORCH_CHECK_TYPE(sums_.scalar_type() == accumulation_type(sums_),
                     "sums must be float32 or float64, got ", sums_.scalar_type());
    for (const auto& [t, name] : {std::pair(&phi_, "phi"), std::pair(&weights_, "weights")}) {
      check_shape(*t, name, {sums_.size(1)});
      check_like(*t, name, sums_, "sums");
    }
    if (images_tensor) {
      check_shape(*images_tensor, "images", {});
      check_like(*images_tensor, "images", sums_, "sums");
      images = *images_tensor;
    } else {
      TORCH_CHECK_VALUE(images_ >= 0 && std::isfinite(images_),
                        "images must be finite and at least 0, got ", images_);
    }
    sums = sums_.contiguous(), phi = phi_.contiguous(), weights = weights_.contiguous();
    plain = {.dtype = dtype,
             .views = sums.size(0),
             .knots = sums.size(1),
             .slices = sums.size(3),
             .sums = sums.const_data_ptr(),
             .phi = phi.const_data_ptr(),
             .weights = weights.const_data_ptr(),
             .images_tensor = images.defined() ? images.const_data_ptr() : nullptr,
             .images = images_};
  }
};

}  // namespace

Tensor epps_pulley_distance(const Tensor& sums, const OptionalTensor& images_tensor, double images,
                            const Tensor& phi, const Tensor& weights) {
  const CheckedSums in(sums, images_tensor, images, phi, weights);
  Tensor distance = sums.new_empty({in.plain.views});
  const kernels::EppsPulleyDistance p{.in = in.plain, .distance = distance.mutable_data_ptr()};
  run_on(
      sums,
      [&] {
        parallel_rows(
            in.plain.views, in.plain.rows_of_view() * in.plain.slices,
            [&](auto begin, auto end) { kernels::epps_pulley_distance_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::epps_pulley_distance_cuda(p, stream); });
  return distance;
}

Tensor epps_pulley_distance_backward(const Tensor& grad_distance, const Tensor& sums,
                                     const OptionalTensor& images_tensor, double images,
                                     const Tensor& phi, const Tensor& weights) {
  const CheckedSums in(sums, images_tensor, images, phi, weights);
  check_shape(grad_distance, "grad_distance", {in.plain.views});
  check_like(grad_distance, "grad_distance", sums, "sums");
  const Tensor grad = grad_distance.contiguous();
  Tensor grad_sums = sums.new_empty(sums.sizes());
  const kernels::EppsPulleyDistanceBackward p{
      .in = in.plain, .grad = grad.const_data_ptr(), .grad_sums = grad_sums.mutable_data_ptr()};
  run_on(
      sums,
      [&] {
        parallel_rows(in.plain.views * in.plain.rows_of_view(), in.plain.slices,
                      [&](auto begin, auto end) {
                        kernels::epps_pulley_distance_backward_cpu(p, begin, end);
                      });
      },
      [&](auto stream) { return kernels::epps_pulley_distance_backward_cuda(p, stream); });
  return grad_sums;
}

}  // namespace mast_ext
