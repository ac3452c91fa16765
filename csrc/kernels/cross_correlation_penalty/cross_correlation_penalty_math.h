// The arithmetic of cross_correlation_penalty on single numbers, shared by CPU and CUDA. A is the
// accumulation type.
#pragma once

#include "kernels/common/host_device.h"
#include "kernels/cross_correlation_penalty/cross_correlation_penalty.h"

namespace mast_ext::kernels::cross_correlation_math {

// C_dd, of dot = dots[d]
template <typename A>
MAST_EXT_HD A correlation(const CrossCorrelationShape& p, A dot) {
  return dot / static_cast<A>(p.rows);
}

// The gradient of a standardized view, at (n, d), is
//   product_grad_scale * product_grad_nd + other_factor_d * other_nd
// In the direct form product_grad is already the whole gradient, of a small batch for a gradient
// of 1.
template <typename A>
MAST_EXT_HD A product_grad_scale(const CrossCorrelationPenaltyBackward& p, A grad) {
  const CrossCorrelationShape& s = p.shape;
  if (!s.gram) return p.small ? grad : A{1};
  const A rows = static_cast<A>(s.rows);
  return grad * 2 * static_cast<A>(s.lambda) / (rows * rows);
}

template <typename A>
MAST_EXT_HD A other_factor(const CrossCorrelationPenaltyBackward& p, A grad, A dot) {
  const CrossCorrelationShape& s = p.shape;
  if (!s.gram) return A{0};
  const A c = correlation(s, dot);
  return grad * 2 * (c - 1 - static_cast<A>(s.lambda) * c) / static_cast<A>(s.rows);
}

// H_de = matrix_factor P_de for d != e, and H_dd = matrix_diagonal.
template <typename A>
MAST_EXT_HD A matrix_factor(const CrossCorrelationShape& s, A grad) {
  const A rows = static_cast<A>(s.rows);
  return grad * 2 * static_cast<A>(s.lambda) / (rows * rows);
}

template <typename A>
MAST_EXT_HD A matrix_diagonal(const CrossCorrelationShape& s, A grad, A dot) {
  return grad * 2 * (correlation(s, dot) - 1) / static_cast<A>(s.rows);
}

// Where the number is that projection() needs of view v and column d, besides dots[d].
template <typename A>
MAST_EXT_HD const A* projections_of(const CrossCorrelationPenaltyBackward& p, std::int64_t v) {
  const auto* projections = static_cast<const A*>(p.projections);
  if (p.shape.gram) return projections + v * p.shape.dim;
  // Rows of P belong to a, columns to b.
  return v == 0 ? static_cast<const A*>(p.shape.row_sums) : projections;
}

// sum_n gradient_nd * view_nd / divisor: the component of a standardized view's gradient along the
// view itself, which the derivative of standardization removes.
template <typename A>
MAST_EXT_HD A projection(const CrossCorrelationPenaltyBackward& p, A grad, A dot, A projected) {
  const CrossCorrelationShape& s = p.shape;
  const A sum = s.gram ? product_grad_scale(p, grad) * projected + other_factor(p, grad, dot) * dot
                       : matrix_factor(s, grad) * projected + matrix_diagonal(s, grad, dot) * dot;
  return sum / static_cast<A>(s.divisor);
}

}  // namespace mast_ext::kernels::cross_correlation_math
