// Loads and stores of N neighboring elements by one instruction.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

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

template <int N, typename T>
__device__ __forceinline__ void write(const float (&from)[N], T* to) {
  Packet<T, N> packet;
#pragma unroll
  for (int n = 0; n < N; ++n) packet.value[n] = static_cast<T>(from[n]);
  *reinterpret_cast<Packet<T, N>*>(to) = packet;
}

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
