#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The checked arguments of both passes.
struct ViewPairInputs {
  DType dtype;
  Tensor lse, positive;  // dense
  bool mean;
  std::int64_t subspaces, views, images;

  ViewPairInputs(const Tensor& lse_, const Tensor& positive_, std::string_view reduction) {
    TORCH_CHECK_VALUE(reduction == "none" || reduction == "mean",
                      "reduction must be 'none' or 'mean', got '", std::string(reduction), "'");
    mean = reduction == "mean";
    TORCH_CHECK_VALUE(lse_.dim() >= 3 && lse_.size(-3) == lse_.size(-2) && lse_.size(-2) >= 1,
                      "lse must have shape [..., V, V, N] with V >= 1, got ", lse_.sizes());
    views = lse_.size(-2), images = lse_.size(-1);
    TORCH_CHECK_VALUE(!mean || (views >= 2 && images >= 1),
                      "lse must have shape [..., V, V, N] with V >= 2 and N >= 1 to take a mean, "
                      "got ",
                      lse_.sizes());
    dtype = dtype_of(lse_, "lse");
    TORCH_CHECK_TYPE(lse_.scalar_type() == accumulation_type(lse_),
                     "lse must be float32 or float64, got ", lse_.scalar_type());
    check_shape(positive_, "positive", lse_.sizes());
    check_like(positive_, "positive", lse_, "lse");
    subspaces = 1;
    for (const auto size : lse_.sizes().slice(0, lse_.dim() - 3)) subspaces *= size;
    lse = lse_.contiguous();
    positive = positive_.contiguous();
  }

  at::IntArrayRef shape_of_loss() const {
    return mean ? lse.sizes().slice(0, lse.dim() - 3) : lse.sizes();
  }
  std::int64_t blocks() const { return subspaces * kernels::pair_blocks(images); }
  std::int64_t cost_of_block() const { return 16 * views * views * kernels::kPairBlock; }
};

}  // namespace

Tensor view_pair_cross_entropy(const Tensor& lse, const Tensor& positive, bool decoupled,
                               std::string_view reduction) {
  const ViewPairInputs in(lse, positive, reduction);
  Tensor loss = in.lse.new_empty(in.shape_of_loss());
  kernels::ViewPairCrossEntropy p{.dtype = in.dtype,
                                  .decoupled = decoupled,
                                  .mean = in.mean,
                                  .subspaces = in.subspaces,
                                  .views = in.views,
                                  .images = in.images,
                                  .lse = in.lse.const_data_ptr(),
                                  .positive = in.positive.const_data_ptr(),
                                  .sums = nullptr,
                                  .loss = loss.mutable_data_ptr()};
  run_on(
      in.lse,
      [&] {
        const Tensor sums = in.lse.new_empty({in.mean ? in.blocks() : 0});
        p.sums = sums.mutable_data_ptr();
        parallel_rows(in.blocks(), in.cost_of_block(), [&](auto begin, auto end) {
          kernels::view_pair_cross_entropy_cpu(p, begin, end);
        });
        if (in.mean) kernels::view_pair_cross_entropy_mean_cpu(p);
      },
      [&](auto stream) { return kernels::view_pair_cross_entropy_cuda(p, stream); });
  return loss;
}

std::tuple<Tensor, Tensor> view_pair_cross_entropy_backward(const Tensor& grad_loss_,
                                                            const Tensor& lse,
                                                            const Tensor& positive, bool decoupled,
                                                            std::string_view reduction) {
  const ViewPairInputs in(lse, positive, reduction);
  check_shape(grad_loss_, "grad_loss", in.shape_of_loss());
  check_like(grad_loss_, "grad_loss", in.lse, "lse");
  const Tensor grad_loss = grad_loss_.contiguous();
  Tensor grad_lse = in.lse.new_empty(in.lse.sizes());
  Tensor grad_positive = in.lse.new_empty(in.lse.sizes());
  const kernels::ViewPairCrossEntropyBackward p{.dtype = in.dtype,
                                                .decoupled = decoupled,
                                                .mean = in.mean,
                                                .subspaces = in.subspaces,
                                                .views = in.views,
                                                .images = in.images,
                                                .grad_loss = grad_loss.const_data_ptr(),
                                                .lse = in.lse.const_data_ptr(),
                                                .positive = in.positive.const_data_ptr(),
                                                .grad_lse = grad_lse.mutable_data_ptr(),
                                                .grad_positive = grad_positive.mutable_data_ptr()};
  run_on(
      in.lse,
      [&] {
        parallel_rows(in.blocks(), in.cost_of_block(), [&](auto begin, auto end) {
          kernels::view_pair_cross_entropy_backward_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::view_pair_cross_entropy_backward_cuda(p, stream); });
  return {grad_lse, grad_positive};
}

}  // namespace mast_ext
