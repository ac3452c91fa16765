// The choice of hardest_pair.h for a vector of images, one per lane.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// An integer as wide as a score, so that comparisons of scores can select numbers lane by lane.
template <typename A>
using lane_number = std::conditional_t<std::is_same_v<A, double>, std::int64_t, std::int32_t>;

// is_harder() in every lane: all bits set if true, else none.
template <typename A>
inline vec<lane_number<A>> harder_lanes(vec<A> offered, vec<A> score) {
  return (offered > score) | ((score != score) & (offered == offered));
}

// The hardest score that was offered in each lane, and the number of its candidate.
template <typename A>
struct HardestLanes {
  using Number = lane_number<A>;

  vec<A> score = broadcast(static_cast<A>(NAN));
  vec<Number> number;
  bool any = false;

  explicit HardestLanes(Number without_any = 0) : number(broadcast(without_any)) {}

  // Returns the lanes in which the offered score is the hardest so far, as harder_lanes() does.
  vec<Number> offer(Number offered_number, vec<A> offered) {
    const vec<Number> wins = any ? harder_lanes<A>(offered, score) : broadcast(Number{-1});
    score = wins ? offered : score;
    number = wins ? broadcast(offered_number) : number;
    any = true;
    return wins;
  }
};

}  // namespace mast_ext::kernels::MAST_EXT_ISA
