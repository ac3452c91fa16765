// Reductions over the batch: a thread block has 32 neighboring columns. A thread has a packet of
// them and every so many rows. The threads' partial results are merged in a fixed order, so that
// equal inputs give equal bits.
#include "kernels/columns/column_packets.cuh"
#include "kernels/columns/columns.h"
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/packet_grid.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarpSize;
constexpr int kColumns = 32;  // of a thread block
constexpr int kBatch = 4;     // rows that a thread loads at once

// The place of a thread whose packets have N columns.
template <int N>
struct Place {
  static constexpr int kLanes = kColumns / N;  // threads that share a row
  static constexpr int kRowLanes = kThreads / kLanes;

  int column = static_cast<int>(threadIdx.x) % kLanes * N;  // of the block's
  int row = static_cast<int>(threadIdx.x) / kLanes;
};

// The rows of a batch that exist.
__device__ __forceinline__ int batch_rows(std::int64_t first, std::int64_t rows, int step) {
  const std::int64_t left = (rows - first + step - 1) / step;
  return left < kBatch ? static_cast<int>(left) : kBatch;
}

struct Moments {
  float count, mean, squares;
};

// The moments of N columns over the same rows, merged by Chan's rule.
template <int N>
struct RunningMoments {
  float count = 0, mean[N] = {}, squares[N] = {};

  // Merges the first `rows` rows of a batch, whose own moments are exact but for rounding: they
  // are those of the differences to the mean so far, which is a number of about the same size.
  template <typename T>
  __device__ __forceinline__ void add(const RawPacket<T, N> (&batch)[kBatch], int rows) {
    const float added = static_cast<float>(rows), inverse = 1 / added;
    const float weight = added / (count + added);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (count == 0) mean[i] = batch[0][i];
      float sum = 0, squared = 0;
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if (r < rows) sum += batch[r][i] - mean[i];
      }
      const float delta = sum * inverse;
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const float rest = batch[r][i] - mean[i] - delta;
        if (r < rows) squared += rest * rest;
      }
      mean[i] += delta * weight;
      squares[i] += squared + delta * (delta * (count * weight));
    }
    count += added;
  }

  // Merges with the lane whose number differs in the bit `offset`.
  __device__ __forceinline__ void merge_lane(int offset) {
    const float other_count = __shfl_xor_sync(0xffffffffu, count, offset);
    const float total = count + other_count, weight = total > 0 ? other_count / total : 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float delta = __shfl_xor_sync(0xffffffffu, mean[i], offset) - mean[i];
      mean[i] += delta * weight;
      squares[i] += __shfl_xor_sync(0xffffffffu, squares[i], offset);
      squares[i] += delta * (delta * (count * weight));  // a lane without rows adds 0
    }
    count = total;
  }
};

// The sums over all rows of the block's columns, of those over every thread's own rows. Thread i
// returns that of column i / kWarps.
template <int N>
__device__ __forceinline__ float column_sum(const Place<N>& place, float (&sum)[N]) {
  __shared__ float partial[kWarps][kColumns + 1];  // one more: other banks for every warp
#pragma unroll
  for (int offset = Place<N>::kLanes; offset < kWarpSize; offset *= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
  }
  if (threadIdx.x % kWarpSize < Place<N>::kLanes) {
#pragma unroll
    for (int i = 0; i < N; ++i) partial[threadIdx.x / kWarpSize][place.column + i] = sum[i];
  }
  __syncthreads();
  return group_sum<kWarps>(partial[threadIdx.x % kWarps][threadIdx.x / kWarps]);
}

// The squared differences of the first views of x and of y, of the columns from `first` on.
template <typename T, int N>
__device__ __forceinline__ void sum_differences(const ColumnMoments& p, const Place<N>& place,
                                                std::int64_t first) {
  constexpr int kRows = 2;  // loaded at once, of both
  constexpr int kRowLanes = Place<N>::kRowLanes;
  const Columns& z = p.z;
  const std::int64_t d = first + place.column;
  float sum[N] = {};
  if (d < z.dim) {
#pragma unroll 1
    for (std::int64_t n = place.row; n < z.rows; n += kRows * kRowLanes) {
      RawPacket<T, N> left[kRows], right[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::int64_t row = n + r * kRowLanes;
        if (row >= z.rows) break;
        left[r].load(row_of<T>(z, 0, row) + d);
        right[r].load(row_of<T>(z, z.x_views, row) + d);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (n + r * kRowLanes >= z.rows) break;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float difference = left[r][i] - right[r][i];
          sum[i] += difference * difference;
        }
      }
    }
  }
  const float total = column_sum(place, sum);
  const std::int64_t column = first + threadIdx.x / kWarps;
  if (threadIdx.x % kWarps == 0 && column < z.dim) {
    static_cast<float*>(p.differences)[column] = total;
  }
}

