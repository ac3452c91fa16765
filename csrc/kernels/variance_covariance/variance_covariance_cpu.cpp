#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/variance_covariance/variance_covariance.h"
#include "kernels/variance_covariance/variance_covariance_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

namespace math = variance_covariance_math;

// sums[j * stride] = sum_{e != skip} weights[j, e] row[e]^2, for K rows of weights.
template <typename A, int K>
void weighted_square_sums(const A* row, std::int64_t count, std::int64_t skip, const A* weights,
                          std::int64_t weights_stride, A* sums, std::int64_t stride) {
  vec<A> sum[K] = {};
  for (std::int64_t e = 0; e < count; e += kLanes<A>) {
    vec<A> x = load_some(row + e, count - e);
    x *= x;
    if (skip - e >= 0 && skip - e < kLanes<A>) x[skip - e] = 0;
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) sum[j] += x * load(weights + j * weights_stride + e);
  }
  for (int j = 0; j < K; ++j) sums[j * stride] = sum_lanes<A>(sum[j]);
}

// The squared masks [K, padded D]; 0 behind D.
template <typename A>
const A* padded_weights(const VarianceCovarianceShape& p) {
  const std::int64_t stride = padded(p.dim);
  A* weights = scratch<A, struct Weights>(p.subspaces * stride);
  for (std::int64_t k = 0; k < p.subspaces; ++k) {
    for (std::int64_t d = 0; d < p.dim; ++d) weights[k * stride + d] = math::weight<A>(p, k, d);
    std::fill(weights + k * stride + p.dim, weights + (k + 1) * stride, A{0});
  }
  return weights;
}

}  // namespace

void variance_covariance_rows_cpu(const VarianceCovariance& p, std::int64_t begin,
                                  std::int64_t end) {
  const VarianceCovarianceShape& s = p.shape;
  visit_accumulation(s.dtype, [&]<typename A>() {
    const auto* product = static_cast<const A*>(s.product);
    auto* sums = static_cast<A*>(p.row_sums);
    if (s.gram) {
      for (std::int64_t i = begin; i < end; ++i) {
        const A* row = product + i * s.rows;
        sums[i] = dot(row, row, s.rows);
      }
      return;
    }
    const A* weights = padded_weights<A>(s);
    const std::int64_t stride = padded(s.dim), per_subspace = s.views * s.dim;
    for (std::int64_t i = begin; i < end; ++i) {
      const A* row = product + i * s.dim;
      const std::int64_t d = i % s.dim;
      std::int64_t k = 0;
      for (; k + 4 <= s.subspaces; k += 4) {
        weighted_square_sums<A, 4>(row, s.dim, d, weights + k * stride, stride,
                                   sums + k * per_subspace + i, per_subspace);
      }
      for (; k < s.subspaces; ++k) {
        weighted_square_sums<A, 1>(row, s.dim, d, weights + k * stride, stride,
                                   sums + k * per_subspace + i, per_subspace);
      }
    }
  });
}

void variance_covariance_finish_cpu(const VarianceCovariance& p, std::int64_t begin,
                                    std::int64_t end) {
  const VarianceCovarianceShape& s = p.shape;
  visit_accumulation(s.dtype, [&]<typename A>() {
    for (std::int64_t kv = begin; kv < end; ++kv) {
      const std::int64_t k = kv / s.views, v = kv % s.views;
      const A* sums = static_cast<const A*>(p.row_sums) + kv * (s.gram ? s.rows : s.dim);
      double hinges = 0, pairs = 0;
      for (std::int64_t d = 0; d < s.dim; ++d) {
        const A w = math::weight<A>(s, k, d), squares = math::sum_squares<A>(s, v, d);
        hinges += math::hinge(math::deviation(s, w, squares));
        pairs += s.gram ? -static_cast<double>(w * squares) * (w * squares)
                        : static_cast<double>(w) * sums[d];
      }
      for (std::int64_t n = 0; s.gram && n < s.rows; ++n) pairs += sums[n];
      static_cast<A*>(p.variance)[kv] = static_cast<A>(hinges / static_cast<double>(s.dim));
      static_cast<A*>(p.covariance)[kv] = static_cast<A>(pairs * math::covariance_scale<double>(s));
    }
  });
}

