// Products are in plain float32: a thread block multiplies 64 rows by a share of the columns, 64 at
// a time, and keeps the best of every row. There are no atomic operations: every result has a fixed
// order of computation.
#include <cmath>

#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/hard_pairs/hardest_pair.h"
#include "kernels/nearest_neighbor_distance/nearest_neighbor_distance.h"

namespace mast_ext::kernels {
namespace {

constexpr int kTile = kNearestTile, kDepth = 32;
constexpr int kSide = 16;             // threads along a side of the tile
constexpr int kEach = kTile / kSide;  // rows of a thread, and columns
constexpr int kStride = kTile + 1;    // of a tile in shared memory; odd against bank conflicts
constexpr int kRowThreads = 128;      // of the kernels that give a row a warp or a thread block

struct Nearest {
  float cosine = static_cast<float>(NAN);
  std::int64_t column = 0;

  __device__ __forceinline__ void offer(float offered, std::int64_t its_column) {
    if (!is_harder(offered, cosine)) return;
    cosine = offered;
    column = its_column;
  }

  // Merges the result of another thread, whose columns may be before or after these.
  __device__ __forceinline__ void merge(float other, std::int64_t its_column) {
    const bool first_of_equals = its_column < column && !is_harder(cosine, other);
    if (!is_harder(other, cosine) && !first_of_equals) return;
    cosine = other;
    column = its_column;
  }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads) unit_rows(UnitRows p) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * kRowThreads + threadIdx.x) / kWarpSize;
  if (i >= p.rows) return;  // the same for all lanes of a warp
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const T* x = static_cast<const T*>(p.x) + i * p.row_stride;
  float squares = 0;
  for (std::int64_t d = lane; d < p.dim; d += kWarpSize) {
    const float value = static_cast<float>(x[d]);
    squares += value * value;
  }
  const float norm = sqrtf(group_sum<kWarpSize>(squares));
  const float scale = norm < static_cast<float>(p.eps) ? static_cast<float>(1 / p.eps) : 1 / norm;
  if (lane == 0) static_cast<float*>(p.inv_norm)[i] = scale;
  float* unit = static_cast<float*>(p.unit) + i * p.dim;
  for (std::int64_t d = lane; d < p.dim; d += kWarpSize) {
    unit[d] = static_cast<float>(x[d]) * scale;
  }
}

// Copies rows [first, first + kTile) of dimensions [depth, depth + kDepth); out of range is 0.
__device__ __forceinline__ void load_tile(const NeighborDistances& p, std::int64_t first,
                                          std::int64_t depth, float (&to)[kDepth][kStride]) {
  const int thread = static_cast<int>(threadIdx.y) * kSide + static_cast<int>(threadIdx.x);
  const int d = thread % kDepth;
#pragma unroll
  for (int row = thread / kDepth; row < kTile; row += kSide * kSide / kDepth) {
    const bool inside = first + row < p.rows && depth + d < p.dim;
    to[d][row] =
        inside ? static_cast<const float*>(p.unit)[(first + row) * p.dim + depth + d] : 0.0f;
  }
}

__global__ void __launch_bounds__(kSide* kSide) search(NeighborDistances p, NearestSplits to) {
  __shared__ float rows[kDepth][kStride], columns[kDepth][kStride];
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kTile;
  const std::int64_t tiles = (p.rows + kTile - 1) / kTile;
  const std::int64_t end = tiles * (blockIdx.y + 1) / to.splits;
  Nearest nearest[kEach];
  for (std::int64_t tile = tiles * blockIdx.y / to.splits; tile < end; ++tile) {
    const std::int64_t first_column = tile * kTile;
    float products[kEach][kEach] = {};
    for (std::int64_t depth = 0; depth < p.dim; depth += kDepth) {
      load_tile(p, first_row, depth, rows);
      load_tile(p, first_column, depth, columns);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        float a[kEach], b[kEach];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          a[i] = rows[d][threadIdx.y + kSide * i];
          b[i] = columns[d][threadIdx.x + kSide * i];
        }
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) products[i][j] += a[i] * b[j];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const std::int64_t row = first_row + threadIdx.y + kSide * i;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const std::int64_t column = first_column + threadIdx.x + kSide * j;
        if (column < p.rows && column != row) nearest[i].offer(products[i][j], column);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int offset = kSide / 2; offset > 0; offset /= 2) {
      const float cosine = __shfl_xor_sync(0xffffffffu, nearest[i].cosine, offset);
      const std::int64_t column = __shfl_xor_sync(0xffffffffu, nearest[i].column, offset);
      nearest[i].merge(cosine, column);
    }
    const std::int64_t row = first_row + threadIdx.y + kSide * i;
    if (threadIdx.x != 0 || row >= p.rows) continue;
    to.cosine[blockIdx.y * p.rows + row] = nearest[i].cosine;
    to.index[blockIdx.y * p.rows + row] = nearest[i].column;
  }
}

