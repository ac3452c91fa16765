// How the CUDA kernels of prototype_cross_entropy read and write rows: a warp takes a chunk of a
// row, each lane 16 of its columns.
#pragma once

#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy.h"

namespace mast_ext::kernels::prototype_cuda {

inline constexpr int kChunk = kPrototypeChunkCuda;
inline constexpr int kColumns = kChunk / kWarpSize;  // columns of a lane
inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * kWarpSize;
inline constexpr float kLog2E = 1.44269504f;

// 1 / temperature, computed in double on the host.
struct Inverses {
  float student, teacher;

  explicit Inverses(const PrototypeLogits& p)
      : student(static_cast<float>(1 / p.student_temperature)),
        teacher(static_cast<float>(1 / p.teacher_temperature)) {}
};

template <int Lanes>
__device__ __forceinline__ float group_max(float value) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// Which columns of a chunk a lane has, and which of them exist. kWhole: the chunk is whole and its
// rows of T are aligned, and a lane has groups of columns that fill 16 bytes. Otherwise neighboring
// lanes have neighboring columns.
template <typename T, bool kWhole>
struct Columns {
  static constexpr int kGroup = kWhole ? 16 / sizeof(T) : 1;
  int lane, count;  // `count` columns of the chunk exist

  __device__ __forceinline__ int at(int i) const {
    return (i / kGroup * kWarpSize + lane) * kGroup + i % kGroup;
  }
  __device__ __forceinline__ bool has(int i) const { return kWhole || at(i) < count; }
};

// A lane's columns of one row, as they lie in memory.
template <typename E>
class RawRow {
 public:
  // Columns that do not exist become 0.
  template <typename T, bool kWhole>
  __device__ __forceinline__ void load(const E* row, const Columns<T, kWhole>& columns) {
#pragma unroll
    for (int i = 0; i < kColumns; i += kPacket) {
      if constexpr (kWhole) {
        packets_[i / kPacket].load(row + columns.at(i));
      } else {
#pragma unroll
        for (int j = i; j < i + kPacket; ++j) {
          packets_[i / kPacket].set(j - i, columns.has(j) ? row[columns.at(j)] : E(0.0f));
        }
      }
    }
  }

  __device__ __forceinline__ float operator[](int i) const {
    return packets_[i / kPacket][i % kPacket];
  }

 private:
  static constexpr int kPacket = 16 / sizeof(E);

  RawPacket<E, kPacket> packets_[kColumns / kPacket];
};

// Writes a lane's columns of a row.
template <typename T, bool kWhole>
__device__ __forceinline__ void store_row(const float (&x)[kColumns], T* row,
                                          const Columns<T, kWhole>& columns) {
  constexpr int kGroup = Columns<T, kWhole>::kGroup;
#pragma unroll
  for (int i = 0; i < kColumns; i += kGroup) {
    float group[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) group[j] = x[i + j];
    if (columns.has(i)) write<kGroup>(group, row + columns.at(i));
  }
}

// Prefetches a chunk of a row to the second-level cache; unlike a load, this takes no registers.
template <typename T, bool kWhole>
__device__ __forceinline__ void prefetch([[maybe_unused]] const T* row,
                                         [[maybe_unused]] const Columns<T, kWhole>& columns) {
#ifdef __CUDACC__
  constexpr int kElements = 32 / sizeof(T);  // of a sector, the unit of that cache
  if constexpr (kWhole) {
#pragma unroll
    for (int i = 0; i < kChunk; i += kWarpSize * kElements) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row + i + columns.lane * kElements));
    }
  }
#endif
}

// Reads the rows of an image's students one after the other, ahead of their use.
template <typename T, bool kWhole>
struct StudentRows {
  static constexpr int kAhead = 3;  // rows that are being prefetched
  const PrototypeLogits& p;
  std::int64_t b, first;
  const Columns<T, kWhole>& columns;
  RawRow<T> next;

  __device__ __forceinline__ const T* row(std::int64_t s) const {
    return row_of<T>(p.student, s, b) + first;
  }

  // To be called as early as possible before begin().
  __device__ __forceinline__ void prefetch_first() const {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (s < p.students) prefetch(row(s), columns);
    }
  }
  __device__ __forceinline__ void begin() { next.load(row(0), columns); }

  // Returns row s and starts to load row s + 1. To be called for s = 0, 1, ... after begin().
  __device__ __forceinline__ RawRow<T> take(std::int64_t s) {
    const RawRow<T> taken = next;
    if (s + 1 < p.students) next.load(row(s + 1), columns);
    if (s + kAhead < p.students) prefetch(row(s + kAhead), columns);
    return taken;
  }
};

// y -= center; columns that do not exist become -inf.
template <typename T, bool kWhole>
__device__ __forceinline__ void subtract_center(const PrototypeLogits& p, std::int64_t first,
                                                const Columns<T, kWhole>& columns,
                                                float (&y)[kColumns]) {
  if (p.center != nullptr) {
    RawRow<float> center;
    center.load(static_cast<const float*>(p.center) + first, columns);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) y[i] -= center[i];
  }
  if constexpr (!kWhole) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if (!columns.has(i)) y[i] = -INFINITY;
    }
  }
}

// The largest of a warp's columns, where those that do not exist must be -inf.
__device__ __forceinline__ float row_max(const float (&x)[kColumns]) {
  float max = x[0];
#pragma unroll
  for (int i = 1; i < kColumns; ++i) max = fmaxf(max, x[i]);
  return group_max<kWarpSize>(max);
}

}  // namespace mast_ext::kernels::prototype_cuda
