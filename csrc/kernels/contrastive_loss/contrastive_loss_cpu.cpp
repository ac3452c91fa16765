#include "kernels/contrastive_loss/contrastive_loss.h"

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/common/vector_math_cpu.h"
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy.h"
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename A>
void losses_of_block(const ContrastiveLoss& p, std::int64_t block) {
  const std::int64_t first = block * kPairBlock;
  const std::int64_t count = std::min(kPairBlock, p.images - first);
  const A share = 1 / static_cast<A>(terms_of(p.views, p.images, p.one_sided));
  const A *lse = static_cast<const A*>(p.lse), *positive = static_cast<const A*>(p.positive);
  A* const of_lse = static_cast<A*>(p.slopes);
  A* const of_positive = p.slopes == nullptr ? nullptr : of_lse + p.views * p.views * p.images;
  alignas(64) A within[kPairBlock];  // the slope of lse_ii, from all pairs
  vec<A> sum{};
  for (std::int64_t i = 0; i < p.views; ++i) {
    const std::int64_t own = (i * p.views + i) * p.images + first;
    std::fill_n(within, kPairBlock, A{0});
    for (std::int64_t j = 0; j < p.views; ++j) {
      if (j == i) continue;
      const std::int64_t other = (i * p.views + j) * p.images + first;
      if (p.one_sided && i > 0) {  // no anchor
        if (p.slopes == nullptr) break;
        std::fill_n(of_lse + other, count, A{0});
        std::fill_n(of_positive + other, count, A{0});
        continue;
      }
      for (std::int64_t n = 0; n < count; n += kLanes<A>) {
        const std::int64_t left = count - n, at = other + n;
        const vec<A> in_view = load_some(lse + own + n, left);
        const vec<A> across = load_some(lse + at, left), pair = load_some(positive + at, left);
        vec<A> term = view_pair_math::term<VectorMath>(p.decoupled, in_view, across, pair);
        for (std::int64_t lane = left; lane < kLanes<A>; ++lane) term[lane] = 0;
        sum += term;
        if (p.slopes == nullptr) continue;
        const auto slopes = view_pair_math::slopes<VectorMath>(p.decoupled, in_view, across, pair);
        store(within + n, load(within + n) + slopes.within * share);
        store_some(of_lse + at, slopes.across * share, left);
        store_some(of_positive + at, -slopes.negatives * share, left);
      }
    }
    if (p.slopes == nullptr) continue;
    std::copy_n(within, count, of_lse + own);
    std::fill_n(of_positive + own, count, A{0});
  }
  static_cast<A*>(p.sums)[block] = sum_lanes<A>(sum);
}

}  // namespace

void contrastive_loss_cpu(const ContrastiveLoss& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t block = begin; block < end; ++block) losses_of_block<A>(p, block);
  });
}

void contrastive_loss_mean_cpu(const ContrastiveLoss& p) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    double sum = 0;
    for (std::int64_t block = 0; block < pair_blocks(p.images); ++block) {
      sum += static_cast<const A*>(p.sums)[block];
    }
    *static_cast<A*>(p.loss) =
        static_cast<A>(sum / static_cast<double>(terms_of(p.views, p.images, p.one_sided)));
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(contrastive_loss_cpu,
                   (const ContrastiveLoss& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(contrastive_loss_mean_cpu, (const ContrastiveLoss& p), (p))

}  // namespace mast_ext::kernels
