// Exponentials of differences from a maximum, several vectors side by side, and the loop over a row
// that goes with them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// Vectors that go through the arithmetic side by side: a step's latency, and the scheduler's size,
// would have one after the other take twice the time.
inline constexpr int kAccumulators = 4;

// Each 2^(scale * x) for x <= 0, within 2 ulp where multiplications and additions fuse; below
// 2^-126 it is 0. NaN stays.
template <int N>
inline void exp2_below_one(vec<float> (&x)[N], float scale) {
  constexpr float kRound = 12582912.0f + 127;  // its last bits are x's whole part, biased by 127
  const vec<float> lowest =
      broadcast(std::max(-127.0f / scale, std::numeric_limits<float>::lowest()));
  vec<float> shifted[N], p[N];
  const auto each = [](const auto& step) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) step(i);
  };
  each([&](int i) { x[i] = larger(lowest, x[i]); });
  each([&](int i) { shifted[i] = x[i] * scale + kRound; });
  each([&](int i) { x[i] = x[i] * scale - (shifted[i] - kRound); });
  // Minimax on |x| <= 1/2 with p(0) = 1: relative error 2e-9.
  each([&](int i) { p[i] = x[i] * 1.53533612e-4f + 1.33988747e-3f; });
  each([&](int i) { p[i] = p[i] * x[i] + 9.61843736e-3f; });
  each([&](int i) { p[i] = p[i] * x[i] + 5.55033247e-2f; });
  each([&](int i) { p[i] = p[i] * x[i] + 2.40226479e-1f; });
  each([&](int i) { p[i] = p[i] * x[i] + 6.93147203e-1f; });
  each([&](int i) { p[i] = p[i] * x[i] + 1.0f; });
  each([&](int i) {
    vec<std::int32_t> power;
    std::memcpy(&power, &shifted[i], sizeof(power));
    power <<= 23;
    std::memcpy(&shifted[i], &power, sizeof(power));
    x[i] = p[i] * shifted[i];
  });
}

// exp(difference / temperature) of differences from the largest.
template <typename A>
struct Exponential {
  A scale;

  explicit Exponential(double temperature)
      : scale(static_cast<A>((std::is_same_v<A, float> ? 1.4426950408889634 : 1.0) / temperature)) {
  }

  template <int N>
  void operator()(vec<A> (&x)[N]) const {
    if constexpr (std::is_same_v<A, float>) {
      exp2_below_one(x, scale);
    } else {
      for (int i = 0; i < N; ++i) x[i] = exp(x[i] * scale);
    }
  }
};

// body.operator()<N>(c, left) for all of `count` elements, N vectors at a time, of the first of
// which it may touch `left` elements: kLanes, which the compiler sees, but in the last one.
template <typename A, typename Body>
void each_vector(std::int64_t count, const Body& body) {
  constexpr std::int64_t kAll = kLanes<A>;
  std::int64_t c = 0;
  for (; c + kAccumulators * kAll <= count; c += kAccumulators * kAll) {
    body.template operator()<kAccumulators>(c, kAll);
  }
  for (; c + kAll <= count; c += kAll) body.template operator()<1>(c, kAll);
  if (c < count) body.template operator()<1>(c, count - c);
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA
