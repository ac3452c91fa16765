#include "kernels/budgeted_masks/budgeted_masks.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// Checks a tensor [F, D] of float32 or float64.
DType checked_masks(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.dim() == 2 && t.size(0) <= kernels::kMostMasks && t.size(1) >= 1, name,
                    " must have shape [F, D] with F <= ", kernels::kMostMasks, " and D >= 1, got ",
                    t.sizes());
  const DType dtype = dtype_of(t, name);
  TORCH_CHECK_TYPE(t.scalar_type() == accumulation_type(t), name,
                   " must be float32 or float64, got ", t.scalar_type());
  return dtype;
}

std::int64_t blocks_of(std::int64_t dim) {
  return (dim + kernels::kMaskBlock - 1) / kernels::kMaskBlock;
}

}  // namespace

std::tuple<Tensor, Tensor> budgeted_masks(const Tensor& logits_, const Tensor& mean_,
                                          double sharpness) {
  const DType dtype = checked_masks(logits_, "mask_logits");
  const std::int64_t masks = logits_.size(0), dim = logits_.size(1);
  check_shape(mean_, "mean", {masks});
  check_like(mean_, "mean", logits_, "mask_logits");
  const Tensor logits = logits_.contiguous(), mean = mean_.contiguous();
  Tensor weights = logits.new_empty({std::int64_t{1} << masks, dim});
  Tensor shifted = logits.new_empty({masks, dim});
  const kernels::BudgetedMasks p{.dtype = dtype,
                                 .masks = masks,
                                 .dim = dim,
                                 .logits = logits.const_data_ptr(),
                                 .mean = mean.const_data_ptr(),
                                 .sharpness = sharpness,
                                 .shifted = shifted.mutable_data_ptr(),
                                 .weights = weights.mutable_data_ptr()};
  run_on(
      logits,
      [&] {
        parallel_rows(masks, 32 * dim, [&](auto begin, auto end) {
          kernels::budgeted_masks_shift_cpu(p, begin, end);
        });
        parallel_rows(
            blocks_of(dim), kernels::kMaskBlock * (16 * masks + weights.size(0)),
            [&](auto begin, auto end) { kernels::budgeted_masks_subsets_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::budgeted_masks_cuda(p, stream); });
  return {weights, shifted};
}

Tensor budgeted_masks_backward(const Tensor& grad_weights_, const Tensor& weights_,
                               const Tensor& shifted_, double sharpness) {
  const DType dtype = checked_masks(shifted_, "shifted");
  const std::int64_t masks = shifted_.size(0), dim = shifted_.size(1);
  for (const auto& [t, name] :
       {std::pair(&weights_, "weights"), std::pair(&grad_weights_, "grad_weights")}) {
    check_shape(*t, name, {std::int64_t{1} << masks, dim});
    check_like(*t, name, shifted_, "shifted");
  }
  const Tensor grad_weights = grad_weights_.contiguous(), weights = weights_.contiguous();
  const Tensor shifted = shifted_.contiguous();
  Tensor grad_shifted;
  if (!uses_cuda_kernels(shifted)) grad_shifted = shifted.new_empty({masks, dim});
  Tensor grad_logits = shifted.new_empty({masks, dim});
  const kernels::BudgetedMasksBackward p{.dtype = dtype,
                                         .masks = masks,
                                         .dim = dim,
                                         .shifted = shifted.const_data_ptr(),
                                         .weights = weights.const_data_ptr(),
                                         .grad_weights = grad_weights.const_data_ptr(),
                                         .sharpness = sharpness,
                                         .grad_shifted = element(grad_shifted),
                                         .grad_logits = grad_logits.mutable_data_ptr()};
  run_on(
      shifted,
      [&] {
        parallel_rows(blocks_of(dim), kernels::kMaskBlock * masks * (16 + weights.size(0)),
                      [&](auto begin, auto end) {
                        kernels::budgeted_masks_backward_subsets_cpu(p, begin, end);
                      });
        parallel_rows(masks, 16 * dim, [&](auto begin, auto end) {
          kernels::budgeted_masks_backward_shift_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::budgeted_masks_backward_cuda(p, stream); });
  return grad_logits;
}

}  // namespace mast_ext
