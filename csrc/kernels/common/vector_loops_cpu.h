// Vector loads, stores and dot products for rows of any length.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/common/dtype.h"
#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// The maximum of no numbers.
template <typename A>
inline constexpr A kLowest = -std::numeric_limits<A>::infinity();

// What a sum with this maximum subtracts before exponentials, so that an empty one does not become
// NaN.
template <typename A>
inline vec<A> shift_of_lanes(vec<A> max) {
  return max == broadcast(kLowest<A>) ? vec<A>{} : max;
}

// Loads the first `count` elements, at most a whole vector; the remaining lanes are 0.
template <typename T>
inline vec<accum_t<T>> load_some(const T* p, std::int64_t count) {
  using A = accum_t<T>;
  vec<A> v{};
  if constexpr (std::is_same_v<T, A>) {
    if (count >= kLanes<A>) return load(p);
    std::memcpy(&v, p, count * sizeof(A));
  } else {
    A lanes[kLanes<A>] = {};
    if (count >= kLanes<A>) {
      for (int i = 0; i < kLanes<A>; ++i) lanes[i] = static_cast<A>(p[i]);
    } else {
      for (std::int64_t i = 0; i < count; ++i) lanes[i] = static_cast<A>(p[i]);
    }
    v = load(lanes);
  }
  return v;
}

// Stores the first `count` lanes, at most all.
template <typename T>
inline void store_some(T* p, vec<accum_t<T>> v, std::int64_t count) {
  using A = accum_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (count >= kLanes<A>) return store(p, v);
    std::memcpy(p, &v, count * sizeof(A));
  } else {
    A lanes[kLanes<A>];
    store(lanes, v);
    count = std::min<std::int64_t>(count, kLanes<A>);
    for (std::int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(lanes[i]);
  }
}

// sum_i x[i] * y[i]
template <typename A>
inline A dot(const A* x, const A* y, std::int64_t count) {
  constexpr int kUnroll = 4, kLane = kLanes<A>;
  vec<A> sum[kUnroll] = {};
  std::int64_t i = 0;
  for (; i + kUnroll * kLane <= count; i += kUnroll * kLane) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) sum[u] += load(x + i + u * kLane) * load(y + i + u * kLane);
  }
  for (; i < count; i += kLane) sum[0] += load_some(x + i, count - i) * load_some(y + i, count - i);
  return sum_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA
