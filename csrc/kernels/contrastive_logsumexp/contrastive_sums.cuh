// The sums of the forward pass: how they are carried, and how those of the splits are merged.
#pragma once

#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

// The state of an online log-sum-exp: the running maximum, and the sum of 2^(s - max). With the
// fixed shift, `max` is that shift and never changes.
struct ShiftedSum {
  float max = -INFINITY, sum = 0;

  // What to subtract from s: the maximum of an empty sum is -inf.
  __device__ __forceinline__ float shift() const { return max == -INFINITY ? 0.0f : max; }

  __device__ __forceinline__ void raise(float to) {
    if (!(to > max)) return;
    sum *= exp2_fast(max - to);
    max = to;
  }
  __device__ __forceinline__ void add(ShiftedSum other) {
    const float top = fmaxf(max, other.max);
    raise(top);
    other.raise(top);
    sum += other.sum;
  }
  __device__ __forceinline__ float log() const { return (log2f(sum) + shift()) * kLn2; }
};

// Merges the splits' sums of result `at` of `count`; writes lse, and returns it.
__device__ __forceinline__ float merge(const ContrastiveForward& f, const Temperature& t,
                                       std::int64_t count, std::int64_t at) {
  if (!has_splits(f)) return f.lse[at];
  const std::int64_t block = at / f.p.x.rows, i = block / f.p.y.views % f.p.x.views;
  if (f.side > 0 && f.p.options.leaves_out(i, block % f.p.y.views)) {  // there are no sums
    if (f.positive != nullptr) f.positive[at] = 0;
    return f.lse[at] = -INFINITY;
  }
  ShiftedSum total;
#pragma unroll 4
  for (std::int64_t split = 0; split < f.splits; ++split) {
    ShiftedSum part;
    part.max = t.fixed_shift ? t.scale : f.partial_max[split * count + at];
    part.sum = f.partial_sum[split * count + at];
    total.add(part);
  }
  return f.lse[at] = total.log();
}

}  // namespace mast_ext::kernels::contrastive
