#include "kernels/common/isa.h"
#include "kernels/pair_sums/pair_sums_cpu.h"
#include "kernels/subspace_nll/subspace_nll.h"
#include "kernels/subspace_nll/subspace_nll_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

namespace math = subspace_nll_math;

template <typename Body>
void visit(DType dtype, Variance variance, Body&& body) {
  visit_accumulation(dtype, [&]<typename A>() {
    if (variance == Variance::kDiagonal) {
      body.template operator()<A, Likelihood>();
    } else {
      body.template operator()<A, SquaredDifference>();
    }
  });
}

}  // namespace

void subspace_nll_cpu(const SubspaceNll& p, std::int64_t begin, std::int64_t end) {
  visit(p.pairs.dtype, p.variance, [&]<typename A, typename Values>() {
    const std::int64_t subspaces = p.pairs.subspaces;
    PairSumsCpu<A, Values> engine(p.pairs);
    A* totals = scratch<A, struct Totals>(subspaces);
    for (std::int64_t k = 0; k < subspaces; ++k) totals[k] = engine.weight(k);
    A* sums = scratch<A, struct Sums>(engine.rows() * subspaces);
    for (std::int64_t b = begin; b < end; ++b) {
      engine.forward(b, sums);
      visit_elements<A>(p.pairs.dtype, [&]<typename T>() {
        for (std::int64_t k = 0; k < subspaces; ++k) {
          math::finish<T>(p, k, b, totals[k],
                          [&](std::int32_t row) { return sums[row * subspaces + k]; });
        }
      });
    }
  });
}

void subspace_nll_backward_cpu(const SubspaceNllBackward& p, std::int64_t begin, std::int64_t end) {
  visit(p.pairs.dtype, p.variance, [&]<typename A, typename Values>() {
    const std::int64_t subspaces = p.pairs.subspaces;
    PairSumsCpu<A, Values> engine(p.pairs);
    A* totals = scratch<A, struct Totals>(subspaces);
    for (std::int64_t k = 0; k < subspaces; ++k) totals[k] = engine.weight(k);
    A* c = scratch<A, struct Coefficients>(engine.rows() * subspaces);
    A* grad_totals = scratch<A, struct GradTotals>(subspaces);
    for (std::int64_t slice = begin; slice < end; ++slice) {
      A* grad_weights = engine.slice_of(p.work, slice);
      for (std::int64_t k = 0; k < subspaces; ++k) grad_totals[k] = 0;
      const std::int64_t last = p.pairs.batch * (slice + 1) / p.work.slices;
      for (std::int64_t b = p.pairs.batch * slice / p.work.slices; b < last; ++b) {
        visit_elements<A>(p.pairs.dtype, [&]<typename T>() {
          for (std::int64_t k = 0; k < subspaces; ++k) {
            grad_totals[k] += math::coefficients<T>(
                p, k, b, totals[k],
                [&](std::int32_t row, A value) { c[row * subspaces + k] = value; });
          }
        });
        engine.backward(b, c, p.grad, grad_weights);
      }
      if (grad_weights != nullptr) engine.add_to_all(grad_totals, grad_weights);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(subspace_nll_cpu, (const SubspaceNll& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(subspace_nll_backward_cpu,
                   (const SubspaceNllBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
