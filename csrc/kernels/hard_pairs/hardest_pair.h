// The choice that hard view selection makes for an image: the pair of views with the largest score,
// and of equal scores the first. A number wins over NaN.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// The unordered pairs of views i < j to choose from.
struct CandidatePairs {
  std::int32_t views;  // V, at least 2
  const bool* marks;   // [V, V], of which the part above the diagonal is read; null: all pairs

  MAST_EXT_HD bool has(std::int32_t i, std::int32_t j) const {
    return marks == nullptr || marks[static_cast<std::int64_t>(i) * views + j];
  }
};

// Whether the offered score replaces the best score so far.
template <typename A>
MAST_EXT_HD bool is_harder(A offered, A score) {
  return offered > score || (score != score && offered == offered);
}

// The best pair so far; candidates are offered in lexicographic order. Without any candidate it is
// the pair (0, 1) with score NaN.
template <typename A>
struct HardestPair {
  A score = static_cast<A>(NAN);
  std::int32_t i = 0, j = 1;
  bool any = false;

  MAST_EXT_HD void offer(std::int32_t left, std::int32_t right, A offered) {
    if (any && !is_harder(offered, score)) return;
    score = offered;
    i = left;
    j = right;
    any = true;
  }

  // Writes image b of index [2, B] and scores [B].
  MAST_EXT_HD void write(std::int64_t* index, void* scores, std::int64_t batch,
                         std::int64_t b) const {
    index[b] = i;
    index[batch + b] = j;
    static_cast<A*>(scores)[b] = score;
  }
};

}  // namespace mast_ext::kernels