__global__ void __launch_bounds__(kRowThreads) measure(NeighborDistances p, NearestSplits from) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * kRowThreads + threadIdx.x) / kWarpSize;
  if (i >= p.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  Nearest nearest;
  nearest.column = i == 0;  // if all cosines are NaN
  for (std::int64_t split = 0; split < from.splits; ++split) {
    nearest.offer(from.cosine[split * p.rows + i], from.index[split * p.rows + i]);
  }
  const float* x = static_cast<const float*>(p.unit) + i * p.dim;
  const float* y = static_cast<const float*>(p.unit) + nearest.column * p.dim;
  float squares = 0;
  for (std::int64_t d = lane; d < p.dim; d += kWarpSize) {
    const float v = x[d] - y[d] + static_cast<float>(p.eps);
    squares += v * v;
  }
  squares = group_sum<kWarpSize>(squares);
  if (lane != 0) return;
  p.index[i] = nearest.column;
  static_cast<float*>(p.distance)[i] = sqrtf(squares);
}

struct Gradient {
  const NearestNeighborDistanceBackward& p;

  __device__ __forceinline__ float unit(std::int64_t i, std::int64_t d) const {
    return static_cast<const float*>(p.unit)[i * p.dim + d];
  }

  // c_i v_i
  __device__ __forceinline__ float term(std::int64_t i, std::int64_t d) const {
    return p.coefficient<float>(i) *
           (unit(i, d) - unit(p.neighbor(i), d) + static_cast<float>(p.eps));
  }

  // G_i, where the followers of i begin at `first`.
  __device__ __forceinline__ float of_unit(std::int64_t i, std::int64_t first,
                                           std::int64_t d) const {
    float sum = term(i, d);
    for (std::int64_t k = first; k < p.rows && p.sorted_index[k] == i; ++k) {
      sum -= term(p.order[k], d);
    }
    return sum;
  }
};

// A thread block per row. It computes G_i twice, once for <u_i, G_i>, instead of storing it.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) backward(NearestNeighborDistanceBackward p) {
  const Gradient gradient{p};
  const std::int64_t i = blockIdx.x, first = p.first_follower(i);
  const float scale = static_cast<const float*>(p.inv_norm)[i];
  float dot = 0;
  for (std::int64_t d = threadIdx.x; d < p.dim; d += kRowThreads) {
    dot += gradient.unit(i, d) * gradient.of_unit(i, first, d);
  }
  dot = block_sum<kRowThreads>(dot);
  if (scale >= static_cast<float>(1 / p.eps)) dot = 0;
  T* grad = static_cast<T*>(p.grad_x) + i * p.dim;
  for (std::int64_t d = threadIdx.x; d < p.dim; d += kRowThreads) {
    grad[d] = static_cast<T>((gradient.of_unit(i, first, d) - gradient.unit(i, d) * dot) * scale);
  }
}

// Thread blocks that give every row a warp.
unsigned warps_for(std::int64_t rows) { return blocks(rows, kRowThreads / kWarpSize); }

cudaError_t normalize(const UnitRows& p, cudaStream_t stream) {
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    return launch(unit_rows<T>, warps_for(p.rows), kRowThreads, stream, p);
  });
}

}  // namespace

int nearest_neighbor_distance_cuda(const UnitRows& unit, const NearestSplits& splits,
                                   const NeighborDistances& distances, cudaStream_t stream) {
  cudaError_t error = normalize(unit, stream);
  if (error != cudaSuccess) return error;
  error = launch(search, dim3(blocks(unit.rows, kTile), static_cast<unsigned>(splits.splits)),
                 dim3(kSide, kSide), stream, distances, splits);
  if (error != cudaSuccess) return error;
  return launch(measure, warps_for(unit.rows), kRowThreads, stream, distances, splits);
}

int nearest_neighbor_distance_backward_cuda(const UnitRows& unit,
                                            const NearestNeighborDistanceBackward& p,
                                            cudaStream_t stream) {
  const cudaError_t error = normalize(unit, stream);
  if (error != cudaSuccess) return error;
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    return launch(backward<T>, blocks(p.rows, 1), kRowThreads, stream, p);
  });
}

}  // namespace mast_ext::kernels
