// The arithmetic of variance_covariance on single numbers, shared by CPU and CUDA. A is the
// accumulation type.
#pragma once

#include <cmath>

#include "kernels/common/host_device.h"
#include "kernels/variance_covariance/variance_covariance.h"

namespace mast_ext::kernels::variance_covariance_math {

template <typename A>
MAST_EXT_HD A weight(const VarianceCovarianceShape& p, std::int64_t k, std::int64_t d) {
  if (p.masks == nullptr) return A{1};
  const A mask = static_cast<const A*>(p.masks)[k * p.dim + d];
  return mask * mask;
}

template <typename A>
MAST_EXT_HD A sum_squares(const VarianceCovarianceShape& p, std::int64_t v, std::int64_t d) {
  return static_cast<const A*>(p.sum_squares)[v * p.dim + d];
}

template <typename A>
MAST_EXT_HD A deviation(const VarianceCovarianceShape& p, A w, A squares) {
  return std::sqrt(w * (squares / static_cast<A>(p.rows - 1)) + static_cast<A>(p.eps));
}

// relu(1 - deviation); NaN stays NaN.
template <typename A>
MAST_EXT_HD A hinge(A deviation) {
  return deviation >= 1 ? A{0} : 1 - deviation;
}

// The derivative of the hinge with respect to the weighted variance.
template <typename A>
MAST_EXT_HD A hinge_slope(A deviation) {
  return deviation >= 1 ? A{0} : A{-0.5} / deviation;
}

// covariance = covariance_scale * (sum over pairs of dimensions)
template <typename A>
MAST_EXT_HD A covariance_scale(const VarianceCovarianceShape& p) {
  const A degrees = static_cast<A>(p.rows - 1);
  return 1 / (degrees * degrees * static_cast<A>(p.dim));
}

template <typename A>
MAST_EXT_HD A grad_variance(const VarianceCovarianceBackward& p, std::int64_t kv) {
  return static_cast<A>(p.variance_factor) *
         static_cast<const A*>(p.grad_variance)[kv * p.grad_stride];
}

template <typename A>
MAST_EXT_HD A grad_covariance(const VarianceCovarianceBackward& p, std::int64_t kv) {
  return static_cast<A>(p.covariance_factor) *
         static_cast<const A*>(p.grad_covariance)[kv * p.grad_stride];
}

// With c_kv = covariance_coefficient and h_vd = diagonal, the gradient of z, at (v, n, d), is
//   Gram    sum_k c_kv w_kd (P_kv zc)_nd + h_vd zc_nd
//   direct  (zc H)_nd, where H_de = P_de sum_k c_kv w_kd w_ke for d != e and H_dd = h_vd
template <typename A>
MAST_EXT_HD A covariance_coefficient(const VarianceCovarianceBackward& p, std::int64_t kv) {
  return 4 * covariance_scale<A>(p.shape) * grad_covariance<A>(p, kv);
}

// What a subspace adds to h_vd, of its weight w and of sum_squares.
template <typename A>
MAST_EXT_HD A diagonal_part(const VarianceCovarianceBackward& p, std::int64_t kv, A w, A squares) {
  const VarianceCovarianceShape& s = p.shape;
  const A grad = grad_variance<A>(p, kv) / static_cast<A>(s.dim);
  A part = grad * hinge_slope(deviation(s, w, squares)) * w * (2 / static_cast<A>(s.rows - 1));
  if (s.gram) part -= covariance_coefficient<A>(p, kv) * w * w * squares;
  return part;
}

template <typename A>
MAST_EXT_HD A diagonal(const VarianceCovarianceBackward& p, std::int64_t v, std::int64_t d) {
  const VarianceCovarianceShape& s = p.shape;
  const A squares = sum_squares<A>(s, v, d);
  A total = 0;
  for (std::int64_t k = 0; k < s.subspaces; ++k) {
    total += diagonal_part(p, k * s.views + v, weight<A>(s, k, d), squares);
  }
  return total;
}

template <typename A>
MAST_EXT_HD A grad_mask(const VarianceCovarianceBackward& p, std::int64_t k, std::int64_t d) {
  const VarianceCovarianceShape& s = p.shape;
  const A w = weight<A>(s, k, d);
  A grad_weight = 0;
  for (std::int64_t v = 0; v < s.views; ++v) {
    const std::int64_t kv = k * s.views + v;
    const A squares = sum_squares<A>(s, v, d);
    const A grad = grad_variance<A>(p, kv) / static_cast<A>(s.dim);
    grad_weight +=
        grad * hinge_slope(deviation(s, w, squares)) * (squares / static_cast<A>(s.rows - 1));
    A slope = static_cast<const A*>(p.slopes)[kv * s.dim + d];
    if (s.gram) slope -= w * squares * squares;
    grad_weight += covariance_coefficient<A>(p, kv) / 2 * slope;
  }
  return 2 * static_cast<const A*>(s.masks)[k * s.dim + d] * grad_weight;
}

}  // namespace mast_ext::kernels::variance_covariance_math
