#include "kernels/common/isa.h"
#include "kernels/pair_sums/pair_sums_cpu.h"
#include "kernels/subspace_similarity/subspace_similarity.h"
#include "kernels/subspace_similarity/subspace_similarity_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

namespace math = subspace_similarity_math;

template <typename Body>
void visit(DType dtype, Metric metric, Body&& body) {
  visit_accumulation(dtype, [&]<typename A>() {
    if (metric == Metric::kCosine) {
      body.template operator()<A, Product>();
    } else {
      body.template operator()<A, SquaredDifference>();
    }
  });
}

}  // namespace

void subspace_similarity_cpu(const SubspaceSimilarity& p, std::int64_t begin, std::int64_t end) {
  visit(p.pairs.dtype, p.metric, [&]<typename A, typename Values>() {
    const std::int64_t subspaces = p.pairs.subspaces;
    PairSumsCpu<A, Values> engine(p.pairs);
    A* sums = scratch<A, struct Sums>(engine.rows() * subspaces);
    for (std::int64_t b = begin; b < end; ++b) {
      engine.forward(b, sums);
      for (std::int64_t k = 0; k < subspaces; ++k) {
        math::finish<A>(p, k, b, [&](std::int32_t row) { return sums[row * subspaces + k]; });
      }
    }
  });
}

void subspace_similarity_backward_cpu(const SubspaceSimilarityBackward& p, std::int64_t begin,
                                      std::int64_t end) {
  visit(p.pairs.dtype, p.metric, [&]<typename A, typename Values>() {
    const std::int64_t subspaces = p.pairs.subspaces;
    PairSumsCpu<A, Values> engine(p.pairs);
    A* c = scratch<A, struct Coefficients>(engine.rows() * subspaces);
    for (std::int64_t slice = begin; slice < end; ++slice) {
      A* grad_weights = engine.slice_of(p.work, slice);
      const std::int64_t last = p.pairs.batch * (slice + 1) / p.work.slices;
      for (std::int64_t b = p.pairs.batch * slice / p.work.slices; b < last; ++b) {
        for (std::int64_t k = 0; k < subspaces; ++k) {
          math::coefficients<A>(p, k, b,
                                [&](std::int32_t row, A value) { c[row * subspaces + k] = value; });
        }
        engine.backward(b, c, p.grad, grad_weights);
      }
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(subspace_similarity_cpu,
                   (const SubspaceSimilarity& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(subspace_similarity_backward_cpu,
                   (const SubspaceSimilarityBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
