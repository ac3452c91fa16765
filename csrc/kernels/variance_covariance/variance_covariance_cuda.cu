// Forward: a thread block per row of the product, then a thread block per result. Backward: a
// thread per packet of columns walks a few rows. There are no atomic additions: every result has a
// fixed order of summation.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/packet_grid.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/variance_covariance/variance_covariance.h"
#include "kernels/variance_covariance/variance_covariance_math.h"

namespace mast_ext::kernels {
namespace {

namespace math = variance_covariance_math;

constexpr int kThreads = 128;
constexpr int kFinishThreads = 1024;
constexpr int kBatch = 4;  // rows that a thread of the backward loads at once
constexpr int kMasks = 4;  // subspaces that one pass over a row computes

template <typename P>
__global__ void __launch_bounds__(kThreads) gram_rows(VarianceCovariance p) {
  const std::int64_t rows = p.shape.rows;
  const P* row = static_cast<const P*>(p.shape.product) + blockIdx.x * rows;
  float sum = 0;
#pragma unroll 4
  for (std::int64_t m = threadIdx.x; m < rows; m += kThreads) {
    const float x = static_cast<float>(row[m]);
    sum += x * x;
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) static_cast<float*>(p.row_sums)[blockIdx.x] = sum;
}

template <typename P>
__global__ void __launch_bounds__(kThreads) direct_rows(VarianceCovariance p) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t vd = blockIdx.x, d = vd % s.dim;
  const P* row = static_cast<const P*>(s.product) + vd * s.dim;
  for (std::int64_t k0 = 0; k0 < s.subspaces; k0 += kMasks) {
    float sum[kMasks] = {};
#pragma unroll 2
    for (std::int64_t e = threadIdx.x; e < s.dim; e += kThreads) {
      if (e == d) continue;
      const float x = static_cast<float>(row[e]);
#pragma unroll
      for (int j = 0; j < kMasks; ++j) {
        if (k0 + j < s.subspaces) sum[j] += x * x * math::weight<float>(s, k0 + j, e);
      }
    }
#pragma unroll
    for (int j = 0; j < kMasks; ++j) {
      if (k0 + j >= s.subspaces) break;  // the same for the whole thread block
      const float total = block_sum<kThreads>(sum[j]);
      if (threadIdx.x == 0) {
        static_cast<float*>(p.row_sums)[(k0 + j) * s.views * s.dim + vd] = total;
      }
    }
  }
}

__global__ void __launch_bounds__(kFinishThreads) finish(VarianceCovariance p) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t kv = blockIdx.x, k = kv / s.views, v = kv % s.views;
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
      row_sums[i] = s.gram ? 0 : sums[d];
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (first + i * kFinishThreads >= s.dim) break;
      hinges += math::hinge(math::deviation(s, w[i], squares[i]));
      const double weighted = w[i] * squares[i];
      pairs += s.gram ? -weighted * weighted : static_cast<double>(w[i]) * row_sums[i];
    }
  }
  if (s.gram) {
    for (std::int64_t n = threadIdx.x; n < s.rows; n += kFinishThreads) pairs += sums[n];
  }
  hinges = block_sum<kFinishThreads>(hinges);
  pairs = block_sum<kFinishThreads>(pairs);
  if (threadIdx.x != 0) return;
  static_cast<float*>(p.variance)[kv] = static_cast<float>(hinges / static_cast<double>(s.dim));
  static_cast<float*>(p.covariance)[kv] =
      static_cast<float>(pairs * math::covariance_scale<double>(s));
}

template <typename P, int N>
__global__ void __launch_bounds__(kPacketThreads)
    matrix(VarianceCovarianceBackward p, PacketGrid grid) {
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

template <typename T, typename P, int N>
__global__ void __launch_bounds__(kPacketThreads)
    combine(VarianceCovarianceBackward p, PacketGrid grid) {
  const VarianceCovarianceShape& s = p.shape;
  const PacketRows own(grid, s.rows, N);
  if (own.d >= p.dims) return;
  const std::int64_t at = p.first_dim + own.d, per_subspace = s.views * s.rows * p.dims;
  const std::int64_t corner = own.view * s.rows * p.dims + own.d;
  const P* const centered = static_cast<const P*>(p.centered) + corner;
  T* const grad_z = static_cast<T*>(p.grad_z) + own.view * s.rows * s.dim + at;
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
      if (n < own.last) write<N>(sum[r], grad_z + n * s.dim);
    }
  }
}

__global__ void __launch_bounds__(kThreads) grad_masks(VarianceCovarianceBackward p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.shape.subspaces * p.shape.dim) return;
  static_cast<float*>(p.grad_masks)[i] =
      math::grad_mask<float>(p, i / p.shape.dim, i % p.shape.dim);
}

}  // namespace

int variance_covariance_cuda(const VarianceCovariance& p, cudaStream_t stream) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t results = s.subspaces * s.views;
  const cudaError_t error = visit_product_dtype(s.dtype, [&]<typename T, typename P>() {
    return s.gram ? launch(gram_rows<P>, blocks(results * s.rows, 1), kThreads, stream, p)
                  : launch(direct_rows<P>, blocks(s.views * s.dim, 1), kThreads, stream, p);
  });
  if (error != cudaSuccess) return error;
  return launch(finish, blocks(results, 1), kFinishThreads, stream, p);
}

int variance_covariance_matrix_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  const VarianceCovarianceShape& s = p.shape;
  return visit_product_dtype(s.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = s.dim % N == 0 && aligned(s.product, 16) && aligned(p.matrix, 16);
    const PacketGrid grid = packet_grid(s.views, s.dim, packets ? s.dim / N : s.dim);
    return packets ? launch(matrix<P, N>, grid.grid, grid.block, stream, p, grid)
                   : launch(matrix<P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

int variance_covariance_combine_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  const VarianceCovarianceShape& s = p.shape;
  return visit_product_dtype(p.grad_dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = s.dim % N == 0 && p.dims % N == 0 && p.first_dim % N == 0 &&
                         aligned(p.centered, 16) && aligned(p.product_grad, 16) &&
                         aligned(p.grad_z, sizeof(T) * N);
    const PacketGrid grid = packet_grid(s.views, s.rows, packets ? p.dims / N : p.dims);
    return packets ? launch(combine<T, P, N>, grid.grid, grid.block, stream, p, grid)
                   : launch(combine<T, P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

int variance_covariance_masks_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  return launch(grad_masks, blocks(p.shape.subspaces * p.shape.dim, kThreads), kThreads, stream, p);
}

}  // namespace mast_ext::kernels
