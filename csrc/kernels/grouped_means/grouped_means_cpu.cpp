#include "kernels/grouped_means/grouped_means.h"

#include <algorithm>

#include "kernels/common/isa.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename A>
void means_of_block(const GroupedMeans& p, std::int64_t block) {
  const std::int64_t first = block * kMeanBlock;
  const std::int64_t count = std::min(kMeanBlock, p.in.dim - first);
  A totals[kMeanBlock] = {}, compared[kMeanBlock] = {};
  for (std::int64_t g = 0; g < p.in.groups; ++g) {
    const A* w = static_cast<const A*>(p.in.weights) + g * p.in.dim + first;
    const A* sums = static_cast<const A*>(p.in.sums) + g * p.in.dim + first;
    const A pairs = static_cast<const A*>(p.in.counts)[g];
    for (std::int64_t d = 0; d < count; ++d) {
      totals[d] += w[d] * sums[d];
      compared[d] += w[d] * pairs;
    }
  }
  A* const means = static_cast<A*>(p.means) + first;
  A* const kept = static_cast<A*>(p.compared) + first;
  for (std::int64_t d = 0; d < count; ++d) {
    means[d] = totals[d] / std::max(compared[d], A{1});
    kept[d] = compared[d];
  }
}

template <typename A>
void grads_of_group(const GroupedMeansBackward& p, std::int64_t g) {
  const std::int64_t dim = p.in.dim;
  const A* w = static_cast<const A*>(p.in.weights) + g * dim;
  const A pairs = static_cast<const A*>(p.in.counts)[g];
  if (p.grad_weights != nullptr) {
    A* const to = static_cast<A*>(p.grad_weights) + g * dim;
    for (std::int64_t d = 0; d < dim; ++d) {
      to[d] = MeanSlope<A>(p, d).of_weight(p, g * dim + d, pairs);
    }
  }
  if (p.grad_sums != nullptr) {
    A* const to = static_cast<A*>(p.grad_sums) + g * dim;
    for (std::int64_t d = 0; d < dim; ++d) to[d] = MeanSlope<A>(p, d).share * w[d];
  }
  if (p.grad_counts != nullptr) {
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
      const MeanSlope<A> slope(p, d);
      sum -= slope.share * slope.level * w[d];
    }
    static_cast<A*>(p.grad_counts)[g] = static_cast<A>(sum);
  }
}

}  // namespace

void grouped_means_cpu(const GroupedMeans& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.in.dtype, [&]<typename A>() {
    for (std::int64_t block = begin; block < end; ++block) means_of_block<A>(p, block);
  });
}

void grouped_means_backward_cpu(const GroupedMeansBackward& p, std::int64_t begin,
                                std::int64_t end) {
  visit_accumulation(p.in.dtype, [&]<typename A>() {
    for (std::int64_t g = begin; g < end; ++g) grads_of_group<A>(p, g);
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(grouped_means_cpu, (const GroupedMeans& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(grouped_means_backward_cpu,
                   (const GroupedMeansBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
