#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/cross_correlation_penalty/cross_correlation_penalty.h"
#include "kernels/cross_correlation_penalty/cross_correlation_penalty_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

namespace math = cross_correlation_math;

}  // namespace

void cross_correlation_rows_cpu(const CrossCorrelationPenalty& p, std::int64_t begin,
                                std::int64_t end) {
  const CrossCorrelationShape& s = p.shape;
  visit_accumulation(s.dtype, [&]<typename A>() {
    auto* product = static_cast<A*>(p.product);
    auto* sums = static_cast<A*>(p.row_sums);
    for (std::int64_t i = begin; i < end; ++i) {
      if (s.gram) {
        sums[i] = dot(product + i * s.rows, product + (s.rows + i) * s.rows, s.rows);
        continue;
      }
      A* row = product + i * s.dim;
      row[i] = 0;
      sums[i] = dot(row, row, s.dim);
    }
  });
}

void cross_correlation_finish_cpu(const CrossCorrelationPenalty& p, std::int64_t begin,
                                  std::int64_t end) {
  if (begin == end) return;
  const CrossCorrelationShape& s = p.shape;
  visit_accumulation(s.dtype, [&]<typename A>() {
    const double rows = static_cast<double>(s.rows);
    const auto* sums = static_cast<const A*>(p.row_sums);
    double diagonal = 0, pairs = 0;
    for (std::int64_t d = 0; d < s.dim; ++d) {
      const double c = math::correlation(s, static_cast<const A*>(s.dots)[d]);
      diagonal += (c - 1) * (c - 1);
      pairs += s.gram ? -c * c : sums[d] / (rows * rows);
    }
    for (std::int64_t n = 0; s.gram && n < s.rows; ++n) pairs += sums[n] / (rows * rows);
    *static_cast<A*>(p.penalty) = static_cast<A>(diagonal + s.lambda * pairs);
  });
}

void cross_correlation_matrix_cpu(const CrossCorrelationPenaltyBackward& p, std::int64_t begin,
                                  std::int64_t end) {
  const CrossCorrelationShape& s = p.shape;
  visit_accumulation(s.dtype, [&]<typename A>() {
    const A grad = *static_cast<const A*>(p.grad_penalty);
    const A factor = math::matrix_factor(s, grad);
    for (std::int64_t d = begin; d < end; ++d) {
      const A* from = static_cast<const A*>(s.product) + d * s.dim;
      A* to = static_cast<A*>(p.matrix) + d * s.dim;
      for (std::int64_t e = 0; e < s.dim; e += kLanes<A>) {
        store_some(to + e, load_some(from + e, s.dim - e) * factor, s.dim - e);
      }
      to[d] = math::matrix_diagonal(s, grad, static_cast<const A*>(s.dots)[d]);
    }
  });
}

void cross_correlation_combine_cpu(const CrossCorrelationPenaltyBackward& p, std::int64_t begin,
                                   std::int64_t end) {
  const CrossCorrelationShape& s = p.shape;
  visit_dtype(p.grad_dtype, [&]<typename T>() {
    using A = accum_t<T>;
    const A grad = *static_cast<const A*>(p.grad_penalty);
    const A product_grad_scale = math::product_grad_scale(p, grad);
    const std::int64_t stride = padded(p.dims);
    // grad = product_grad * product_grad_factor + other * other_factor - own * own_factor
    A* factors = scratch<A, struct Factors>(3 * stride);
    A *product_grad_factor = factors, *other_factor = factors + stride,
      *own_factor = other_factor + stride;
    std::fill(factors, factors + 3 * stride, A{0});
    std::int64_t prepared = -1;  // the view of `factors`
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t v = i / p.tile_rows, n = i % p.tile_rows;
      T* to = static_cast<T*>(v == 0 ? p.grad_a : p.grad_b);
      if (to == nullptr) continue;
      if (v != prepared) {
        prepared = v;
        for (std::int64_t d = 0; d < p.dims; ++d) {
          const std::int64_t at = p.first_dim + d;
          const A scale = static_cast<const A*>(p.scale)[v * s.dim + at];
          product_grad_factor[d] = scale * product_grad_scale;
          const A dot = static_cast<const A*>(s.dots)[at];
          other_factor[d] = scale * math::other_factor(p, grad, dot);
          own_factor[d] = scale * math::projection(p, grad, dot, math::projections_of<A>(p, v)[at]);
        }
      }
      const A* tile = static_cast<const A*>(p.tile);
      const A *own = tile + i * p.dims, *other = tile + ((1 - v) * p.tile_rows + n) * p.dims;
      const A* product_grad = static_cast<const A*>(p.product_grad) + i * p.dims;
      to += (p.first_row + n) * s.dim + p.first_dim;
      for (std::int64_t d = 0; d < p.dims; d += kLanes<A>) {
        const std::int64_t left = p.dims - d;
        store_some(to + d,
                   load_some(product_grad + d, left) * load(product_grad_factor + d) +
                       load_some(other + d, left) * load(other_factor + d) -
                       load_some(own + d, left) * load(own_factor + d),
                   left);
      }
    }
  });
}

}  // namespace MAST_EXT_ISA

#define MAST_EXT_RANGE(Params) (const Params& p, std::int64_t begin, std::int64_t end)
MAST_EXT_CPU_ENTRY(cross_correlation_rows_cpu, MAST_EXT_RANGE(CrossCorrelationPenalty),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(cross_correlation_finish_cpu, MAST_EXT_RANGE(CrossCorrelationPenalty),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(cross_correlation_matrix_cpu, MAST_EXT_RANGE(CrossCorrelationPenaltyBackward),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(cross_correlation_combine_cpu, MAST_EXT_RANGE(CrossCorrelationPenaltyBackward),
                   (p, begin, end))
#undef MAST_EXT_RANGE

}  // namespace mast_ext::kernels
