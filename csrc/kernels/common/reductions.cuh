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

// Replaces every value by its sum over the block of `Threads` threads, all of which must call it.
template <int Threads, int N, typename A>
__device__ __forceinline__ void block_sums(A (&values)[N]) {
  static_assert(Threads % kWarpSize == 0);
  __shared__ A partial[N][Threads / kWarpSize];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = group_sum<kWarpSize>(values[n]);
    if (threadIdx.x % kWarpSize == 0) partial[n][threadIdx.x / kWarpSize] = values[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = 0;
#pragma unroll
    for (int i = 0; i < Threads / kWarpSize; ++i) values[n] += partial[n][i];
  }
  __syncthreads();  // the next call writes `partial` again
}

// Returns to every thread the sum over its block of `Threads` threads, all of which must call it.
template <int Threads, typename A>
__device__ __forceinline__ A block_sum(A value) {
  A values[] = {value};
  block_sums<Threads>(values);
  return values[0];
}

}  // namespace mast_ext::kernels
