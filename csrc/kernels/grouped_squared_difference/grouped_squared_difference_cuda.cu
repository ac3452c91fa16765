// Forward: a thread block has a slice of the rows and some neighboring columns. It sorts the rows
// by group, so that a thread can load several rows of one group at once. If there are many groups,
// it has one of them and skips the other rows. Sums of threads and slices are merged in a fixed
// order. Backward: a warp has a row.
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

constexpr int kThreads = 256;
constexpr int kUnit = 4;  // rows of a group that a thread adds up at once
// Of a slice. A group's last unit may have fewer rows.
constexpr int kMostUnits = kSortedRows / kUnit + kSortedGroups;

// The rows of a slice sorted by group, in units.
struct SortedRows {
  static_assert(kSortedRows == kThreads && kSortedGroups < kThreads);

  alignas(16) unsigned keys[kSortedRows];     // group, then row; the largest if in none
  alignas(8) short rows[kMostUnits * kUnit];  // counted from the slice's first; -1: none
  int before[kSortedGroups + 1];              // rows in the groups before one
  int first_unit[kSortedGroups + 1];          // of a group
  float weights[kSortedRows];

  __device__ __forceinline__ int keys_below(unsigned limit) const {
    int count = 0;
#pragma unroll 8
    for (int i = 0; i < kSortedRows; i += 4) {
      const auto four = *reinterpret_cast<const Packet<unsigned, 4>*>(keys + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) count += four.value[j] < limit ? 1 : 0;
    }
    return count;
  }

  // All threads of the block call it; another barrier must follow before the rows are read.
  __device__ __forceinline__ void sort(const RowPairs& pairs, std::int64_t first,
                                       std::int64_t last) {
    const int own = static_cast<int>(threadIdx.x), groups = static_cast<int>(pairs.groups);
    const bool has_group = first + own < last && pairs.has_group(first + own);
    const int group = has_group ? static_cast<int>(pairs.group[first + own]) : 0;
    const unsigned key = has_group ? group * kSortedRows + own : ~0u;
    keys[own] = key;
    weights[own] = has_group ? pairs.weight_of<float>(first + own) : 0;
    for (int i = own; i < kMostUnits * kUnit; i += kThreads) rows[i] = -1;
    __syncthreads();
    const int rank = keys_below(key);
    if (own <= groups) before[own] = keys_below(own * kSortedRows);
    __syncthreads();
    if (own <= groups) {
      int units = 0;
      for (int g = 0; g < own; ++g) units += (before[g + 1] - before[g] + kUnit - 1) / kUnit;
      first_unit[own] = units;
    }
    __syncthreads();
    if (has_group) {
      rows[first_unit[group] * kUnit + rank - before[group]] = static_cast<short>(own);
    }
  }
};

// With packets of N neighboring elements.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    add_sorted_rows(GroupedSquaredDifference p, unsigned strips) {
  constexpr int kLanes = N == 1 ? kWarpSize : 8;  // threads that share a row
  constexpr int kColumns = kLanes * N, kRowLanes = kThreads / kLanes;
  __shared__ SortedRows sorted;
  alignas(32) __shared__ float partial[kMostUnits][kColumns];
  __shared__ float counts[kMostUnits];
  const RowPairs& pairs = p.pairs;
  const std::int64_t slice = blockIdx.x / strips, first = p.first_row(slice);
  const std::int64_t first_column = std::int64_t{blockIdx.x % strips} * kColumns;
  sorted.sort(pairs, first, p.first_row(slice + 1));
  __syncthreads();

  const int groups = static_cast<int>(pairs.groups);
  const int column = static_cast<int>(threadIdx.x) % kLanes * N;
  const std::int64_t d = first_column + column;
  for (int unit = static_cast<int>(threadIdx.x) / kLanes; unit < sorted.first_unit[groups];
       unit += kRowLanes) {
    const auto rows = *reinterpret_cast<const Packet<short, kUnit>*>(sorted.rows + unit * kUnit);
    RawPacket<T, N> left[kUnit], right[kUnit];
    if (d < pairs.dim) {
#pragma unroll
      for (int r = 0; r < kUnit; ++r) {
        if (rows.value[r] < 0) break;
        left[r].load(row_of<T>(pairs.x, pairs.x_stride, first + rows.value[r]) + d);
        right[r].load(row_of<T>(pairs.y, pairs.y_stride, first + rows.value[r]) + d);
      }
    }
    float sum[N] = {}, count = 0;
#pragma unroll
    for (int r = 0; r < kUnit; ++r) {
      if (rows.value[r] < 0) break;
      const float weight = sorted.weights[rows.value[r]];
      count += weight;
      if (d >= pairs.dim) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float difference = left[r][i] - right[r][i];
        sum[i] += weight * difference * difference;
      }
    }
    if (column == 0) counts[unit] = count;
    Packet<float, N> sums;
