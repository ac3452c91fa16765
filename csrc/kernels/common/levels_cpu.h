// What the kernels that render views share: numbers for arithmetic on levels, the integers that
// pixels are, and what separable filters of them are made of: first along rows, then along columns.
//
// Pixels are levels again after every operation, and weights of filters are multiples of a power of
// two, so that all sums in them are exact: results do not depend on the order of summation. Files
// that include this are compiled without contraction to fused multiply-adds, too (CMakeLists.txt):
// the same pixels come from every instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// The type of arithmetic on levels of type L, and the bits of numbers in filters: of a weight
// before all are made to sum to 1, of a weight then, and behind the point of a level between two
// filters.
template <typename L>
struct Levels;
template <>
struct Levels<std::uint8_t> {
  using Number = float;
  static constexpr float kTop = 255;
  // A weight and a level have 13 + 8 bits together, and those of the second filter, with the
  // fraction, 13 + 8 + 3: all that a float has.
  static constexpr int kRawBits = 16, kWeightBits = 13, kFractionBits = 3;
};
template <>
struct Levels<std::uint16_t> {
  using Number = double;
  static constexpr double kTop = 65535;
  static constexpr int kRawBits = 30, kWeightBits = 24, kFractionBits = 8;
};
template <typename L>
using number_t = typename Levels<L>::Number;

// To the nearest integer, ties to even, of a number or a vector of numbers of type T: behind this
// one there is no room for a fraction.
template <typename T, typename V>
V rounded(V value) {
  constexpr T kNoFraction = std::is_same_v<T, float> ? 0x1.8p23 : 0x1.8p52;
  return (value + kNoFraction) - kNoFraction;
}

// A number, or a vector of them, between two filters, which keeps some fractional bits. Rounded
// weights may sum to more than 1.
template <typename L, typename V>
V between_filters(V sum) {
  using T = number_t<L>;
  constexpr T kFraction = 1 << Levels<L>::kFractionBits, kMost = Levels<L>::kTop * kFraction;
  const V fixed = rounded<T>(sum * kFraction), most = V{} + kMost;
  return (fixed < most ? fixed : most) * (1 / kFraction);
}

// Numbers that a filter works on at a time.
inline constexpr int kLine = 32;

template <typename T>
struct Line {
  vec<T> parts[kLine / kLanes<T>];
};

// Element i is the sum of weights[k] * input[k * stride + i] over all k < count.
template <typename T>
Line<T> weighted_sum(const T* weights, std::int64_t count, const T* input, std::int64_t stride) {
  Line<T> sum{};
  for (std::int64_t k = 0; k < count; ++k) {
    const T* at = input + k * stride;
    for (vec<T>& part : sum.parts) {
      part += weights[k] * load(at);
      at += kLanes<T>;
    }
  }
  return sum;
}

// Stores the levels of a line of sums behind the last filter, or the first `count` of them.
template <typename L>
void store_levels(const Line<number_t<L>>& sum, std::int64_t count, L* to) {
  using T = number_t<L>;
  T numbers[kLine];
  std::memcpy(numbers, sum.parts, sizeof(numbers));
  L levels[kLine];
  for (int i = 0; i < kLine; ++i) {
    const auto level = static_cast<std::int32_t>(rounded<T>(numbers[i]));
    levels[i] = static_cast<L>(std::min(std::max(level, 0), static_cast<int>(Levels<L>::kTop)));
  }
  std::memcpy(to, levels, std::min<std::int64_t>(count, kLine) * sizeof(L));
}

inline std::int64_t whole_lines(std::int64_t count) { return (count + kLine - 1) / kLine * kLine; }

}  // namespace mast_ext::kernels::MAST_EXT_ISA
