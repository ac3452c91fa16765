// Forward: a thread block per row of the product, then a single one for the scalar; of a small
// batch a single one for all. Backward: a thread per packet of columns walks a few rows, those of
// both views together. There are no atomic additions: every result has a fixed order of summation.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/packet_grid.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/cross_correlation_penalty/cross_correlation_penalty.h"
#include "kernels/cross_correlation_penalty/cross_correlation_penalty_math.h"

namespace mast_ext::kernels {
namespace {

namespace math = cross_correlation_math;

constexpr int kThreads = 128;
constexpr int kFinishThreads = 1024;
constexpr int kBatch = 2;  // rows that a thread of the backward loads at once

template <typename P>
__global__ void __launch_bounds__(kThreads) rows(CrossCorrelationPenalty p) {
  const CrossCorrelationShape& s = p.shape;
  const std::int64_t i = blockIdx.x, count = s.gram ? s.rows : s.dim;
  P* x = static_cast<P*>(p.product) + i * count;
  const P* y = s.gram ? x + s.rows * s.rows : x;
  if (!s.gram) {
    if (threadIdx.x == 0) x[i] = static_cast<P>(0.0f);  // the diagonal
    __syncthreads();
  }
  float sum = 0;
#pragma unroll 4
  for (std::int64_t j = threadIdx.x; j < count; j += kThreads) {
    sum += static_cast<float>(x[j]) * static_cast<float>(y[j]);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) static_cast<float*>(p.row_sums)[i] = sum;
}

__global__ void __launch_bounds__(kFinishThreads) finish(CrossCorrelationPenalty p) {
  const CrossCorrelationShape& s = p.shape;
  const double squared_rows = static_cast<double>(s.rows) * static_cast<double>(s.rows);
  const auto* sums = static_cast<const float*>(p.row_sums);
  double diagonal = 0, pairs = 0;
  for (std::int64_t d = threadIdx.x; d < s.dim; d += kFinishThreads) {
    const double c = math::correlation(s, static_cast<const float*>(s.dots)[d]);
    diagonal += (c - 1) * (c - 1);
    pairs += s.gram ? -c * c : sums[d] / squared_rows;
  }
  if (s.gram) {
    for (std::int64_t n = threadIdx.x; n < s.rows; n += kFinishThreads) {
      pairs += sums[n] / squared_rows;
    }
  }
  diagonal = block_sum<kFinishThreads>(diagonal);
  pairs = block_sum<kFinishThreads>(pairs);
  if (threadIdx.x == 0) {
    *static_cast<float*>(p.penalty) = static_cast<float>(diagonal + s.lambda * pairs);
  }
}

// The product stands in shared memory, with rows of kSmallStride, so that reading it by rows and by
// columns meets no bank twice. A thread has a column and every kLanes-th row, for the sums over its
// row of the product every kLanes-th column.
constexpr int kSmallSide = static_cast<int>(kSmallDim), kSmallStride = kSmallSide + 1;
constexpr int kSmallBytes = kSmallSide * kSmallStride * static_cast<int>(sizeof(float));

template <typename P>
__global__ void __launch_bounds__(kFinishThreads)
    finish_small(DynamicShared<kSmallBytes>, CrossCorrelationSmall p) {
  constexpr int kLanes = kFinishThreads / kSmallSide;
  static_assert(kFinishThreads % kSmallSide == 0 && kSmallSide % 32 == 0);
  __shared__ float partial[3][kLanes][kSmallSide], dots[kSmallSide];
  const CrossCorrelationShape& s = p.shape;
  auto* const product = reinterpret_cast<float*>(dynamic_shared_memory());
  const auto thread = static_cast<int>(threadIdx.x), dim = static_cast<int>(s.dim);
  const int column = thread % kSmallSide, lane = thread / kSmallSide;
  const auto* const a = static_cast<const P*>(p.tile);
  const P* const b = a + s.rows * dim;
#pragma unroll 4
  for (int at = thread; at < dim * dim; at += kFinishThreads) {
    const int d = at / dim, e = at % dim;
    product[d * kSmallStride + e] =
        d == e ? 0.0f : static_cast<float>(static_cast<const P*>(s.product)[at]);
  }
  __syncthreads();
  if (column < dim) {
    float dot = 0, of_row = 0, of_column = 0;
#pragma unroll 8
    for (int at = lane * dim + column; at < s.rows * dim; at += kLanes * dim) {
      dot += static_cast<float>(a[at]) * static_cast<float>(b[at]);
    }
#pragma unroll 4
    for (int other = lane; other < dim; other += kLanes) {
      const float right = product[column * kSmallStride + other];
      const float below = product[other * kSmallStride + column];
      of_row += right * right;
      of_column += below * below;
    }
    partial[0][lane][column] = dot;
    partial[1][lane][column] = of_row;
    partial[2][lane][column] = of_column;
  }
  __syncthreads();
  double diagonal = 0, pairs = 0;
  if (thread < dim) {
    float sums[3] = {};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int from = 0; from < kLanes; ++from) sums[i] += partial[i][from][thread];
    }
    dots[thread] = static_cast<float*>(p.dots)[thread] = sums[0];
    static_cast<float*>(p.row_sums)[thread] = sums[1];
    static_cast<float*>(p.column_sums)[thread] = sums[2];
    const double c = math::correlation<double>(s, sums[0]);
    diagonal = (c - 1) * (c - 1);
    pairs = sums[1] / (static_cast<double>(s.rows) * static_cast<double>(s.rows));
  }
  diagonal = block_sum<kFinishThreads>(diagonal);
  pairs = block_sum<kFinishThreads>(pairs);
  if (thread == 0) {
    *static_cast<float*>(p.penalty) = static_cast<float>(diagonal + s.lambda * pairs);
  }
  auto* const matrix = static_cast<P*>(p.matrices);
  P* const transposed = matrix + dim * dim;
  const float factor = math::matrix_factor(s, 1.0f);
#pragma unroll 4
  for (int at = thread; at < dim * dim; at += kFinishThreads) {
    const int d = at / dim, e = at % dim;
    const float own = math::matrix_diagonal(s, 1.0f, dots[d]);  // where d = e
    matrix[at] = static_cast<P>(d == e ? own : factor * product[d * kSmallStride + e]);
    transposed[at] = static_cast<P>(d == e ? own : factor * product[e * kSmallStride + d]);
  }
}

