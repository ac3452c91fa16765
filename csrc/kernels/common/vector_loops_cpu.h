// Vector loops over rows of any length, for the CPU passes of columns.h and its operators.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/columns/columns.h"
#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// `count` elements, at most a vector's, the lanes behind them zero.
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

// On the CPU matrix products are in the accumulation type.
template <typename Body>
void visit_accumulation(DType dtype, Body&& body) {
  if (dtype == DType::kFloat64) {
    body.template operator()<double>();
  } else {
    body.template operator()<float>();
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

// Where row n of view v begins.
template <typename T>
inline const T* row_of(const Columns& z, std::int64_t v, std::int64_t n) {
  const bool is_x = v < z.x_views;
  const Columns::List& from = is_x ? z.x : z.y;
  return static_cast<const T*>(from.data) + (is_x ? v : v - z.x_views) * from.view_stride +
         n * from.row_stride;
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA
