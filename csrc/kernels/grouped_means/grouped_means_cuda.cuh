// The mean of a dimension, for vicreg_terms, too.
#pragma once

#include "kernels/grouped_means/grouped_means.h"

namespace mast_ext::kernels {

// Writes the mean of dimension d, and what is kept with it; returns the former.
__device__ __forceinline__ float write_mean(const GroupedMeans& p, std::int64_t d) {
  constexpr int kParts = 4;  // sums that run side by side
  const std::int64_t dim = p.in.dim;
  const float* w = static_cast<const float*>(p.in.weights) + d;
  const float* sums = static_cast<const float*>(p.in.sums) + d;
  const float* counts = static_cast<const float*>(p.in.counts);
  float totals[kParts] = {}, compared[kParts] = {};
  for (std::int64_t first = 0; first < p.in.groups; first += kParts) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const std::int64_t g = first + i;
      if (g >= p.in.groups) break;
      const float weight = w[g * dim];
      totals[i] += weight * sums[g * dim];
      compared[i] += weight * counts[g];
    }
  }
  const float pairs = (compared[0] + compared[1]) + (compared[2] + compared[3]);
  const float total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  const float mean = total / (pairs < 1 ? 1 : pairs);
  static_cast<float*>(p.compared)[d] = pairs;
  static_cast<float*>(p.means)[d] = mean;
  return mean;
}

}  // namespace mast_ext::kernels