template <typename T, typename P, int N>
__global__ void __launch_bounds__(kThreads, 2) moments(ColumnMoments p, unsigned per_view) {
  constexpr int kLanes = Place<N>::kLanes, kRowLanes = Place<N>::kRowLanes;
  __shared__ Moments partial[kWarps][kColumns + 1];  // one more: other banks for every warp
  __shared__ float means[kColumns], scales[kColumns];
  const Columns& z = p.z;
  const Place<N> place;
  const std::int64_t v = blockIdx.x / per_view;
  const std::int64_t first = std::int64_t{blockIdx.x % per_view} * kColumns;
  const std::int64_t d = first + place.column;
  const bool inside = d < z.dim;
  if (v == z.views) return sum_differences<T>(p, place, first);  // the whole block

  // Calls body(n, batch, rows) for every batch of the thread: `rows` rows from n on.
  const T* const from = row_of<T>(z, v, 0) + d;
  const std::int64_t stride = (v < z.x_views ? z.x : z.y).row_stride;
  const auto each_batch = [&](const auto& body) {
#pragma unroll 1
    for (std::int64_t n = place.row; n < z.rows; n += kBatch * kRowLanes) {
      const int rows = batch_rows(n, z.rows, kRowLanes);
      RawPacket<T, N> batch[kBatch];
      const T* row = from + n * stride;
#pragma unroll
      for (int r = 0; r < kBatch; ++r, row += kRowLanes * stride) {
        if (r < rows) batch[r].load(row);
      }
      body(n, batch, rows);
    }
  };

  RunningMoments<N> own;
  if (inside) each_batch([&](std::int64_t, const auto& batch, int rows) { own.add(batch, rows); });
#pragma unroll
  for (int offset = kLanes; offset < kWarpSize; offset *= 2) own.merge_lane(offset);
  if (threadIdx.x % kWarpSize < kLanes) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      partial[threadIdx.x / kWarpSize][place.column + i] = {own.count, own.mean[i], own.squares[i]};
    }
  }
  __syncthreads();
  {
    static_assert(kThreads == kColumns * kWarps && kWarps <= kWarpSize);
    const int warp = static_cast<int>(threadIdx.x) % kWarps;
    const int column = static_cast<int>(threadIdx.x) / kWarps;
    const Moments& from = partial[warp][column];
    RunningMoments<1> all{from.count, {from.mean}, {from.squares}};
#pragma unroll
    for (int offset = 1; offset < kWarps; offset *= 2) all.merge_lane(offset);
    if (warp == 0 && first + column < z.dim) {
      const std::int64_t at = v * z.dim + first + column;
      static_cast<float*>(p.mean)[at] = all.mean[0];
      static_cast<float*>(p.sum_squares)[at] = all.squares[0];
      float scale = 1;
      if (p.scale != nullptr) {
        const float variance = all.squares[0] / static_cast<float>(p.divisor);
        scale = 1 / sqrtf(variance + static_cast<float>(p.eps));
        static_cast<float*>(p.scale)[at] = scale;
      }
      means[column] = all.mean[0];
      scales[column] = scale;
    }
  }
  if (p.tile == nullptr) return;  // the same for the whole block
  __syncthreads();
  if (!inside) return;
  float mean[N], scale[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    mean[i] = means[place.column + i];
    scale[i] = scales[place.column + i];
  }
  P* const tile = static_cast<P*>(p.tile) + v * z.rows * z.dim + d;
  each_batch([&](std::int64_t n, const auto& batch, int rows) {
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      if (r >= rows) break;
      float x[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        x[i] = (batch[r][i] - mean[i]) * scale[i];
      }
      write<N>(x, tile + (n + r * kRowLanes) * z.dim);
    }
  });
}

