#include "kernels/weighted_terms/weighted_terms.h"

#include <algorithm>

#include "kernels/common/isa.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// In double, as sums that run side by side, which the compiler makes lanes of a vector.
template <typename A>
double sum(const A* x, std::int64_t count) {
  constexpr std::int64_t kSums = 16;
  double sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (std::int64_t j = 0; j < kSums; ++j) sums[j] += x[i + j];
  }
  for (; i < count; ++i) sums[0] += x[i];
  double total = 0;
  for (const double part : sums) total += part;
  return total;
}

}  // namespace

void weighted_terms_cpu(const WeightedTerms& p) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    double total = 0;
    for (int i = 0; i < p.count; ++i) {
      const auto& part = p.parts[i];
      const double term = part.scale * sum(static_cast<const A*>(part.x), part.elements);
      static_cast<A*>(p.terms)[i] = static_cast<A>(term);
      total += part.weight * term;
    }
    *static_cast<A*>(p.total) = static_cast<A>(total);
  });
}

void weighted_terms_backward_cpu(const WeightedTermsBackward& p) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    const double grad = *static_cast<const A*>(p.grad);
    for (const auto& part : p.parts) {
      std::fill_n(static_cast<A*>(part.grad_x), part.elements, static_cast<A>(grad * part.factor));
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(weighted_terms_cpu, (const WeightedTerms& p), (p))
MAST_EXT_CPU_ENTRY(weighted_terms_backward_cpu, (const WeightedTermsBackward& p), (p))

}  // namespace mast_ext::kernels
