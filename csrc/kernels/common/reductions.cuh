// Sums across threads, in a fixed order, so that equal inputs give equal bits.
#pragma once

namespace mast_ext::kernels {

inline constexpr int kWarpSize = 32;

// Returns to every thread the sum over its group: the lanes of a warp are divided into groups of
// `Lanes` neighbors. All threads of the warp must call it.
template <int Lanes, typename A>
__device__ __forceinline__ A group_sum(A value) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Returns to every thread the sum over its block of `Threads` threads, all of which must call it.
template <int Threads, typename A>
__device__ __forceinline__ A block_sum(A value) {
  static_assert(Threads % kWarpSize == 0);
  __shared__ A partial[Threads / kWarpSize];
  value = group_sum<kWarpSize>(value);
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  A total = 0;
#pragma unroll
  for (int i = 0; i < Threads / kWarpSize; ++i) total += partial[i];
  __syncthreads();  // the next call writes `partial` again
  return total;
}

}  // namespace mast_ext::kernels
