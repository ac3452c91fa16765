// HardestPair of hardest_pair.h for a vector of images, one in every lane.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// As wide as the scores, so that a comparison of scores selects among them.
template <typename A>
using lane_number = std::conditional_t<std::is_same_v<A, double>, std::int64_t, std::int32_t>;

// is_harder() of every lane: all bits set, or none.
template <typename A>
inline vec<lane_number<A>> harder_lanes(vec<A> offered, vec<A> score) {
  return (offered > score) | ((score != score) & (offered == offered));
}

// Of the scores offered the hardest, and its number.
template <typename A>
struct HardestLanes {
  using Number = lane_number<A>;

  vec<A> score = broadcast(static_cast<A>(NAN));
  vec<Number> number;
  bool any = false;

  explicit HardestLanes(Number without_any = 0) : number(broadcast(without_any)) {}

  // Which lanes take it.
  vec<Number> offer(Number offered_number, vec<A> offered) {
    const vec<Number> wins = any ? harder_lanes<A>(offered, score) : broadcast(Number{-1});
    score = wins ? offered : score;
    number = wins ? broadcast(offered_number) : number;
    any = true;
    return wins;
  }
};

}  // namespace mast_ext::kernels::MAST_EXT_ISA
