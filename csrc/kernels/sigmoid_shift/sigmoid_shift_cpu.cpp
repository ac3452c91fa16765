#include "kernels/sigmoid_shift/sigmoid_shift.h"

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename A>
A shift_of(const A* logits, std::int64_t dim, A mean) {
  const auto [least, largest] = std::minmax_element(logits, logits + dim);
  ShiftSearch<A> search(*least, *largest, mean);
  const std::int64_t whole = dim / kLanes<A> * kLanes<A>;
  const A count = static_cast<A>(dim);
  for (int i = 0; i < kShiftSteps; ++i) {
    const A before = search.shift;
    vec<A> values{}, slopes{};
    for (std::int64_t d = 0; d < whole; d += kLanes<A>) {
      const vec<A> value = 1 / (1 + exp(search.shift - load(logits + d)));
      values += value;
      slopes += value * (1 - value);
    }
    A value_sum = sum_lanes<A>(values), slope_sum = sum_lanes<A>(slopes);
    for (std::int64_t d = whole; d < dim; ++d) {
      const A value = 1 / (1 + std::exp(search.shift - logits[d]));
      value_sum += value;
      slope_sum += value * (1 - value);
    }
    search.step(value_sum / count, slope_sum / count);
    if (search.shift == before) break;
  }
  return search.shift;
}

}  // namespace

void sigmoid_shift_cpu(const SigmoidShift& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t k = begin; k < end; ++k) {
      static_cast<A*>(p.shift)[k] = shift_of(static_cast<const A*>(p.logits) + k * p.dim, p.dim,
                                             static_cast<const A*>(p.mean)[k]);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(sigmoid_shift_cpu, (const SigmoidShift& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
