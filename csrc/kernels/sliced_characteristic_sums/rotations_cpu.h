// Cosines and sines for several vectors at once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// cosine = cos(x), sine = sin(x), within 2 ulp of 1 for |x| < 1e5 (1e4 where the instruction set
// has no fused multiply-add). Up to 4e6 the error is that of an angle that is off by less than an
// ulp of x; beyond, where neighboring floats are a quarter of a turn apart and more, results are
// those of some angle. NaN for NaN and infinity.
template <int N>
inline void rotations(const vec<float> (&x)[N], vec<float> (&cosine)[N], vec<float> (&sine)[N]) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // pi / 2 in parts that are short enough for exact products with numbers of quarter turns.
  constexpr float kQuarter[] = {1.5703125f, 4.837512969970703125e-4f, 7.54978995489188216e-8f};
  constexpr float kEighth = 0.79f;  // a little more than pi / 4
  vec<float> shifted[N], r[N], square[N];
  vec<std::int32_t> quarters[N];
  const auto each = [](const auto& step) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) step(i);
  };
  each([&](int i) { shifted[i] = x[i] * 0.636619772f + kRound; });
  each([&](int i) { std::memcpy(&quarters[i], &shifted[i], sizeof(quarters[i])); });
  each([&](int i) { shifted[i] -= kRound; });
  each([&](int i) { r[i] = x[i] - shifted[i] * kQuarter[0]; });
  each([&](int i) { r[i] = r[i] - shifted[i] * kQuarter[1]; });
  each([&](int i) { r[i] = r[i] - shifted[i] * kQuarter[2]; });
  each([&](int i) { r[i] = r[i] > kEighth ? broadcast(kEighth) : r[i]; });
  each([&](int i) { r[i] = r[i] < -kEighth ? broadcast(-kEighth) : r[i]; });
  each([&](int i) { square[i] = r[i] * r[i]; });
  // Minimax polynomials on |r| <= pi / 4.
  each([&](int i) { sine[i] = square[i] * -1.95152959e-4f + 8.33216087e-3f; });
  each([&](int i) { cosine[i] = square[i] * 2.44331571e-5f - 1.38873163e-3f; });
  each([&](int i) { sine[i] = sine[i] * square[i] - 1.66666546e-1f; });
  each([&](int i) { cosine[i] = cosine[i] * square[i] + 4.16666457e-2f; });
  each([&](int i) { sine[i] = sine[i] * (square[i] * r[i]) + r[i]; });
  each([&](int i) { cosine[i] = cosine[i] * square[i] - 0.5f; });
  each([&](int i) { cosine[i] = cosine[i] * square[i] + 1.0f; });
  each([&](int i) {
    const vec<float> c = cosine[i], s = sine[i];
    const auto odd = (quarters[i] & 1) != 0;
    const vec<float> magnitudes[] = {odd ? s : c, odd ? c : s};
    vec<std::int32_t> bits;
    std::memcpy(&bits, &magnitudes[0], sizeof(bits));
    bits ^= ((quarters[i] + 1) & 2) << 30;
    std::memcpy(&cosine[i], &bits, sizeof(bits));
    std::memcpy(&bits, &magnitudes[1], sizeof(bits));
    bits ^= (quarters[i] & 2) << 30;
    std::memcpy(&sine[i], &bits, sizeof(bits));
  });
}

template <int N>
inline void rotations(const vec<double> (&x)[N], vec<double> (&cosine)[N], vec<double> (&sine)[N]) {
  for (int i = 0; i < N; ++i) {
    double angles[kLanes<double>], sines[kLanes<double>];
    store(angles, x[i]);
    for (int lane = 0; lane < kLanes<double>; ++lane) {
      sines[lane] = std::sin(angles[lane]);
      angles[lane] = std::cos(angles[lane]);
    }
    cosine[i] = load(angles), sine[i] = load(sines);
  }
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA
