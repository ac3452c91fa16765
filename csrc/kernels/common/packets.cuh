// Loads and stores of N neighboring elements by one instruction.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/common/dtype.h"
#include "kernels/common/mma.cuh"
#include "kernels/common/views.h"

namespace mast_ext::kernels {

template <typename T, int N>
struct alignas(sizeof(T) * N) Packet {
  T value[N];
};

template <int N, typename T>
__device__ __forceinline__ void read(const T* from, float (&to)[N]) {
  const auto packet = *reinterpret_cast<const Packet<T, N>*>(from);
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] = static_cast<float>(packet.value[n]);
}

template <typename T, int N>
__device__ __forceinline__ Packet<T, N> packet_of(const T (&from)[N]) {
  Packet<T, N> packet;
#pragma unroll
  for (int n = 0; n < N; ++n) packet.value[n] = from[n];
  return packet;
}

// Stores neighboring registers to global memory, up to four by one instruction. The compiler would
// store a struct in several pieces where it loses sight of the address's alignment.
template <int kWords>
__device__ __forceinline__ void write_words(const float (&words)[kWords], void* to) {
  static_assert(kWords == 1 || kWords == 2 || kWords % 4 == 0);
#ifdef __CUDACC__
  const auto address = __cvta_generic_to_global(to);
  if constexpr (kWords == 1) {
    asm volatile("st.global.f32 [%0], %1;" ::"l"(address), "f"(words[0]) : "memory");
  } else if constexpr (kWords == 2) {
    asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(words[0]), "f"(words[1])
                 : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address + i * sizeof(float)),
                   "f"(words[i]), "f"(words[i + 1]), "f"(words[i + 2]), "f"(words[i + 3])
                   : "memory");
    }
  }
#else
  emulation::require_global(to, "target of a store to global memory");
  for (int i = 0; i < kWords; ++i) static_cast<float*>(to)[i] = words[i];
#endif
}

// `to` is in global memory; what goes to shared memory is a Packet.
template <int N, typename T>
__device__ __forceinline__ void write(const float (&from)[N], T* to) {
  if constexpr (sizeof(T) == 4) {
    write_words(from, to);
  } else if constexpr (N == 1) {
    *to = static_cast<T>(from[0]);  // of 16 bits
  } else {
    float pairs[N / 2];
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      if constexpr (std::is_same_v<T, c10::BFloat16>) {
        pairs[n / 2] = std::bit_cast<float>(pack_bfloat16(from[n], from[n + 1]));
      } else {
        const unsigned first = std::bit_cast<unsigned short>(static_cast<T>(from[n]));
        const unsigned second = std::bit_cast<unsigned short>(static_cast<T>(from[n + 1]));
        pairs[n / 2] = std::bit_cast<float>(first | second << 16);
      }
    }
    write_words(pairs, to);
  }
}

// N neighboring elements as they lie in memory, two 16-bit ones in a register, and converted where
// they are used: many packets can be on their way.
template <typename T, int N>
class RawPacket {
 public:
  __device__ __forceinline__ void load(const T* from) {
    words_ = *reinterpret_cast<const Packet<Word, kWords>*>(from);
  }

  // Elements are set in order, from the first on.
  __device__ __forceinline__ void set(int i, T value) {
    if constexpr (sizeof(T) == 4) {
      words_.value[i] = std::bit_cast<unsigned>(value);
    } else {
      const Word bits = std::bit_cast<unsigned short>(value);
      words_.value[i / 2] = i % 2 == 0 ? bits : words_.value[i / 2] | bits << 16;
    }
  }

  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return std::bit_cast<float>(words_.value[i]);
    } else if constexpr (std::is_same_v<T, c10::BFloat16>) {  // the upper half of a float
      const unsigned word = words_.value[i / 2];
      return std::bit_cast<float>(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
    } else {
      const auto bits = static_cast<unsigned short>(words_.value[i / 2] >> i % 2 * 16);
      return static_cast<float>(std::bit_cast<T>(bits));
    }
  }

 private:
  using Word = std::conditional_t<sizeof(T) * N % 4 == 0, unsigned, unsigned short>;
  static constexpr int kWords = sizeof(T) * N / sizeof(Word);

  Packet<Word, kWords> words_;
};

// Whether the address is a multiple of `bytes`.
inline bool aligned(const void* data, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

// Whether every row begins at a multiple of `count` elements, each of `element` bytes.
inline bool aligned(const Views& views, std::int64_t element, std::int64_t count) {
  return aligned(views.data, element * count) && views.view_stride % count == 0 &&
         views.batch_stride % count == 0;
}

}  // namespace mast_ext::kernels
