#include "kernels/budgeted_masks/budgeted_masks.h"

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// The means of the sigmoids of scaled - shift, and of their slopes.
template <typename A>
void sigmoid_means(const A* scaled, std::int64_t dim, A shift, A& mean, A& slope) {
  const std::int64_t whole = dim / kLanes<A> * kLanes<A>;
  vec<A> values{}, slopes{};
  for (std::int64_t d = 0; d < whole; d += kLanes<A>) {
    const vec<A> value = 1 / (1 + MAST_EXT_ISA::exp(shift - load(scaled + d)));
    values += value;
    slopes += value * (1 - value);
  }
  mean = sum_lanes<A>(values), slope = sum_lanes<A>(slopes);
  for (std::int64_t d = whole; d < dim; ++d) {
    const A value = sigmoid(scaled[d] - shift);
    mean += value;
    slope += value * (1 - value);
  }
  mean /= static_cast<A>(dim), slope /= static_cast<A>(dim);
}

template <typename A>
void write_shifted(const BudgetedMasks& p, std::int64_t f) {
  const A* logits = static_cast<const A*>(p.logits) + f * p.dim;
  A* shifted = static_cast<A*>(p.shifted) + f * p.dim;
  const A sharpness = static_cast<A>(p.sharpness);
  for (std::int64_t d = 0; d < p.dim; ++d) shifted[d] = sharpness * logits[d];
  const auto [least, largest] = std::minmax_element(shifted, shifted + p.dim);
  ShiftSearch<A> search(*least, *largest, static_cast<const A*>(p.mean)[f]);
  for (int i = 0; i < kShiftSteps; ++i) {
    const A before = search.shift;
    A mean, slope;
    sigmoid_means(shifted, p.dim, before, mean, slope);
    search.step(mean, slope);
    if (search.shift == before) break;
  }
  for (std::int64_t d = 0; d < p.dim; ++d) shifted[d] -= search.shift;
}

// Calls body(d, left) for every vector of a block of dimensions; `left` are those up to its end.
template <typename A, typename Body>
void for_block(std::int64_t dim, std::int64_t block, const Body& body) {
  const std::int64_t end = std::min(dim, (block + 1) * kMaskBlock);
  for (std::int64_t d = block * kMaskBlock; d < end; d += kLanes<A>) body(d, end - d);
}

// log(sigmoid(u)) without overflow.
template <typename A>
vec<A> log_sigmoid(vec<A> u) {
  const vec<A> none{};
  return (u < none ? u : none) - log1p_unit(MAST_EXT_ISA::exp(u < none ? u : -u));
}

template <typename A>
void write_subsets(const BudgetedMasks& p, std::int64_t block) {
  const A* u = static_cast<const A*>(p.shifted);
  A* w = static_cast<A*>(p.weights);
  A squares[kMaskBlock + kPad];
  const std::int64_t first = block * kMaskBlock;
  for_block<A>(p.dim, block, [&](auto d, auto left) { store_some(w + d, broadcast(A{1}), left); });
  for (std::int64_t f = 0, subsets = 1; f < p.masks; ++f, subsets *= 2) {
    for_block<A>(p.dim, block, [&](auto d, auto left) {
      const vec<A> log_mask = log_sigmoid<A>(load_some(u + f * p.dim + d, left));
      store(squares + d - first, MAST_EXT_ISA::exp(2 * log_mask));
    });
    for (std::int64_t g = 0; g < subsets; ++g) {
      for_block<A>(p.dim, block, [&](auto d, auto left) {
        const vec<A> product = load_some(w + g * p.dim + d, left) * load(squares + d - first);
        store_some(w + (subsets + g) * p.dim + d, product, left);
      });
    }
  }
}

template <typename A>
void write_grad_shifted(const BudgetedMasksBackward& p, std::int64_t block) {
  const A* u = static_cast<const A*>(p.shifted);
  const A* w = static_cast<const A*>(p.weights);
  const A* grad = static_cast<const A*>(p.grad_weights);
  A sums[kMostMasks][kMaskBlock + kPad] = {};
  const std::int64_t first = block * kMaskBlock;
  for (std::int64_t g = 1; g < std::int64_t{1} << p.masks; ++g) {
    for_block<A>(p.dim, block, [&](auto d, auto left) {
      const std::int64_t at = g * p.dim + d;
      const vec<A> product = load_some(grad + at, left) * load_some(w + at, left);
      for (std::int64_t f = 0; f < p.masks; ++f) {
        A* sum = sums[f] + d - first;
        if (g >> f & 1) store(sum, load(sum) + product);
      }
    });
  }
  for (std::int64_t f = 0; f < p.masks; ++f) {
    for_block<A>(p.dim, block, [&](auto d, auto left) {
      const vec<A> rest = 1 / (1 + MAST_EXT_ISA::exp(load_some(u + f * p.dim + d, left)));  // 1 - m
      store_some(static_cast<A*>(p.grad_shifted) + f * p.dim + d,
                 2 * rest * load(sums[f] + d - first), left);
    });
  }
}

template <typename A>
void write_grad_logits(const BudgetedMasksBackward& p, std::int64_t f) {
  const A* u = static_cast<const A*>(p.shifted) + f * p.dim;
  const A* grad = static_cast<const A*>(p.grad_shifted) + f * p.dim;
  A* out = static_cast<A*>(p.grad_logits) + f * p.dim;
  A slopes = 0, grads = 0;
  for (std::int64_t d = 0; d < p.dim; ++d) {
    out[d] = sigmoid(u[d]) * sigmoid(-u[d]);  // 1 - sigmoid(u) would be 0 for a large u
    slopes += out[d];
    grads += grad[d];
  }
  const A sharpness = static_cast<A>(p.sharpness), share = slopes > 0 ? grads / slopes : A{0};
  for (std::int64_t d = 0; d < p.dim; ++d) out[d] = sharpness * (grad[d] - out[d] * share);
}

}  // namespace

void budgeted_masks_shift_cpu(const BudgetedMasks& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t f = begin; f < end; ++f) write_shifted<A>(p, f);
  });
}

void budgeted_masks_subsets_cpu(const BudgetedMasks& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t block = begin; block < end; ++block) write_subsets<A>(p, block);
  });
}

void budgeted_masks_backward_subsets_cpu(const BudgetedMasksBackward& p, std::int64_t begin,
                                         std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t block = begin; block < end; ++block) write_grad_shifted<A>(p, block);
  });
}

void budgeted_masks_backward_shift_cpu(const BudgetedMasksBackward& p, std::int64_t begin,
                                       std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t f = begin; f < end; ++f) write_grad_logits<A>(p, f);
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(budgeted_masks_shift_cpu,
                   (const BudgetedMasks& p, std::int64_t begin, std::int64_t end), (p, begin, end))
MAST_EXT_CPU_ENTRY(budgeted_masks_subsets_cpu,
                   (const BudgetedMasks& p, std::int64_t begin, std::int64_t end), (p, begin, end))
MAST_EXT_CPU_ENTRY(budgeted_masks_backward_subsets_cpu,
                   (const BudgetedMasksBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(budgeted_masks_backward_shift_cpu,
                   (const BudgetedMasksBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