template <typename P, int N>
__global__ void __launch_bounds__(kPacketThreads)
    matrix(CrossCorrelationPenaltyBackward p, PacketGrid grid) {
  const CrossCorrelationShape& s = p.shape;
  const PacketRows own(grid, s.dim, N);
  if (own.d >= s.dim) return;
  const float grad = *static_cast<const float*>(p.grad_penalty);
  const float factor = math::matrix_factor(s, grad);
  const P* const product = static_cast<const P*>(s.product) + own.d;
  for (std::int64_t first = own.first; first < own.last; first += kBatch * own.step) {
    RawPacket<P, N> batch[kBatch];
    own.load(batch, product, s.dim, first);
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const std::int64_t d = first + r * own.step;
      if (d >= own.last) break;
      float value[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        value[i] = batch[r][i] * factor;
        if (own.d + i == d) {
          value[i] = math::matrix_diagonal(s, grad, static_cast<const float*>(s.dots)[d]);
        }
      }
      write<N>(value, static_cast<P*>(p.matrix) + d * s.dim + own.d);
    }
  }
}

template <typename T, typename P, int N>
__global__ void __launch_bounds__(kPacketThreads, 4)
    combine(CrossCorrelationPenaltyBackward p, PacketGrid grid) {
  const CrossCorrelationShape& s = p.shape;
  const PacketRows own(grid, p.tile_rows, N);
  if (own.d >= p.dims) return;
  const std::int64_t at = p.first_dim + own.d, per_view = p.tile_rows * p.dims;
  const float grad = *static_cast<const float*>(p.grad_penalty);
  const P* const tile = static_cast<const P*>(p.tile) + own.d;
  const P* const product_grad = static_cast<const P*>(p.product_grad) + own.d;
  T* const grads[2] = {static_cast<T*>(p.grad_a), static_cast<T*>(p.grad_b)};
  // All loads come before the divisions, which the compiler does not move loads across.
  float scale[2][N], dot[N], projected[2][N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    dot[i] = static_cast<const float*>(s.dots)[at + i];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      scale[v][i] = static_cast<const float*>(p.scale)[v * s.dim + at + i];
      projected[v][i] = grads[v] == nullptr ? 0 : math::projections_of<float>(p, v)[at + i];
    }
  }
  const float product_grad_scale = math::product_grad_scale(p, grad);
  float other_factor[N], own_factor[2][N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    other_factor[i] = math::other_factor(p, grad, dot[i]);
#pragma unroll
    for (int v = 0; v < 2; ++v)
      own_factor[v][i] = math::projection(p, grad, dot[i], projected[v][i]);
  }
  for (std::int64_t first = own.first; first < own.last; first += kBatch * own.step) {
    RawPacket<P, N> views[2][kBatch], product_grads[2][kBatch];
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const std::int64_t n = first + r * own.step;
      if (n >= own.last) break;
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        views[v][r].load(tile + v * per_view + n * p.dims);
        const int at = p.small ? 1 - v : v;
        if (grads[v] != nullptr)
          product_grads[v][r].load(product_grad + at * per_view + n * p.dims);
      }
    }
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const std::int64_t n = first + r * own.step;
      if (n >= own.last) break;
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        if (grads[v] == nullptr) continue;
        float value[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
          value[i] = scale[v][i] *
                     (product_grads[v][r][i] * product_grad_scale +
                      views[1 - v][r][i] * other_factor[i] - views[v][r][i] * own_factor[v][i]);
        }
        write<N>(value, grads[v] + (p.first_row + n) * s.dim + at);
      }
    }
  }
}

}  // namespace

