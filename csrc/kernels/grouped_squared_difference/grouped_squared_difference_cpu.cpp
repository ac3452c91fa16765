#include "kernels/grouped_squared_difference/grouped_squared_difference.h"

#include <algorithm>

#include "kernels/common/half_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// Calls body(d, load, store) for the vectors of a row from `begin` to `end`: load(p) reads the
// elements of p from d on, store(p, v) writes them, and those beyond the end are 0.
template <typename Body>
void for_vectors(std::int64_t begin, std::int64_t end, std::int64_t lanes, const Body& body) {
  std::int64_t d = begin;
  for (; d + lanes <= end; d += lanes) {
    body([d](const auto* p) { return load_whole(p + d); },
         [d](auto* p, auto v) { store_whole(p + d, v); });
  }
  if (d == end) return;
  body([d, end](const auto* p) { return load_some(p + d, end - d); },
       [d, end](auto* p, auto v) { store_some(p + d, v, end - d); });
}

// One slice of the rows, in one block of columns.
template <typename T, bool kWithResidual>
void add_rows(const GroupedSquaredDifference& p, std::int64_t slice, std::int64_t block) {
  using A = accum_t<T>;
  using V = vec<A>;
  const RowPairs& pairs = p.pairs;
  const std::int64_t dim = pairs.dim, begin = block * kRowBlock;
  const std::int64_t end = std::min(dim, begin + kRowBlock);
  A* sums = static_cast<A*>(p.slice_sums) + slice * pairs.groups * dim;
  A* counts = static_cast<A*>(p.slice_counts) + slice * pairs.groups;
  A* residual = kWithResidual ? static_cast<A*>(p.block_residual) + block * pairs.rows : nullptr;
  for (std::int64_t g = 0; g < pairs.groups; ++g) {
    std::fill(sums + g * dim + begin, sums + g * dim + end, A{0});
  }
  if (block == 0) std::fill(counts, counts + pairs.groups, A{0});

  for (std::int64_t n = p.first_row(slice); n < p.first_row(slice + 1); ++n) {
    if (!pairs.has_group(n)) {
      if (kWithResidual) residual[n] = 0;
      continue;
    }
    const std::int64_t g = pairs.group[n];
    const A weight = pairs.weight_of<A>(n);
    const T* x = static_cast<const T*>(pairs.x) + n * pairs.x_stride;
    const T* y = static_cast<const T*>(pairs.y) + n * pairs.y_stride;
    A* sum = sums + g * dim;
    const A* w = kWithResidual ? static_cast<const A*>(p.dimension_weights) + g * dim : nullptr;
    V weighted{};
    for_vectors(begin, end, kLanes<A>, [&](const auto& load, const auto& store) {
      const V difference = load(x) - load(y), square = difference * difference;
      store(sum, load(sum) + weight * square);
      if constexpr (kWithResidual) weighted += load(w) * square;
    });
    if (kWithResidual) residual[n] = sum_lanes<A>(weighted);
    if (block == 0) counts[g] += weight;
  }
}

// to[i] = sum over `parts` of from[part * count + i]. In double: parts may be many.
template <typename A>
void add_parts(std::int64_t parts, std::int64_t count, const A* from, A* to) {
  constexpr std::int64_t kChunk = 256;
  for (std::int64_t begin = 0; begin < count; begin += kChunk) {
    const std::int64_t length = std::min(kChunk, count - begin);
    double total[kChunk] = {};
    for (std::int64_t part = 0; part < parts; ++part) {
      const A* row = from + part * count + begin;
      for (std::int64_t i = 0; i < length; ++i) total[i] += static_cast<double>(row[i]);
    }
    for (std::int64_t i = 0; i < length; ++i) to[begin + i] = static_cast<A>(total[i]);
  }
}

template <typename T>
void write_grads(const GroupedSquaredDifferenceBackward& p, std::int64_t n) {
  using A = accum_t<T>;
  using V = vec<A>;
  const RowPairs& pairs = p.pairs;
  const std::int64_t dim = pairs.dim;
  const auto row = [&](void* grad) {
    return grad == nullptr ? nullptr : static_cast<T*>(grad) + n * dim;
  };
  T *grad_x = row(p.grad_x), *grad_y = row(p.grad_y);
  A* grad_weight = static_cast<A*>(p.grad_weight);
  if (!pairs.has_group(n)) {
    for (T* grad : {grad_x, grad_y}) {
      if (grad != nullptr) std::fill(grad, grad + dim, T(0));
    }
    if (grad_weight != nullptr) grad_weight[n] = 0;
    return;
  }
  const std::int64_t g = pairs.group[n];
  const A twice = 2 * pairs.weight_of<A>(n);
  const T* x = static_cast<const T*>(pairs.x) + n * pairs.x_stride;
  const T* y = static_cast<const T*>(pairs.y) + n * pairs.y_stride;
  const A* grad_sum = static_cast<const A*>(p.grad_sums) + g * dim;
  V total{};
  for_vectors(0, dim, kLanes<A>, [&](const auto& load, const auto& store) {
    const V difference = load(x) - load(y), product = load(grad_sum) * difference;
    const V grad = twice * product;
    if (grad_x != nullptr) store(grad_x, grad);
    if (grad_y != nullptr) store(grad_y, -grad);
    total += product * difference;
  });
  if (grad_weight != nullptr) {
    const auto* grad_counts = static_cast<const A*>(p.grad_counts);
    grad_weight[n] = sum_lanes<A>(total) + (grad_counts == nullptr ? A{0} : grad_counts[g]);
  }
}

}  // namespace

void grouped_squared_difference_cpu(const GroupedSquaredDifference& p, std::int64_t begin,
                                    std::int64_t end) {
  const std::int64_t blocks = row_blocks(p.pairs.dim);
  visit_dtype(p.pairs.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) {
      if (p.dimension_weights == nullptr) {
        add_rows<T, false>(p, i / blocks, i % blocks);
      } else {
        add_rows<T, true>(p, i / blocks, i % blocks);
      }
    }
  });
}

void grouped_squared_difference_finish_cpu(const GroupedSquaredDifference& p) {
  const RowPairs& pairs = p.pairs;
  visit_dtype(pairs.dtype, [&]<typename T>() {
    using A = accum_t<T>;
    const auto add = [](std::int64_t parts, std::int64_t count, const void* from, void* to) {
      add_parts(parts, count, static_cast<const A*>(from), static_cast<A*>(to));
    };
    if (p.slices > 1) {
      add(p.slices, pairs.groups * pairs.dim, p.slice_sums, p.sums);
      add(p.slices, pairs.groups, p.slice_counts, p.counts);
    }
    if (p.residual != nullptr) {
      add(row_blocks(pairs.dim), pairs.rows, p.block_residual, p.residual);
    }
  });
}

void grouped_squared_difference_backward_cpu(const GroupedSquaredDifferenceBackward& p,
                                             std::int64_t begin, std::int64_t end) {
  visit_dtype(p.pairs.dtype, [&]<typename T>() {
    for (std::int64_t n = begin; n < end; ++n) write_grads<T>(p, n);
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(grouped_squared_difference_cpu,
                   (const GroupedSquaredDifference& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(grouped_squared_difference_finish_cpu, (const GroupedSquaredDifference& p), (p))
MAST_EXT_CPU_ENTRY(grouped_squared_difference_backward_cpu,
                   (const GroupedSquaredDifferenceBackward& p, std::int64_t begin,
                    std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
