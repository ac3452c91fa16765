#include "kernels/select_hard_pairs/select_hard_pairs.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/hard_pairs/candidate_pairs.h"
#include "host/ops.h"

namespace mast_ext {

std::tuple<Tensor, Tensor> select_hard_pairs(const Tensor& pair_losses_,
                                             const OptionalTensor& candidates) {
  TORCH_CHECK_VALUE(pair_losses_.dim() == 3 && pair_losses_.size(0) == pair_losses_.size(1),
                    "pair_losses must have shape [V, V, B], got ", pair_losses_.sizes());
  const DType dtype = dtype_of(pair_losses_, "pair_losses");
  const CandidateMarks marks(candidates, pair_losses_, "pair_losses");
  const std::int64_t views = marks.views, batch = pair_losses_.size(2);
  const bool dense = pair_losses_.stride(2) == 1 || batch <= 1;
  const Tensor pair_losses = dense ? pair_losses_ : pair_losses_.contiguous();
  Tensor index = pair_losses.new_empty({2, batch}, pair_losses.options().dtype(at::kLong));
  Tensor score =
      pair_losses.new_empty({batch}, pair_losses.options().dtype(accumulation_type(pair_losses)));

  const kernels::SelectHardPairs p{
      .dtype = dtype,
      .candidates = marks.pairs(),
      .batch = batch,
      .pair_losses = pair_losses.const_data_ptr(),
      .row_stride = pair_losses.stride(0),
      .pair_stride = pair_losses.stride(1),
      .index = static_cast<std::int64_t*>(index.mutable_data_ptr()),
      .score = score.mutable_data_ptr(),
  };
  run_on(
      pair_losses,
      [&] {
        parallel_rows(batch, views * views,
                      [&](auto begin, auto end) { kernels::select_hard_pairs_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::select_hard_pairs_cuda(p, stream); });
  return {index, score};
}

}  // namespace mast_ext
