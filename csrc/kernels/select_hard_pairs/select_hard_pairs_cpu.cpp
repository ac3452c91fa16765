// A vector of images at a time: their best score and its pair stay in registers over all pairs.
#include "kernels/select_hard_pairs/select_hard_pairs.h"

#include <cstdint>
#include <type_traits>

#include "kernels/common/columns_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/common/simd.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// HardestPair of hardest_pair.h, one in every lane; a pair is the number i * V + j.
template <typename A>
struct HardestPairs {
  // As wide as the scores, so that a comparison of scores selects among them.
  using Number = std::conditional_t<std::is_same_v<A, double>, std::int64_t, std::int32_t>;

  vec<A> score = broadcast(static_cast<A>(NAN));
  vec<Number> pair = broadcast(Number{1});
  bool any = false;

  void offer(Number number, vec<A> offered) {
    vec<Number> wins = (offered > score) | ((score != score) & (offered == offered));
    if (!any) wins = broadcast(Number{-1});
    score = wins ? offered : score;
    pair = wins ? broadcast(number) : pair;
    any = true;
  }
};

template <typename T>
void select(const SelectHardPairs& p, std::int64_t begin, std::int64_t end) {
  using A = accum_t<T>;
  const auto* losses = static_cast<const T*>(p.pair_losses);
  const std::int32_t views = p.candidates.views;
  for (std::int64_t b = begin; b < end; b += kLanes<A>) {
    const std::int64_t count = std::min<std::int64_t>(kLanes<A>, end - b);
    HardestPairs<A> hardest;
    for (std::int32_t i = 0; i < views; ++i) {
      for (std::int32_t j = i + 1; j < views; ++j) {
        if (!p.candidates.has(i, j)) continue;
        const T* there = losses + i * p.row_stride + j * p.pair_stride + b;
        const T* back = losses + j * p.row_stride + i * p.pair_stride + b;
        hardest.offer(i * views + j, (load_some(there, count) + load_some(back, count)) / 2);
      }
    }
    store_some(static_cast<A*>(p.score) + b, hardest.score, count);
    for (std::int64_t lane = 0; lane < count; ++lane) {
      p.index[b + lane] = hardest.pair[lane] / views;
      p.index[p.batch + b + lane] = hardest.pair[lane] % views;
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
