// Uses the sums of pair_sums_cpu.h, so that scores have the same bits as with subspace_similarity.
#include "kernels/select_hard_cosine_pairs/select_hard_cosine_pairs.h"

#include "kernels/common/isa.h"
#include "kernels/pair_sums/pair_sums_cpu.h"
#include "kernels/subspace_similarity/subspace_similarity_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {

void select_hard_cosine_pairs_cpu(const SelectHardCosinePairs& p, std::int64_t begin,
                                  std::int64_t end) {
  visit_accumulation(p.pairs.dtype, [&]<typename A>() {
    const PairRows& rows = p.pairs.rows;
    const std::int32_t views = rows.x_views;
    PairSumsCpu<A, Product> engine(p.pairs);
    A* sums = scratch<A, struct Sums>(engine.rows());
    A* inverse = scratch<A, struct Inverse>(rows.views());
    const A* inverse_y = inverse + (rows.self ? 0 : views);
    for (std::int64_t b = begin; b < end; ++b) {
      engine.forward(b, sums);
      for (std::int32_t v = 0; v < rows.views(); ++v) {
        inverse[v] =
            subspace_similarity_math::inverse_norm(sums[rows.norm(v)], static_cast<A>(p.eps));
      }
      // In a loop of its own: otherwise the compiler would fuse the products with the additions
      // below, and they would be rounded differently.
      for (std::int32_t i = 0; i < views; ++i) {
        for (std::int32_t j = rows.self ? i + 1 : 0; j < views; ++j) {
          sums[rows.pair(i, j)] *= inverse[i] * inverse_y[j];
        }
      }
      HardestPair<A> hardest;
      for (std::int32_t i = 0; i < views; ++i) {
        for (std::int32_t j = i + 1; j < views; ++j) {
          const A cosine_ij = sums[rows.pair(i, j)], cosine_ji = sums[rows.pair(j, i)];
          if (p.candidates.has(i, j)) hardest.offer(i, j, -(cosine_ij + cosine_ji) / 2);
        }
      }
      hardest.write(p.index, p.score, p.pairs.batch, b);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(select_hard_cosine_pairs_cpu,
                   (const SelectHardCosinePairs& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
