// The sum of a term's numbers, for vicreg_terms, too.
#pragma once

#include <cstdint>

#include "kernels/common/reductions.cuh"

namespace mast_ext::kernels {

// Returns to every thread the sum of `count` numbers, by a block of `Threads` threads, all of which
// must call it. Eight at a time are added in float: many GPUs have few units for double.
template <int Threads>
__device__ __forceinline__ double sum_of_all(const float* x, std::int64_t count) {
  constexpr int kLoads = 8;
  double sum = 0;
  for (std::int64_t first = threadIdx.x; first < count; first += kLoads * Threads) {
    float values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const std::int64_t at = first + i * Threads;
      values[i] = at < count ? x[at] : 0;
    }
    sum += ((values[0] + values[1]) + (values[2] + values[3])) +
           ((values[4] + values[5]) + (values[6] + values[7]));
  }
  return block_sum<Threads>(sum);
}

}  // namespace mast_ext::kernels
