// What the CUDA kernels of variance_covariance do, for those of vicreg_terms, too.
#pragma once

#include "kernels/common/packet_grid.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/variance_covariance/variance_covariance.h"
#include "kernels/variance_covariance/variance_covariance_math.h"

namespace mast_ext::kernels::variance_covariance_cuda {

namespace math = variance_covariance_math;

constexpr int kFinishThreads = 1024;
constexpr int kBatch = 4;  // rows that a thread of the backward loads at once

struct ViewSums {
  double hinges, pairs;
};

// The sums over dimensions, and rows, of both results (k, v), by a block of kFinishThreads. Without
// row sums, those of the pairs are without the product's elements.
__device__ __forceinline__ ViewSums view_sums(const VarianceCovariance& p, std::int64_t k,
                                              std::int64_t v) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t kv = k * s.views + v;
  const bool has_sums = p.row_sums != nullptr;
  const float* sums = static_cast<const float*>(p.row_sums) + kv * (s.gram ? s.rows : s.dim);
  double hinges = 0, pairs = 0;
  constexpr int kLoads = 4;  // at once, before the divisions
  for (std::int64_t first = threadIdx.x; first < s.dim; first += kLoads * kFinishThreads) {
    float w[kLoads], squares[kLoads], row_sums[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const std::int64_t d = first + i * kFinishThreads;
      if (d >= s.dim) break;
      w[i] = math::weight<float>(s, k, d);
      squares[i] = math::sum_squares<float>(s, v, d);
      row_sums[i] = s.gram || !has_sums ? 0 : sums[d];
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (first + i * kFinishThreads >= s.dim) break;
      hinges += math::hinge(math::deviation(s, w[i], squares[i]));
      const double weighted = w[i] * squares[i];
      pairs += s.gram ? -weighted * weighted : static_cast<double>(w[i]) * row_sums[i];
    }
  }
  if (s.gram && has_sums) {
    for (std::int64_t n = threadIdx.x; n < s.rows; n += kFinishThreads) pairs += sums[n];
  }
  double both[] = {hinges, pairs};
  block_sums<kFinishThreads>(both);
  return {both[0], both[1]};
}

// Rows of the matrix of the direct form, by the thread blocks of `grid`.
template <typename P, int N>
__device__ __forceinline__ void write_matrix(const VarianceCovarianceBackward& p,
                                             const PacketGrid& grid) {
  const VarianceCovarianceShape& s = p.shape;
  const PacketRows own(grid, s.dim, N);
  if (own.d >= s.dim) return;
  const std::int64_t corner = own.view * s.dim * s.dim + own.d;
  const P* const product = static_cast<const P*>(s.product) + corner;
  P* const to = static_cast<P*>(p.matrix) + corner;
  for (std::int64_t first = own.first; first < own.last; first += kBatch * own.step) {
    RawPacket<P, N> batch[kBatch];
    own.load(batch, product, s.dim, first);
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const std::int64_t d = first + r * own.step;
      if (d >= own.last) break;
      float value[N] = {};
#pragma unroll 1
      for (std::int64_t k = 0; k < s.subspaces; ++k) {
        const float factor = math::covariance_coefficient<float>(p, k * s.views + own.view) *
                             math::weight<float>(s, k, d);
#pragma unroll
        for (int i = 0; i < N; ++i) value[i] += factor * math::weight<float>(s, k, own.d + i);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) value[i] *= batch[r][i];
      write<N>(value, to + d * s.dim);
    }
  }
  // The elements of the diagonal, which this thread has written, too.
#pragma unroll 1
  for (int i = 0; i < N; ++i) {
    const std::int64_t d = own.d + i;
    if (d < own.first || d >= own.last || (d - own.first) % own.step != 0) continue;
    to[d * s.dim + i] = static_cast<P>(math::diagonal<float>(p, own.view, d));
  }
}

// Rows of the gradient in the Gram form. What add_of(v, d) returns is called as add(n, sum) for
// every packet of view v from column d on, before it is written.
template <typename T, typename P, int N, typename AddOf>
__device__ __forceinline__ void combine_rows(const VarianceCovarianceBackward& p,
                                             const PacketGrid& grid, const AddOf& add_of) {
  const VarianceCovarianceShape& s = p.shape;
  const PacketRows own(grid, s.rows, N);
  if (own.d >= p.dims) return;
  const std::int64_t at = p.first_dim + own.d, per_subspace = s.views * s.rows * p.dims;
  const std::int64_t corner = own.view * s.rows * p.dims + own.d;
  const P* const centered = static_cast<const P*>(p.centered) + corner;
  T* const grad_z = static_cast<T*>(p.grad_z) + own.view * s.rows * s.dim + at;
  const auto add = add_of(own.view, at);
  // All loads come before the divisions, which the compiler does not move loads across.
  float squares[N], diagonal[N] = {};
#pragma unroll
  for (int i = 0; i < N; ++i) squares[i] = math::sum_squares<float>(s, own.view, at + i);
#pragma unroll 1
  for (std::int64_t k = 0; k < s.subspaces; ++k) {
    float w[N];
#pragma unroll
    for (int i = 0; i < N; ++i) w[i] = math::weight<float>(s, k, at + i);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      diagonal[i] += math::diagonal_part(p, k * s.views + own.view, w[i], squares[i]);
    }
  }
  for (std::int64_t first = own.first; first < own.last; first += kBatch * own.step) {
    RawPacket<P, N> batch[kBatch];
    float sum[kBatch][N];
    own.load(batch, centered, p.dims, first);
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum[r][i] = batch[r][i] * diagonal[i];
    }
#pragma unroll 1
    for (std::int64_t k = 0; k < s.subspaces; ++k) {
      own.load(batch, static_cast<const P*>(p.product_grad) + k * per_subspace + corner, p.dims,
               first);
      const float coefficient = math::covariance_coefficient<float>(p, k * s.views + own.view);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float factor = coefficient * math::weight<float>(s, k, at + i);
#pragma unroll
        for (int r = 0; r < kBatch; ++r) sum[r][i] += batch[r][i] * factor;
      }
    }
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const std::int64_t n = first + r * own.step;
      if (n >= own.last) break;
      add(n, sum[r]);
      write<N>(sum[r], grad_z + n * s.dim);
    }
  }
}

template <typename T, typename P>
bool combines_in_packets(const VarianceCovarianceBackward& p) {
  constexpr int N = 16 / sizeof(P);
  return p.shape.dim % N == 0 && p.dims % N == 0 && p.first_dim % N == 0 &&
         aligned(p.centered, 16) && aligned(p.product_grad, 16) && aligned(p.grad_z, sizeof(T) * N);
}

inline PacketGrid combine_grid(const VarianceCovarianceBackward& p, std::int64_t packet) {
  return packet_grid(p.shape.views, p.shape.rows, p.dims / packet);
}

}  // namespace mast_ext::kernels::variance_covariance_cuda
