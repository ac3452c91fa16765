// Two passes over the logits: a thread block per row computes its normalizer, then a thread per
// prototype goes down a slice of the rows. There are no atomic additions: partial results are
// merged in a fixed order.
#include <cmath>

#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/prototype_column_logsumexp/prototype_column_logsumexp.h"

namespace mast_ext::kernels {
namespace {

constexpr int kRowThreads = 256, kColumnThreads = 128;
constexpr int kInFlight = 8;  // loads that a thread has in flight
constexpr float kLowest = -static_cast<float>(INFINITY);

// An online log-sum-exp: the running maximum, and the sum of exp((value - max) * scale).
struct RunningSum {
  float max, sum;

  __device__ __forceinline__ void add(float value, float scale) {
    if (value > max) {
      sum = sum * expf((max - value) * scale) + 1;
      max = value;
    } else if (value != kLowest) {  // true for NaN, too
      sum += expf((value - max) * scale);
    }
  }

  __device__ __forceinline__ void merge(float other_max, float other_sum, float scale) {
    const float largest = other_max > max ? other_max : max;
    const float shift = largest == kLowest ? 0 : largest;
    sum = sum * expf((max - shift) * scale) + other_sum * expf((other_max - shift) * scale);
    max = largest;
  }
};

template <typename T>
__device__ __forceinline__ float centered(const PrototypeColumns& p, const T* x, std::int64_t c) {
  const float value = static_cast<float>(x[c]);
  return p.center == nullptr ? value : value - static_cast<const float*>(p.center)[c];
}

template <typename T>
__device__ __forceinline__ const T* row_of(const PrototypeColumns& p, std::int64_t n) {
  return static_cast<const T*>(p.logits) + n * p.row_stride;
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads) normalize_rows(PrototypeColumns p) {
  __shared__ RunningSum partial[kRowThreads / kWarpSize];
  const T* x = row_of<T>(p, blockIdx.x);
  const float scale = static_cast<float>(1 / p.temperature);
  RunningSum own{kLowest, 0};
  for (std::int64_t first = threadIdx.x; first < p.prototypes; first += kInFlight * kRowThreads) {
    float values[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const std::int64_t c = first + i * kRowThreads;
      values[i] = c < p.prototypes ? centered(p, x, c) : kLowest;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) own.add(values[i], scale);
  }
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const float other_max = __shfl_xor_sync(0xffffffffu, own.max, offset);
    const float other_sum = __shfl_xor_sync(0xffffffffu, own.sum, offset);
    own.merge(other_max, other_sum, scale);
  }
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = own;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kRowThreads / kWarpSize; ++warp) {
    own.merge(partial[warp].max, partial[warp].sum, scale);
  }
  static_cast<float*>(p.row_max)[blockIdx.x] = own.max;
  static_cast<float*>(p.row_log_sum)[blockIdx.x] =
      own.max - own.max == 0 ? logf(own.sum) : static_cast<float>(NAN);  // NaN if max is infinite
}

template <typename T>
__global__ void __launch_bounds__(kColumnThreads) add_rows(PrototypeColumns p) {
  const std::int64_t c = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (c >= p.prototypes) return;
  const float scale = static_cast<float>(1 / p.temperature);
  const std::int64_t slice = blockIdx.y, end = (slice + 1) * p.rows / p.slices;
  RunningSum column{kLowest, 0};
  for (std::int64_t n = slice * p.rows / p.slices; n < end; n += kInFlight) {
    float values[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (n + i < end) values[i] = centered(p, row_of<T>(p, n + i), c);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (n + i >= end) break;
      float z = values[i] * scale;
      if (p.normalize_rows) {
        const float max = static_cast<const float*>(p.row_max)[n + i];
        z = (values[i] - max) * scale - static_cast<const float*>(p.row_log_sum)[n + i];
      }
      column.add(z, 1.0f);
    }
  }
  static_cast<float*>(p.partial_max)[slice * p.prototypes + c] = column.max;
  static_cast<float*>(p.partial_sum)[slice * p.prototypes + c] = column.sum;
}

__global__ void __launch_bounds__(kColumnThreads) merge_slices(PrototypeColumns p) {
  const std::int64_t c = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (c >= p.prototypes) return;
  RunningSum column{kLowest, 0};
  for (std::int64_t slice = 0; slice < p.slices; ++slice) {
    const std::int64_t at = slice * p.prototypes + c;
    column.merge(static_cast<const float*>(p.partial_max)[at],
                 static_cast<const float*>(p.partial_sum)[at], 1.0f);
  }
  static_cast<float*>(p.column)[c] = (column.max == kLowest ? 0 : column.max) + logf(column.sum);
}

}  // namespace

int prototype_column_logsumexp_cuda(const PrototypeColumns& p, cudaStream_t stream) {
  const unsigned columns = blocks(p.prototypes, kColumnThreads);
  cudaError_t error = visit_cuda_dtype(p.dtype, [&]<typename T>() {
    if (p.normalize_rows) {
      const cudaError_t refused =
          launch(normalize_rows<T>, blocks(p.rows, 1), kRowThreads, stream, p);
      if (refused != cudaSuccess) return refused;
    }
    const dim3 grid(columns, static_cast<unsigned>(p.slices));
    return launch(add_rows<T>, grid, kColumnThreads, stream, p);
  });
  if (error != cudaSuccess) return error;
  return launch(merge_slices, columns, kColumnThreads, stream, p);
}

}  // namespace mast_ext::kernels
