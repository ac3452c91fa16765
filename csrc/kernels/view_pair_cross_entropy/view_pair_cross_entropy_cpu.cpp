// A block of images at a time, for all pairs of views, so that what the views share is in the
// cache.
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy.h"

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/common/vector_math_cpu.h"
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// The images of a block, and where the numbers of a pair of views for them begin.
template <typename Params>
struct Block {
  std::int64_t subspace, number, first, count, views, images;

  Block(const Params& p, std::int64_t block)
      : subspace(block / pair_blocks(p.images)),
        number(block % pair_blocks(p.images)),
        first(number * kPairBlock),
        count(std::min(kPairBlock, p.images - first)),
        views(p.views),
        images(p.images) {}

  std::int64_t at(std::int64_t i, std::int64_t j) const {
    return ((subspace * views + i) * views + j) * images + first;
  }
};

template <typename A>
void write_losses(const ViewPairCrossEntropy& p, std::int64_t number) {
  const Block block(p, number);
  const A* lse = static_cast<const A*>(p.lse);
  const A* positive = static_cast<const A*>(p.positive);
  A* loss = static_cast<A*>(p.loss);
  const auto term = [&](std::int64_t i, std::int64_t j, std::int64_t n) {
    const std::int64_t left = block.count - n;
    return view_pair_math::term<VectorMath>(p.decoupled, load_some(lse + block.at(i, i) + n, left),
                                            load_some(lse + block.at(i, j) + n, left),
                                            load_some(positive + block.at(i, j) + n, left));
  };
  vec<A> sum{};
  for (std::int64_t i = 0; i < p.views; ++i) {
    for (std::int64_t j = p.mean ? i + 1 : i; j < p.views; ++j) {
      for (std::int64_t n = 0; n < block.count; n += kLanes<A>) {
        const std::int64_t left = block.count - n;
        vec<A> both = term(i, j, n);
        both = j == i ? both : (both + term(j, i, n)) / 2;
        if (p.mean) {
          for (std::int64_t lane = left; lane < kLanes<A>; ++lane) both[lane] = 0;
          sum += both;
          continue;
        }
        store_some(loss + block.at(i, j) + n, both, left);
        store_some(loss + block.at(j, i) + n, both, left);
      }
    }
  }
  if (p.mean) static_cast<A*>(p.sums)[number] = sum_lanes<A>(sum);
}

template <typename A>
void write_gradients(const ViewPairCrossEntropyBackward& p, std::int64_t number) {
  const Block block(p, number);
  const A* grad = static_cast<const A*>(p.grad_loss);
  const A* lse = static_cast<const A*>(p.lse);
  const A* positive = static_cast<const A*>(p.positive);
  A* grad_lse = static_cast<A*>(p.grad_lse);
  A* grad_positive = static_cast<A*>(p.grad_positive);
  const A share =
      p.mean ? grad[block.subspace] / static_cast<A>(averaged(p.views, p.images)) : A{0};
  alignas(64) A within[kPairBlock];  // the gradient of lse_ii from all pairs
  for (std::int64_t i = 0; i < p.views; ++i) {
    std::fill_n(within, kPairBlock, A{0});
    for (std::int64_t j = 0; j < p.views; ++j) {
      const std::int64_t at = block.at(i, j);
      if (p.mean && j == i) {
        std::fill_n(grad_positive + at, block.count, A{0});
        continue;
      }
      for (std::int64_t n = 0; n < block.count; n += kLanes<A>) {
        const std::int64_t left = block.count - n;
        const auto slopes = view_pair_math::slopes<VectorMath>(
            p.decoupled, load_some(lse + block.at(i, i) + n, left), load_some(lse + at + n, left),
            load_some(positive + at + n, left));
        vec<A> weight = broadcast(share);
        if (!p.mean) {
          weight =
              (load_some(grad + at + n, left) + load_some(grad + block.at(j, i) + n, left)) / 2;
        }
        store_some(grad_positive + at + n, -slopes.negatives * weight, left);
        vec<A> own = load(within + n) + slopes.within * weight;
        if (j == i) {
          own += slopes.across * weight;
        } else {
          store_some(grad_lse + at + n, slopes.across * weight, left);
        }
        store(within + n, own);
      }
    }
    std::copy_n(within, block.count, grad_lse + block.at(i, i));
  }
}

}  // namespace

void view_pair_cross_entropy_cpu(const ViewPairCrossEntropy& p, std::int64_t begin,
                                 std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t block = begin; block < end; ++block) write_losses<A>(p, block);
  });
}

void view_pair_cross_entropy_mean_cpu(const ViewPairCrossEntropy& p) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    const std::int64_t blocks = pair_blocks(p.images);
    for (std::int64_t k = 0; k < p.subspaces; ++k) {
      double sum = 0;
      for (std::int64_t block = 0; block < blocks; ++block) {
        sum += static_cast<const A*>(p.sums)[k * blocks + block];
      }
      // Of each pair, which has two ordered ones, there is one term.
      static_cast<A*>(p.loss)[k] =
          static_cast<A>(2 * sum / static_cast<double>(averaged(p.views, p.images)));
    }
  });
}

void view_pair_cross_entropy_backward_cpu(const ViewPairCrossEntropyBackward& p, std::int64_t begin,
                                          std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t block = begin; block < end; ++block) write_gradients<A>(p, block);
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(view_pair_cross_entropy_cpu,
                   (const ViewPairCrossEntropy& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(view_pair_cross_entropy_mean_cpu, (const ViewPairCrossEntropy& p), (p))
MAST_EXT_CPU_ENTRY(view_pair_cross_entropy_backward_cpu,
                   (const ViewPairCrossEntropyBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