void variance_covariance_matrix_cpu(const VarianceCovarianceBackward& p, std::int64_t begin,
                                    std::int64_t end) {
  const VarianceCovarianceShape& s = p.shape;
  visit_accumulation(s.dtype, [&]<typename A>() {
    constexpr int kLane = kLanes<A>;
    const A* weights = padded_weights<A>(s);
    const std::int64_t stride = padded(s.dim);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t v = i / s.dim, d = i % s.dim;
      const A* from = static_cast<const A*>(s.product) + i * s.dim;
      A* to = static_cast<A*>(p.matrix) + i * s.dim;
      A* factors = scratch<A, struct Factors>(s.subspaces);
      for (std::int64_t k = 0; k < s.subspaces; ++k) {
        factors[k] = math::covariance_coefficient<A>(p, k * s.views + v) * weights[k * stride + d];
      }
      for (std::int64_t e = 0; e < s.dim; e += kLane) {
        vec<A> factor{};
        for (std::int64_t k = 0; k < s.subspaces; ++k) {
          factor += load(weights + k * stride + e) * factors[k];
        }
        store_some(to + e, load_some(from + e, s.dim - e) * factor, s.dim - e);
      }
      to[d] = math::diagonal<A>(p, v, d);
    }
  });
}

void variance_covariance_combine_cpu(const VarianceCovarianceBackward& p, std::int64_t begin,
                                     std::int64_t end) {
  const VarianceCovarianceShape& s = p.shape;
  visit_dtype(p.grad_dtype, [&]<typename T>() {
    using A = accum_t<T>;
    constexpr int kLane = kLanes<A>;
    const std::int64_t stride = padded(p.dims), per_subspace = s.views * s.rows * p.dims;
    A* diagonal = scratch<A, struct Diagonal>(stride);
    A* factors = scratch<A, struct Factors>(s.subspaces * stride);
    std::fill(diagonal, diagonal + stride, A{0});
    std::fill(factors, factors + s.subspaces * stride, A{0});
    std::int64_t prepared = -1;  // the view of `diagonal` and `factors`
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t v = i / s.rows;
      if (v != prepared) {
        prepared = v;
        for (std::int64_t d = 0; d < p.dims; ++d) {
          diagonal[d] = math::diagonal<A>(p, v, p.first_dim + d);
          for (std::int64_t k = 0; k < s.subspaces; ++k) {
            factors[k * stride + d] = math::covariance_coefficient<A>(p, k * s.views + v) *
                                      math::weight<A>(s, k, p.first_dim + d);
          }
        }
      }
      const A* centered = static_cast<const A*>(p.centered) + i * p.dims;
      const A* product_grad = static_cast<const A*>(p.product_grad) + i * p.dims;
      T* grad = static_cast<T*>(p.grad_z) + i * s.dim + p.first_dim;
      for (std::int64_t d = 0; d < p.dims; d += kLane) {
        const std::int64_t left = p.dims - d;
        vec<A> sum = load_some(centered + d, left) * load(diagonal + d);
        for (std::int64_t k = 0; k < s.subspaces; ++k) {
          sum +=
              load_some(product_grad + k * per_subspace + d, left) * load(factors + k * stride + d);
        }
        store_some(grad + d, sum, left);
      }
    }
  });
}

void variance_covariance_masks_cpu(const VarianceCovarianceBackward& p, std::int64_t begin,
                                   std::int64_t end) {
  visit_accumulation(p.shape.dtype, [&]<typename A>() {
    for (std::int64_t i = begin; i < end; ++i) {
      static_cast<A*>(p.grad_masks)[i] = math::grad_mask<A>(p, i / p.shape.dim, i % p.shape.dim);
    }
  });
}

}  // namespace MAST_EXT_ISA

#define MAST_EXT_RANGE(Params) (const Params& p, std::int64_t begin, std::int64_t end)
MAST_EXT_CPU_ENTRY(variance_covariance_rows_cpu, MAST_EXT_RANGE(VarianceCovariance),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(variance_covariance_finish_cpu, MAST_EXT_RANGE(VarianceCovariance),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(variance_covariance_matrix_cpu, MAST_EXT_RANGE(VarianceCovarianceBackward),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(variance_covariance_combine_cpu, MAST_EXT_RANGE(VarianceCovarianceBackward),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(variance_covariance_masks_cpu, MAST_EXT_RANGE(VarianceCovarianceBackward),
                   (p, begin, end))
#undef MAST_EXT_RANGE

}  // namespace mast_ext::kernels
