#include "kernels/grouped_means/grouped_means.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The arguments that forward and backward share, checked and dense.
struct MeansInputs {
  Tensor weights, sums, counts;
  kernels::GroupedMeansInputs plain;

  MeansInputs(const Tensor& weights_, const Tensor& sums_, const Tensor& counts_) {
    constexpr std::int64_t kMostGroups = 65535;  // the limit of a CUDA grid's y dimension
    TORCH_CHECK_VALUE(
        weights_.dim() == 2 && weights_.size(0) <= kMostGroups && weights_.size(1) >= 1,
        "group_weights must have shape [G, D] with G <= ", kMostGroups, " and D >= 1, got ",
        weights_.sizes());
    const DType dtype = dtype_of(weights_, "group_weights");
    TORCH_CHECK_TYPE(weights_.scalar_type() == accumulation_type(weights_),
                     "group_weights must be float32 or float64, got ", weights_.scalar_type());
    check_shape(sums_, "sums", weights_.sizes());
    check_like(sums_, "sums", weights_, "group_weights");
    check_shape(counts_, "counts", {weights_.size(0)});
    check_like(counts_, "counts", weights_, "group_weights");
    weights = weights_.contiguous(), sums = sums_.contiguous(), counts = counts_.contiguous();
    plain = {.dtype = dtype,
             .groups = weights.size(0),
             .dim = weights.size(1),
             .weights = weights.const_data_ptr(),
             .sums = sums.const_data_ptr(),
             .counts = counts.const_data_ptr()};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> grouped_means(const Tensor& weights, const Tensor& sums,
                                         const Tensor& counts) {
  const MeansInputs in(weights, sums, counts);
  Tensor means = weights.new_empty({in.plain.dim}), compared = weights.new_empty({in.plain.dim});
  const kernels::GroupedMeans p{
      .in = in.plain, .means = means.mutable_data_ptr(), .compared = compared.mutable_data_ptr()};
  run_on(
      weights,
      [&] {
        const std::int64_t blocks = (in.plain.dim + kernels::kMeanBlock - 1) / kernels::kMeanBlock;
        parallel_rows(blocks, in.plain.groups * kernels::kMeanBlock,
                      [&](auto begin, auto end) { kernels::grouped_means_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::grouped_means_cuda(p, stream); });
  return {means, compared};
}

std::tuple<Tensor, Tensor, Tensor> grouped_means_backward(
    const Tensor& grad_means_, const Tensor& weights, const Tensor& sums, const Tensor& counts,
    const Tensor& means_, const Tensor& compared_, std::array<bool, 3> wanted) {
  const MeansInputs in(weights, sums, counts);
  for (const auto& [t, name] : {std::pair(&grad_means_, "grad_means"), std::pair(&means_, "means"),
                                std::pair(&compared_, "compared")}) {
    check_shape(*t, name, {in.plain.dim});
    check_like(*t, name, weights, "group_weights");
  }
  const Tensor grad_means = grad_means_.contiguous(), means = means_.contiguous();
  const Tensor compared = compared_.contiguous();
  const auto grad_of = [&](const Tensor& t, bool want) {
    return want ? t.new_empty(t.sizes()) : t.new_empty({0});
  };
  Tensor grad_weights = grad_of(in.weights, wanted[0]), grad_sums = grad_of(in.sums, wanted[1]);
  Tensor grad_counts = grad_of(in.counts, wanted[2]);
  const kernels::GroupedMeansBackward p{
      .in = in.plain,
      .means = means.const_data_ptr(),
      .compared = compared.const_data_ptr(),
      .grad = grad_means.const_data_ptr(),
      .grad_stride = 1,
      .factor = 1,
      .grad_weights = wanted[0] ? grad_weights.mutable_data_ptr() : nullptr,
      .grad_sums = wanted[1] ? grad_sums.mutable_data_ptr() : nullptr,
      .grad_counts = wanted[2] ? grad_counts.mutable_data_ptr() : nullptr,
  };
  run_on(
      weights,
      [&] {
        parallel_rows(in.plain.groups, 4 * in.plain.dim, [&](auto begin, auto end) {
          kernels::grouped_means_backward_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::grouped_means_backward_cuda(p, stream); });
  return {grad_weights, grad_sums, grad_counts};
}

}  // namespace mast_ext