#pragma unroll
    for (int i = 0; i < N; ++i) sums.value[i] = sum[i];
    *reinterpret_cast<Packet<float, N>*>(&partial[unit][column]) = sums;
  }
  __syncthreads();
  // Adds up value(unit) over the units of a group, by eights: long sums stay precise.
  const auto sum_units = [&](int g, const auto& value) {
    const int end = sorted.first_unit[g + 1];
    float sum = 0;
    for (int unit = sorted.first_unit[g]; unit < end; unit += 8) {
      float part = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (unit + i < end) part += value(unit + i);
      }
      sum += part;
    }
    return sum;
  };
  for (int i = static_cast<int>(threadIdx.x); i < groups * kColumns; i += kThreads) {
    const int g = i / kColumns, c = i % kColumns;
    const float sum = sum_units(g, [&](int unit) { return partial[unit][c]; });
    if (first_column + c >= pairs.dim) continue;
    static_cast<float*>(p.slice_sums)[(slice * groups + g) * pairs.dim + first_column + c] = sum;
  }
  const int g = static_cast<int>(threadIdx.x);
  if (first_column != 0 || g >= groups) return;
  static_cast<float*>(p.slice_counts)[slice * groups + g] =
      sum_units(g, [&](int unit) { return counts[unit]; });
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

// A column of threads for every sum, and for every count behind them.
__global__ void __launch_bounds__(kWarps* kWarpSize) add_slices(GroupedSquaredDifference p) {
  __shared__ double partial[kWarps][kWarpSize];  // slices may be many
  const std::int64_t all_sums = p.pairs.groups * p.pairs.dim;
  const std::int64_t i = std::int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
  const bool inside = i < all_sums + p.pairs.groups, is_sum = i < all_sums;
  const std::int64_t at = is_sum ? i : i - all_sums, stride = is_sum ? all_sums : p.pairs.groups;
  double sum = 0;
  if (inside) {
    const auto* from = static_cast<const float*>(is_sum ? p.slice_sums : p.slice_counts) + at;
#pragma unroll 8
    for (std::int64_t slice = threadIdx.y; slice < p.slices; slice += kWarps) {
      sum += from[slice * stride];
    }
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || !inside) return;
  for (int warp = 1; warp < kWarps; ++warp) sum += partial[warp][threadIdx.x];
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
  if (has_group && p.grad_counts != nullptr) total += static_cast<const float*>(p.grad_counts)[g];
  static_cast<float*>(p.grad_weight)[n] = has_group ? total : 0;
}

// Whether all rows can be read in packets of N elements of `bytes` each.
bool in_packets(const RowPairs& pairs, std::int64_t N, std::int64_t bytes) {
  return pairs.dim % N == 0 && pairs.x_stride % N == 0 && pairs.y_stride % N == 0 &&
         aligned(pairs.x, bytes * N) && aligned(pairs.y, bytes * N);
}

}  // namespace

int grouped_squared_difference_cuda(const GroupedSquaredDifference& p, cudaStream_t stream) {
  const RowPairs& pairs = p.pairs;
  const dim3 warps(kWarpSize, kWarps);
  return visit_cuda_dtype(pairs.dtype, [&]<typename T>() {
    constexpr int kPacket = 16 / sizeof(T);
    const auto add_sorted = [&]<int N>() {
      const unsigned strips = blocks(pairs.dim, N == 1 ? kWarpSize : 8 * N);
      const unsigned grid = blocks(strips * p.slices, 1);
      return launch(add_sorted_rows<T, N>, grid, kThreads, stream, p, strips);
    };
    cudaError_t error;
    if (pairs.groups > kSortedGroups) {
      const dim3 grid(blocks(pairs.dim, kWarpSize), static_cast<unsigned>(pairs.groups),
                      static_cast<unsigned>(p.slices));
      error = launch(add_rows<T>, grid, warps, stream, p);
    } else if (in_packets(pairs, kPacket, sizeof(T))) {
      error = add_sorted.template operator()<kPacket>();
    } else {
      error = add_sorted.template operator()<1>();
    }
    if (error == cudaSuccess && p.slices > 1) {
      const unsigned merging = blocks(pairs.groups * (pairs.dim + 1), kWarpSize);
      error = launch(add_slices, merging, warps, stream, p);
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
    const bool packets = in_packets(pairs, kPacket, sizeof(T)) && aligned(p.grad_x, 16) &&
                         aligned(p.grad_y, 16) && aligned(p.grad_sums, 4 * kPacket);
    return packets ? launch(write_grads<T, kPacket>, grid, warps, stream, p)
                   : launch(write_grads<T, 1>, grid, warps, stream, p);
  });
}

}  // namespace mast_ext::kernels
