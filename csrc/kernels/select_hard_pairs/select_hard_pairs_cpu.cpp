// Takes a vector of images at a time, whose best scores and pairs stay in registers.
#include "kernels/select_hard_pairs/select_hard_pairs.h"

#include <cstdint>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/hard_pairs/hardest_pair_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename T>
void select(const SelectHardPairs& p, std::int64_t begin, std::int64_t end) {
  using A = accum_t<T>;
  const auto* losses = static_cast<const T*>(p.pair_losses);
  const std::int32_t views = p.candidates.views;
  for (std::int64_t b = begin; b < end; b += kLanes<A>) {
    const std::int64_t count = std::min<std::int64_t>(kLanes<A>, end - b);
    HardestLanes<A> hardest(1);  // pair (i, j) has the number i * V + j
    for (std::int32_t i = 0; i < views; ++i) {
      for (std::int32_t j = i + 1; j < views; ++j) {
        if (!p.candidates.has(i, j)) continue;
        const T* loss_ij = losses + i * p.row_stride + j * p.pair_stride + b;
        const T* loss_ji = losses + j * p.row_stride + i * p.pair_stride + b;
        hardest.offer(i * views + j, (load_some(loss_ij, count) + load_some(loss_ji, count)) / 2);
      }
    }
    store_some(static_cast<A*>(p.score) + b, hardest.score, count);
    for (std::int64_t lane = 0; lane < count; ++lane) {
      p.index[b + lane] = hardest.number[lane] / views;
      p.index[p.batch + b + lane] = hardest.number[lane] % views;
    }
  }
}

}  // namespace

void select_hard_pairs_cpu(const SelectHardPairs& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.dtype, [&]<typename T>() { select<T>(p, begin, end); });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(select_hard_pairs_cpu,
                   (const SelectHardPairs& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