int cross_correlation_penalty_cuda(const CrossCorrelationPenalty& p, cudaStream_t stream) {
  const unsigned product_rows = blocks(p.shape.gram ? p.shape.rows : p.shape.dim, 1);
  const cudaError_t error = visit_product_dtype(p.shape.dtype, [&]<typename T, typename P>() {
    return launch(rows<P>, product_rows, kThreads, stream, p);
  });
  if (error != cudaSuccess) return error;
  return launch(finish, 1, kFinishThreads, stream, p);
}

int cross_correlation_small_cuda(const CrossCorrelationSmall& p, cudaStream_t stream) {
  if (p.shape.gram || !is_small(p.shape.rows, p.shape.dim)) return cudaErrorInvalidValue;
  return visit_product_dtype(p.shape.dtype, [&]<typename T, typename P>() {
    return launch_shared(finish_small<P>, 1, kFinishThreads, kSmallBytes, stream, p);
  });
}

int cross_correlation_matrix_cuda(const CrossCorrelationPenaltyBackward& p, cudaStream_t stream) {
  const CrossCorrelationShape& s = p.shape;
  return visit_product_dtype(s.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = s.dim % N == 0 && aligned(s.product, 16) && aligned(p.matrix, 16);
    const PacketGrid grid = packet_grid(1, s.dim, packets ? s.dim / N : s.dim);
    return packets ? launch(matrix<P, N>, grid.grid, grid.block, stream, p, grid)
                   : launch(matrix<P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

int cross_correlation_combine_cuda(const CrossCorrelationPenaltyBackward& p, cudaStream_t stream) {
  const CrossCorrelationShape& s = p.shape;
  return visit_product_dtype(p.grad_dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = s.dim % N == 0 && p.dims % N == 0 && p.first_dim % N == 0 &&
                         aligned(p.tile, 16) && aligned(p.product_grad, 16) &&
                         aligned(p.grad_a, sizeof(T) * N) && aligned(p.grad_b, sizeof(T) * N);
    const PacketGrid grid = packet_grid(1, p.tile_rows, packets ? p.dims / N : p.dims);
    return packets ? launch(combine<T, P, N>, grid.grid, grid.block, stream, p, grid)
                   : launch(combine<T, P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

}  // namespace mast_ext::kernels
