#include "kernels/sigmoid_shift/sigmoid_shift.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {

Tensor sigmoid_shift(const Tensor& logits_, const Tensor& mean_) {
  TORCH_CHECK_VALUE(logits_.dim() == 2 && logits_.size(1) >= 1,
                    "logits must have shape [K, D] with D >= 1, got ", logits_.sizes());
  const DType dtype = dtype_of(logits_, "logits");
  TORCH_CHECK_TYPE(logits_.scalar_type() == accumulation_type(logits_),
                   "logits must be float32 or float64, got ", logits_.scalar_type());
  check_shape(mean_, "mean", {logits_.size(0)});
  check_like(mean_, "mean", logits_, "logits");
  const Tensor logits = logits_.contiguous(), mean = mean_.contiguous();
  Tensor shift = logits.new_empty({logits.size(0)});
  const kernels::SigmoidShift p{.dtype = dtype,
                                .rows = logits.size(0),
                                .dim = logits.size(1),
                                .logits = logits.const_data_ptr(),
                                .mean = mean.const_data_ptr(),
                                .shift = shift.mutable_data_ptr()};
  run_on(
      logits,
      [&] {
        parallel_rows(p.rows, 32 * p.dim,
                      [&](auto begin, auto end) { kernels::sigmoid_shift_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::sigmoid_shift_cuda(p, stream); });
  return shift;
}

}  // namespace mast_ext
