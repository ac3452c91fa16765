#include "kernels/select_hard_cosine_pairs/select_hard_cosine_pairs.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/hard_pairs/candidate_pairs.h"
#include "host/ops.h"
#include "host/pair_sums/pair_inputs.h"

namespace mast_ext {

std::tuple<Tensor, Tensor> select_hard_cosine_pairs(const Tensor& x, const OptionalTensor& y,
                                                    const OptionalTensor& candidates, double eps) {
  const PairInputs in(x, y, {});
  if (y) check_shape(*y, "y", x.sizes());
  const CandidateMarks marks(candidates, x, "x");
  TORCH_CHECK_VALUE(eps > 0, "eps must be positive, got ", eps);
  Tensor index = x.new_empty({2, in.batch()}, x.options().dtype(at::kLong));
  Tensor score = x.new_empty({in.batch()}, in.accumulation());

  const kernels::SelectHardCosinePairs p{
      .pairs = in.sums(true),
      .candidates = marks.pairs(),
      .eps = eps,
      .index = static_cast<std::int64_t*>(index.mutable_data_ptr()),
      .score = score.mutable_data_ptr(),
  };
  run_on(
      x,
      [&] {
        parallel_rows(in.batch(), in.image_cost(p.pairs), [&](auto begin, auto end) {
          kernels::select_hard_cosine_pairs_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::select_hard_cosine_pairs_cuda(p, stream); });
  return {index, score};
}

}  // namespace mast_ext