template <typename T, typename P, int N>
__global__ void __launch_bounds__(kPacketThreads) tile(ColumnTile p, PacketGrid grid) {
  const PacketRows own(grid, p.rows, N);
  if (own.d >= p.dims) return;
  const std::int64_t at = p.first_dim + own.d, per_subspace = p.z.views * p.rows * p.dims;
  const auto* means = static_cast<const float*>(p.mean) + own.view * p.z.dim + at;
  P* const tile = static_cast<P*>(p.tile) + own.view * p.rows * p.dims + own.d;
  float mean[N];
#pragma unroll
  for (int i = 0; i < N; ++i) mean[i] = means[i];
  for (std::int64_t n = own.first; n < own.last; n += kBatch * own.step) {
    RawPacket<T, N> batch[kBatch];
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const std::int64_t row = n + r * own.step;
      if (row < own.last) {
        batch[r].load(row_of<T>(p.z, own.view, p.first_row + row) + at);
      }
    }
#pragma unroll 1
    for (std::int64_t k = 0; k < p.subspaces; ++k) {
      float scale[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        scale[i] = p.scale == nullptr
                       ? 1
                       : static_cast<const float*>(
                             p.scale)[own.view * p.view_stride + k * p.subspace_stride + at + i];
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const std::int64_t row = n + r * own.step;
        if (row >= own.last) break;
        float x[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
          x[i] = (batch[r][i] - mean[i]) * scale[i];
        }
        write<N>(x, tile + k * per_subspace + row * p.dims);
      }
    }
  }
}

template <typename P, int N>
__global__ void __launch_bounds__(kThreads, 2) dots(ColumnDots p, unsigned per_view) {
  constexpr int kRowLanes = Place<N>::kRowLanes;
  const Place<N> place;
  const std::int64_t kv = blockIdx.x / per_view;
  const std::int64_t first = std::int64_t{blockIdx.x % per_view} * kColumns;
  const std::int64_t d = first + place.column;
  float sum[N] = {};
  if (d < p.dims) {
    const P* x = static_cast<const P*>(p.x) + kv % p.views * p.rows * p.dims + d;
    const P* y = static_cast<const P*>(p.y) + kv * p.rows * p.dims + d;
    for (std::int64_t n = place.row; n < p.rows; n += kBatch * kRowLanes) {
      const int rows = batch_rows(n, p.rows, kRowLanes);
      RawPacket<P, N> left[kBatch], right[kBatch];
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if (r >= rows) break;
        const std::int64_t row = (n + r * kRowLanes) * p.dims;
        left[r].load(x + row);
        right[r].load(y + row);
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if (r >= rows) break;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sum[i] += left[r][i] * right[r][i];
        }
      }
    }
  }
  const float total = column_sum(place, sum);
  const int column = static_cast<int>(threadIdx.x) / kWarps;
  if (threadIdx.x % kWarps != 0 || first + column >= p.dims) return;
  float& dot = static_cast<float*>(p.dots)[kv * p.stride + first + column];
  dot = p.add ? dot + total : total;
}

}  // namespace

int column_moments_cuda(const ColumnMoments& p, cudaStream_t stream) {
  const unsigned per_view = blocks(p.z.dim, kColumns);
  const unsigned grid = blocks(p.passes() * per_view, 1);
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(T);
    const bool packets = in_packets(p.z, sizeof(T), N) && aligned(p.tile, sizeof(P) * N);
    return packets ? launch(moments<T, P, N>, grid, kThreads, stream, p, per_view)
                   : launch(moments<T, P, 1>, grid, kThreads, stream, p, per_view);
  });
}

int column_tile_cuda(const ColumnTile& p, cudaStream_t stream) {
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(T);
    const bool packets = in_packets(p.z, sizeof(T), N) && aligned(p.tile, sizeof(P) * N) &&
                         p.dims % N == 0 && p.first_dim % N == 0;
    const PacketGrid grid = packet_grid(p.z.views, p.rows, packets ? p.dims / N : p.dims);
    return packets ? launch(tile<T, P, N>, grid.grid, grid.block, stream, p, grid)
                   : launch(tile<T, P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

int column_dots_cuda(const ColumnDots& p, cudaStream_t stream) {
  const unsigned per_view = blocks(p.dims, kColumns);
  const unsigned grid = blocks(p.subspaces * p.views * per_view, 1);
  return visit_product_dtype(p.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = p.dims % N == 0 && aligned(p.x, 16) && aligned(p.y, 16);
    return packets ? launch(dots<P, N>, grid, kThreads, stream, p, per_view)
                   : launch(dots<P, 1>, grid, kThreads, stream, p, per_view);
  });
}

}  // namespace mast_ext::kernels
