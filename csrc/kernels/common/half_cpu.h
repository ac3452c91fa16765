// Loads and stores of whole vectors that convert to and from the accumulation type by vector
// instructions. load_some() and store_some() convert one element at a time, which takes longer for
// a 16-bit row than the arithmetic on it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/common/dtype.h"
#include "kernels/common/simd.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace mast_ext::kernels::MAST_EXT_ISA {

// A vector of 16-bit elements with as many lanes as vec<float>.
struct HalfVector {
  typedef std::uint16_t type __attribute__((vector_size(kVectorBytes / 2)));
};

inline vec<float> widen(const c10::BFloat16* p) {
  HalfVector::type bits;
  std::memcpy(&bits, p, sizeof(bits));
  const vec<std::uint32_t> wide = __builtin_convertvector(bits, vec<std::uint32_t>) << 16;
  vec<float> v;
  std::memcpy(&v, &wide, sizeof(v));
  return v;
}

// Rounds to nearest, ties to even. Every NaN becomes 0x7fc0, as in c10::BFloat16.
inline void narrow(c10::BFloat16* p, vec<float> v) {
  vec<std::uint32_t> bits;
  std::memcpy(&bits, &v, sizeof(bits));
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  bits = v == v ? bits : vec<std::uint32_t>{} + 0x7fc0;
  const auto halves = __builtin_convertvector(bits, HalfVector::type);
  std::memcpy(p, &halves, sizeof(halves));
}

// The 512-bit conversions use the masked intrinsics because g++ 12 has a false warning for the
// unmasked ones.
inline vec<float> widen(const c10::Half* p) {
#ifdef __F16C__
  HalfVector::type bits;
  std::memcpy(&bits, p, sizeof(bits));
#ifdef MAST_EXT_ISA_IS_AVX512
  return (vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
#else
  return (vec<float>)_mm256_cvtph_ps((__m128i)bits);
#endif
#else
  vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = static_cast<float>(p[i]);
  return v;
#endif
}

inline void narrow(c10::Half* p, vec<float> v) {
#ifdef __F16C__
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#ifdef MAST_EXT_ISA_IS_AVX512
  const auto halves = _mm512_maskz_cvtps_ph(0xffff, (__m512)v, kNearest);
#else
  const auto halves = _mm256_cvtps_ph((__m256)v, kNearest);
#endif
  std::memcpy(p, &halves, sizeof(halves));
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i] = static_cast<c10::Half>(v[i]);
#endif
}

template <typename T>
inline vec<accum_t<T>> load_whole(const T* p) {
  if constexpr (std::is_same_v<T, accum_t<T>>) {
    return load(p);
  } else {
    return widen(p);
  }
}

template <typename T>
inline void store_whole(T* p, vec<accum_t<T>> v) {
  if constexpr (std::is_same_v<T, accum_t<T>>) {
    store(p, v);
  } else {
    narrow(p, v);
  }
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA
