// Two passes over the logits: a thread block takes a part of some rows for their normalizers, then
// a thread per packet of prototypes goes down a slice of the rows. There are no atomic additions:
// partial results are merged in a fixed order.
#include <cmath>

#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/prototype_column_logsumexp/prototype_column_logsumexp.h"

namespace mast_ext::kernels {
namespace {

constexpr int kRowThreads = 256, kColumnThreads = 128, kMergeThreads = 128;
constexpr int kRows = 4;  // that a thread loads at once
constexpr float kLowest = -static_cast<float>(INFINITY);
constexpr float kLog2E = 1.44269504f;

// What a sum of exponentials is taken relative to: its maximum, or 0 if that is infinite.
__device__ __forceinline__ float shift_of(float max) { return max - max == 0 ? max : 0; }

// A log-sum-exp: the maximum, and the sum of exp2((value - max) * scale).
struct RunningSum {
  float max = kLowest, sum = 0;

  template <int N>
  __device__ __forceinline__ void add(const float (&values)[N], float scale) {
    float largest = max;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = fmaxf(largest, values[i]);
    const float shift = shift_of(largest);
    sum *= exp2_fast((max - shift) * scale);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exp2_fast((values[i] - shift) * scale);
    max = largest;
  }

  __device__ __forceinline__ void merge(float other_max, float other_sum, float scale) {
    const float largest = fmaxf(max, other_max), shift = shift_of(largest);
    sum =
        sum * exp2_fast((max - shift) * scale) + other_sum * exp2_fast((other_max - shift) * scale);
    max = largest;
  }
};

// The log-sum-exp of `count` sums, the maxima and sums of which are `stride` apart, in two passes
// whose steps do not wait for each other.
__device__ __forceinline__ RunningSum merged(const float* maxima, const float* sums,
                                             std::int64_t count, std::int64_t stride, float scale) {
  RunningSum all;
#pragma unroll 8
  for (std::int64_t i = 0; i < count; ++i) all.max = fmaxf(all.max, maxima[i * stride]);
  const float shift = shift_of(all.max);
#pragma unroll 8
  for (std::int64_t i = 0; i < count; ++i) {
    all.sum += sums[i * stride] * exp2_fast((maxima[i * stride] - shift) * scale);
  }
  return all;
}

__device__ __forceinline__ float scale_of(const PrototypeColumns& p) {
  return static_cast<float>(1 / p.temperature);
}

template <int N>
__device__ __forceinline__ void load_center(const PrototypeColumns& p, std::int64_t c,
                                            float (&center)[N]) {
  constexpr int kLoaded = N < 4 ? N : 4;
  RawPacket<float, kLoaded> packet;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (p.center != nullptr && i % 4 == 0) packet.load(static_cast<const float*>(p.center) + c + i);
    center[i] = p.center == nullptr ? 0 : packet[i % 4];
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kRowThreads) normalize_rows(PrototypeColumns p) {
  constexpr int kWarps = kRowThreads / kWarpSize;
  __shared__ float maxima[kWarps][kRows], sums[kWarps][kRows];
  const float scale = scale_of(p) * kLog2E;
  const std::int64_t part = blockIdx.x % p.parts, n = blockIdx.x / p.parts * kRows;
  const std::int64_t first = part * p.part_length();
  const std::int64_t end =
      first + p.part_length() < p.prototypes ? first + p.part_length() : p.prototypes;
  const int rows = p.rows - n < kRows ? static_cast<int>(p.rows - n) : kRows;
  const T* const x = static_cast<const T*>(p.logits) + n * p.row_stride;
  RunningSum own[kRows];
  for (std::int64_t c = first + threadIdx.x * N; c < end; c += kRowThreads * N) {
    RawPacket<T, N> packets[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < rows) packets[r].load(x + r * p.row_stride + c);
    }
    float center[N];
    load_center(p, c, center);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      float values[N];
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = packets[r][i] - center[i];
      own[r].add(values, scale);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      const float other_max = __shfl_xor_sync(0xffffffffu, own[r].max, offset);
      const float other_sum = __shfl_xor_sync(0xffffffffu, own[r].sum, offset);
      own[r].merge(other_max, other_sum, scale);
    }
    if (threadIdx.x % kWarpSize == 0) {
      maxima[threadIdx.x / kWarpSize][r] = own[r].max;
      sums[threadIdx.x / kWarpSize][r] = own[r].sum;
    }
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= rows) return;
  const RunningSum all =
      merged(&maxima[0][threadIdx.x], &sums[0][threadIdx.x], kWarps, kRows, scale);
  const std::int64_t at = (n + threadIdx.x) * p.parts + part;
  static_cast<float*>(p.row_max)[at] = all.max;
  static_cast<float*>(p.row_sum)[at] = all.sum;
}

template <typename T, int N>
__global__ void __launch_bounds__(kColumnThreads) add_rows(PrototypeColumns p) {
  __shared__ float row_max[kColumnThreads], row_log_sum[kColumnThreads];
  const std::int64_t c = (std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x) * N;
  const bool inside = c < p.prototypes;
  const float scale = scale_of(p);
  const std::int64_t slice = blockIdx.y, begin = slice * p.rows / p.slices;
  const std::int64_t end = (slice + 1) * p.rows / p.slices;
  const T* const x = static_cast<const T*>(p.logits) + c;
  float center[N] = {};
  if (inside) load_center(p, c, center);
  RunningSum columns[N];
  for (std::int64_t first = begin; first < end; first += kColumnThreads) {
    const int rows = end - first < kColumnThreads ? static_cast<int>(end - first) : kColumnThreads;
    if (p.normalize_rows) {
      if (first > begin) __syncthreads();  // the rows before have been used
      if (static_cast<int>(threadIdx.x) < rows) {
        const std::int64_t at = (first + threadIdx.x) * p.parts;
        const RunningSum row =
            merged(static_cast<const float*>(p.row_max) + at,
                   static_cast<const float*>(p.row_sum) + at, p.parts, 1, scale * kLog2E);
        row_max[threadIdx.x] = row.max;
        row_log_sum[threadIdx.x] = row.max - row.max == 0 ? logf(row.sum) : static_cast<float>(NAN);
      }
      __syncthreads();
    }
    if (!inside) continue;
    for (int n = 0; n < rows; n += kRows) {
      RawPacket<T, N> packets[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (n + r < rows) packets[r].load(x + (first + n + r) * p.row_stride);
      }
      float max[kRows] = {}, log_sum[kRows] = {};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (!p.normalize_rows || n + r >= rows) break;
        max[r] = row_max[n + r];
        log_sum[r] = row_log_sum[n + r];
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float z[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          z[r] = n + r < rows ? (packets[r][i] - center[i] - max[r]) * scale - log_sum[r] : kLowest;
        }
        columns[i].add(z, kLog2E);
      }
    }
  }
  if (!inside) return;
  float max[N], sum[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    max[i] = columns[i].max;
    sum[i] = columns[i].sum;
  }
  write<N>(max, static_cast<float*>(p.partial_max) + slice * p.prototypes + c);
  write<N>(sum, static_cast<float*>(p.partial_sum) + slice * p.prototypes + c);
}

__global__ void __launch_bounds__(kMergeThreads) merge_slices(PrototypeColumns p) {
  const std::int64_t c = std::int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  if (c >= p.prototypes) return;
  const RunningSum column =
      merged(static_cast<const float*>(p.partial_max) + c,
             static_cast<const float*>(p.partial_sum) + c, p.slices, p.prototypes, kLog2E);
  static_cast<float*>(p.column)[c] = shift_of(column.max) + logf(column.sum);
}

}  // namespace

int prototype_column_logsumexp_cuda(const PrototypeColumns& p, cudaStream_t stream) {
  cudaError_t error = visit_cuda_dtype(p.dtype, [&]<typename T>() {
    const auto run = [&]<int N>() {
      if (p.normalize_rows) {
        const unsigned grid = blocks(blocks(p.rows, kRows) * p.parts, 1);
        const cudaError_t refused = launch(normalize_rows<T, N>, grid, kRowThreads, stream, p);
        if (refused != cudaSuccess) return refused;
      }
      const dim3 grid(blocks(p.prototypes, kColumnThreads * N), static_cast<unsigned>(p.slices));
      return launch(add_rows<T, N>, grid, kColumnThreads, stream, p);
    };
    constexpr int kPacket = 16 / sizeof(T);
    const bool packets = p.prototypes % kPacket == 0 && p.row_stride % kPacket == 0 &&
                         aligned(p.logits, 16) && aligned(p.center, 16);
    return packets ? run.template operator()<kPacket>() : run.template operator()<1>();
  });
  if (error != cudaSuccess) return error;
  return launch(merge_slices, blocks(p.prototypes, kMergeThreads), kMergeThreads, stream, p);
}

}  // namespace mast_ext::kernels
