// Forward: a thread block has one group, 32 neighboring columns and a slice of the rows, which are
// divided among its warps. Warps skip rows of other groups, so that x and y are read once in all.
// Sums of warps and slices are merged in a fixed order. Backward: a warp has a row.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/grouped_squared_difference/grouped_squared_difference.h"

namespace mast_ext::kernels {
namespace {

constexpr int kWarps = 8;

template <typename T>
__device__ __forceinline__ const T* row_of(const void* from, std::int64_t stride, std::int64_t n) {
  return static_cast<const T*>(from) + n * stride;
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) add_rows(GroupedSquaredDifference p) {
  __shared__ float sums[kWarps][kWarpSize], counts[kWarps];
  const RowPairs& pairs = p.pairs;
  const std::int64_t d = std::int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
  const std::int64_t g = blockIdx.y, slice = blockIdx.z, last = p.first_row(slice + 1);
  const bool inside = d < pairs.dim;
  float sum = 0, count = 0;
#pragma unroll 4
  for (std::int64_t n = p.first_row(slice) + threadIdx.y; n < last; n += kWarps) {
    if (pairs.group[n] != g) continue;  // the same for the whole warp
    const float weight = pairs.weight_of<float>(n);
    count += weight;
    if (!inside) continue;
    const float difference = static_cast<float>(row_of<T>(pairs.x, pairs.x_stride, n)[d]) -
                             static_cast<float>(row_of<T>(pairs.y, pairs.y_stride, n)[d]);
    sum += weight * difference * difference;
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  if (threadIdx.x == 0) counts[threadIdx.y] = count;
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) sum += sums[warp][threadIdx.x];
  const std::int64_t at = slice * pairs.groups + g;
  if (inside) static_cast<float*>(p.slice_sums)[at * pairs.dim + d] = sum;
  if (d != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) count += counts[warp];
  static_cast<float*>(p.slice_counts)[at] = count;
}

constexpr int kMergeThreads = 128;

// One thread for every sum, and for every count behind them.
__global__ void __launch_bounds__(kMergeThreads) add_slices(GroupedSquaredDifference p) {
  const std::int64_t all_sums = p.pairs.groups * p.pairs.dim;
  const std::int64_t i = std::int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  if (i >= all_sums + p.pairs.groups) return;
  const bool is_sum = i < all_sums;
  const std::int64_t at = is_sum ? i : i - all_sums, stride = is_sum ? all_sums : p.pairs.groups;
  const auto* from = static_cast<const float*>(is_sum ? p.slice_sums : p.slice_counts) + at;
  double sum = 0;  // slices may be many
#pragma unroll 4
  for (std::int64_t slice = 0; slice < p.slices; ++slice) sum += from[slice * stride];
  static_cast<float*>(is_sum ? p.sums : p.counts)[at] = static_cast<float>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) residuals(GroupedSquaredDifference p) {
  const RowPairs& pairs = p.pairs;
  const std::int64_t n = std::int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (n >= pairs.rows) return;  // the same for the whole warp
  float sum = 0;
  if (pairs.has_group(n)) {
    const T* x = row_of<T>(pairs.x, pairs.x_stride, n);
    const T* y = row_of<T>(pairs.y, pairs.y_stride, n);
    const float* w = row_of<float>(p.dimension_weights, pairs.dim, pairs.group[n]);
#pragma unroll 4
    for (std::int64_t d = threadIdx.x; d < pairs.dim; d += kWarpSize) {
      const float difference = static_cast<float>(x[d]) - static_cast<float>(y[d]);
      sum += w[d] * difference * difference;
    }
  }
  sum = group_sum<kWarpSize>(sum);
  if (threadIdx.x == 0) static_cast<float*>(p.residual)[n] = sum;
}

// N neighboring elements at a time, whose addresses are aligned to all of them.
template <typename T, int N>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    write_grads(GroupedSquaredDifferenceBackward p) {
  const RowPairs& pairs = p.pairs;
  const std::int64_t n = std::int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (n >= pairs.rows) return;  // the same for the whole warp
  const bool has_group = pairs.has_group(n);
  const std::int64_t g = has_group ? pairs.group[n] : 0;
  const float twice = has_group ? 2 * pairs.weight_of<float>(n) : 0;
  const T* x = row_of<T>(pairs.x, pairs.x_stride, n);
  const T* y = row_of<T>(pairs.y, pairs.y_stride, n);
  const float* grad_sums = row_of<float>(p.grad_sums, pairs.dim, g);
  const auto row = [&](void* grad) {
    return grad == nullptr ? nullptr : static_cast<T*>(grad) + n * pairs.dim;
  };
  T *grad_x = row(p.grad_x), *grad_y = row(p.grad_y);
  float total = 0;
  for (std::int64_t d = std::int64_t{threadIdx.x} * N; d < pairs.dim; d += kWarpSize * N) {
    float left[N] = {}, right[N] = {}, grad[N] = {};
    if (has_group) {
      read<N>(x + d, left);
      read<N>(y + d, right);
      read<N>(grad_sums + d, grad);
    }
    float opposite[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float difference = left[i] - right[i], product = grad[i] * difference;
      total += product * difference;
      grad[i] = twice * product;
      opposite[i] = -grad[i];
    }
    if (grad_x != nullptr) write<N>(grad, grad_x + d);
    if (grad_y != nullptr) write<N>(opposite, grad_y + d);
  }
  if (p.grad_weight == nullptr) return;
  total = group_sum<kWarpSize>(total);
  if (threadIdx.x != 0) return;
  static_cast<float*>(p.grad_weight)[n] =
      has_group ? total + static_cast<const float*>(p.grad_counts)[g] : 0;
}

}  // namespace

int grouped_squared_difference_cuda(const GroupedSquaredDifference& p, cudaStream_t stream) {
  const RowPairs& pairs = p.pairs;
  const dim3 warps(kWarpSize, kWarps);
  return visit_cuda_dtype(pairs.dtype, [&]<typename T>() {
    const dim3 grid(blocks(pairs.dim, kWarpSize), static_cast<unsigned>(pairs.groups),
                    static_cast<unsigned>(p.slices));
    cudaError_t error = launch(add_rows<T>, grid, warps, stream, p);
    if (error == cudaSuccess && p.slices > 1) {
      const unsigned merging = blocks(pairs.groups * (pairs.dim + 1), kMergeThreads);
      error = launch(add_slices, merging, kMergeThreads, stream, p);
    }
    if (error == cudaSuccess && p.residual != nullptr) {
      error = launch(residuals<T>, blocks(pairs.rows, kWarps), warps, stream, p);
    }
    return error;
  });
}

int grouped_squared_difference_backward_cuda(const GroupedSquaredDifferenceBackward& p,
                                             cudaStream_t stream) {
  const RowPairs& pairs = p.pairs;
  const unsigned grid = blocks(pairs.rows, kWarps);
  const dim3 warps(kWarpSize, kWarps);
  return visit_cuda_dtype(pairs.dtype, [&]<typename T>() {
    constexpr int kPacket = 16 / sizeof(T);
    const bool in_packets = pairs.dim % kPacket == 0 && pairs.x_stride % kPacket == 0 &&
                            pairs.y_stride % kPacket == 0 && aligned(pairs.x, 16) &&
                            aligned(pairs.y, 16) && aligned(p.grad_x, 16) &&
                            aligned(p.grad_y, 16) && aligned(p.grad_sums, 4 * kPacket);
    return in_packets ? launch(write_grads<T, kPacket>, grid, warps, stream, p)
                      : launch(write_grads<T, 1>, grid, warps, stream, p);
  });
}

}  // namespace mast_ext::kernels
