// Vectors as wide as the registers of the instruction set that a CPU kernel is compiled for, and
// exp, log and log1p of them. Arithmetic is that of GCC's vector extension; intrinsics are used
// only where it has no equivalent.
//
// Kernels that copy rows into their own memory pad them with zeros to a multiple of kPad elements,
// so that their loops need no remainder on any instruction set. exp, log and log1p propagate NaN
// and infinity; in float they are within 2 ulp, in double they call libm.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#ifndef MAST_EXT_MANYLINUX
#error "csrc/cmake/manylinux.h must be included first; without precompiled headers by -include"
#endif
#ifndef MAST_EXT_ISA
#error "included by *_cpu.cpp only, which csrc/cmake/cpu_kernels.cmake compiles per instruction set"
#endif

namespace mast_ext::kernels::MAST_EXT_ISA {

#if defined(MAST_EXT_ISA_IS_AVX512)
inline constexpr int kVectorBytes = 64;
#elif defined(MAST_EXT_ISA_IS_AVX2)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using vec = typename VectorOf<T>::type;

template <typename T>
inline constexpr int kLanes = kVectorBytes / sizeof(T);

// Whether loops are also compiled for several rows, masks or vectors at once. Doubles serve
// gradient checks: for them the one general form is enough, and takes a fraction of the time to
// compile.
template <typename A>
inline constexpr bool kSpecializes = std::is_same_v<A, float>;

// A multiple of every vector width, in elements.
inline constexpr std::int64_t kPad = 16;

inline std::int64_t padded(std::int64_t dim) { return (dim + kPad - 1) / kPad * kPad; }

template <typename T>
inline vec<T> load(const T* p) {
  vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* p, vec<T> v) {
  std::memcpy(p, &v, sizeof(v));
}

template <typename T>
inline vec<T> broadcast(T value) {
  return value - vec<T>{};
}

// The larger of a and b in each lane; b where either is NaN. An intrinsic, because the compiler
// turns the comparison below into two instructions where the processor needs one.
inline vec<float> larger(vec<float> a, vec<float> b) {
#if defined(MAST_EXT_ISA_IS_AVX512)
  return _mm512_maskz_max_ps(0xffff, a, b);  // GCC 12 has a false warning for the unmasked one
#elif defined(MAST_EXT_ISA_IS_AVX2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
inline vec<double> larger(vec<double> a, vec<double> b) { return a > b ? a : b; }

// A streaming (non-temporal) store, for results that are not read again soon: it does not read the
// cache line first, and evicts no other line. `p` must be aligned to the vector. Before other
// threads may read the results, this thread calls stores_done().
inline void stream_store(float* p, vec<float> v) {
#if defined(MAST_EXT_ISA_IS_AVX512)
  _mm512_stream_ps(p, v);
#elif defined(MAST_EXT_ISA_IS_AVX2)
  _mm256_stream_ps(p, v);
#else
  store(p, v);
#endif
}
inline void stream_store(double* p, vec<double> v) { store(p, v); }

inline void stores_done() {
#if defined(MAST_EXT_ISA_IS_AVX512) || defined(MAST_EXT_ISA_IS_AVX2)
  _mm_sfence();
#endif
}

// While an object of this class lives, denormal results and operands are 0 in the calling thread.
// Exponentials produce many denormals, and processors are many times slower on them.
class FlushDenormals {
#if defined(__SSE2__)
 public:
  FlushDenormals() { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  const unsigned saved_ = _mm_getcsr();
#endif
};

// The sum of all lanes, in a fixed order.
template <typename T>
inline T sum_lanes(vec<T> v) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// x * 2^n, in two multiplications, since 2^n alone may be out of a float's range.
inline vec<float> scale_by_power(vec<float> x, vec<std::int32_t> n) {
  const vec<std::int32_t> half = n >> 1;
  const vec<std::int32_t> low = (half + 127) << 23, high = (n - half + 127) << 23;
  vec<float> a, b;
  std::memcpy(&a, &low, sizeof(a));
  std::memcpy(&b, &high, sizeof(b));
  return x * a * b;
}

inline vec<float> exp(vec<float> x) {
  // Beyond these limits the result is 0 or infinity anyway. A NaN fails both comparisons and stays.
  x = x < -104.0f ? broadcast(-104.0f) : x;
  x = x > 89.0f ? broadcast(89.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const vec<float> shifted = x * 1.44269504f + kRound;
  vec<std::int32_t> n;
  std::memcpy(&n, &shifted, sizeof(n));
  n -= 0x4B400000;
  const vec<float> whole = shifted - kRound;
  const vec<float> r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
  // Taylor polynomial of degree 7 on |r| <= log(2) / 2; its truncation error is below 1 ulp.
  vec<float> p = broadcast(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return scale_by_power(p, n);
}

// log(1 + u) = 2 atanh(u / (2 + u)) for u in [0, 1]. The leading term of the series is exact for
// small u.
inline vec<float> log1p_unit(vec<float> u) {
  const vec<float> z = u / (u + 2.0f), z2 = z * z;
  vec<float> p = broadcast(1.0f / 15);
  p = p * z2 + 1.0f / 13;
  p = p * z2 + 1.0f / 11;
  p = p * z2 + 1.0f / 9;
  p = p * z2 + 1.0f / 7;
  p = p * z2 + 1.0f / 5;
  p = p * z2 + 1.0f / 3;
  return 2.0f * (z + z * z2 * p);
}

// log(x) = n log(2) + log(m) for x >= 0 that is not denormal, where x = 2^n m and m is in
// [sqrt(1/2), sqrt(2)); log(m) is the series of log1p_unit().
inline vec<float> log(vec<float> x) {
  constexpr std::int32_t kRootHalf = 0x3F3504F3;
  vec<std::int32_t> bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const vec<std::int32_t> n = (bits - kRootHalf) >> 23;
  bits -= n << 23;
  vec<float> m;
  std::memcpy(&m, &bits, sizeof(m));
  const vec<float> z = (m - 1.0f) / (m + 1.0f), z2 = z * z;
  vec<float> p = broadcast(1.0f / 11);
  p = p * z2 + 1.0f / 9;
  p = p * z2 + 1.0f / 7;
  p = p * z2 + 1.0f / 5;
  p = p * z2 + 1.0f / 3;
  const vec<float> whole = __builtin_convertvector(n, vec<float>);
  const vec<float> low = 2.0f * (z + z * z2 * p) + whole * -2.12194440e-4f;
  const vec<float> result = whole * 0.693359375f + low;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return x == 0.0f ? broadcast(-kInfinity) : x < kInfinity ? result : x;
}

inline vec<double> exp(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

inline vec<double> log(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log(x[i]);
  return x;
}

inline vec<double> log1p_unit(vec<double> u) {
  for (int i = 0; i < kLanes<double>; ++i) u[i] = std::log1p(u[i]);
  return u;
}

// A buffer of the calling thread with room for `count` elements, aligned to 64 bytes. It is kept
// from call to call: the page faults of new memory would cost more than the arithmetic on it.
// Buffers that are in use at the same time have different `Tag`s.
template <typename T, typename Tag>
inline T* scratch(std::int64_t count) {
#ifdef __SANITIZE_ADDRESS__
  // Every call gets new memory of the exact size, filled with NaN, so that reads out of bounds and
  // reads of elements that were not written are detected.
  thread_local std::unique_ptr<void, void (*)(void*)> fresh(nullptr, std::free);
  const std::size_t bytes = count * sizeof(T);
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes) != 0) throw std::bad_alloc();
  fresh.reset(std::memset(memory, 0xff, bytes));
  return static_cast<T*>(memory);
#else
  thread_local std::vector<T> buffer;
  constexpr std::int64_t kAlignment = 64 / sizeof(T);
  if (static_cast<std::int64_t>(buffer.size()) < count + kAlignment) {
    buffer.resize(count + kAlignment);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
  return buffer.data() + (64 - address % 64) % 64 / sizeof(T);
#endif
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA
