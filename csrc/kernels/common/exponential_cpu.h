// Exponentials of differences from a maximum, which are never positive, for several vectors at
// once, and the loop that walks a row that many vectors at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// Vectors that take each step of a computation together. One vector after the other would take
// twice the time: every step waits for the result of the one before, and the processor's scheduler
// is too small to overlap whole vectors by itself.
inline constexpr int kAccumulators = 4;

// Replaces every x <= 0 by 2^(scale * x), within 2 ulp where the instruction set has fused
// multiply-add. Results below 2^-126 become 0; NaN stays NaN.
template <int N>
inline void exp2_below_one(vec<float> (&x)[N], float scale) {
  // 1.5 * 2^23 + 127: adding it rounds to an integer, whose value plus 127 (the bias of a float's
  // exponent) is then in the lowest bits.
  constexpr float kRound = 12582912.0f + 127;
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
  // Minimax polynomial of 2^x on |x| <= 1/2 with p(0) = 1; its relative error is 2e-9.
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

// Replaces every x <= 0, up to rounding, by exp(x / temperature).
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

// Walks `count` elements by calls body.operator()<N>(c, left), which handle N vectors from element
// c on. `left` is the number of elements in each of the N vectors: kLanes, a compile-time constant
// after inlining, except in the last call, where N is 1 and the vector may be incomplete.
template <typename A, typename Body>
void each_vector(std::int64_t count, const Body& body) {
  constexpr std::int64_t kAll = kLanes<A>;
  std::int64_t c = 0;
  if constexpr (kSpecializes<A>) {
    for (; c + kAccumulators * kAll <= count; c += kAccumulators * kAll) {
      body.template operator()<kAccumulators>(c, kAll);
    }
  }
  for (; c + kAll <= count; c += kAll) body.template operator()<1>(c, kAll);
  if (c < count) body.template operator()<1>(c, count - c);
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA
