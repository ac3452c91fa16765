// Tensor-core pieces that every GPU since sm_80 has: one instruction a function, and operands in
// shared memory laid out so that neither writing nor reading them conflicts.
//
// float32 is multiplied as two bfloat16 parts, high + low, with the three products that matter
// (high high, high low, low high): an error of 2^-17 of the factors, where tf32 leaves 2^-11.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>

#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

// ---- Pairs of bfloat16 in a register; the first one is the lower half

__device__ __forceinline__ unsigned pack_bfloat16(float first, float second) {
#ifdef __CUDACC__
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return c10::BFloat16(first).x | static_cast<unsigned>(c10::BFloat16(second).x) << 16;
#endif
}

__device__ __forceinline__ float first_bfloat16(unsigned pair) {
  return std::bit_cast<float>(pair << 16);
}

__device__ __forceinline__ float second_bfloat16(unsigned pair) {
  return std::bit_cast<float>(pair & 0xffff0000u);
}

// 2^x within 2^-22; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDACC__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// ---- Shared memory

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char shared_memory[];
  return shared_memory;
#else
  return reinterpret_cast<unsigned char*>(emulation::shared_memory.data());
#endif
}

// An address in shared memory as the instructions below want it.
#ifdef __CUDACC__
using SharedAddress = unsigned;
__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
#else
using SharedAddress = const unsigned char*;
inline SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(pointer);
}
#endif

// Starts copying kBytes (4 or 16, both ends aligned to it) to shared memory; zeros unless `inside`,
// in which case `from` is not read but still has to be a global address.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  static_assert(kBytes == 4 || kBytes == 16);
#ifdef __CUDACC__
  const int bytes = inside ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
  }
#else
  emulation::start_copy(to, inside ? from : nullptr, kBytes);
#endif
}

// Waits for all copies this thread has started. Others see them after a barrier.
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_all;" ::: "memory");
#else
  emulation::wait_for_copies();
#endif
}

// ---- Instructions of a whole warp

// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 and
// receives elements 2 (l % 4) and the next of row l / 4 of each.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], SharedAddress row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
#else
  emulation::load_matrices(to, row, false);
#endif
}

// The same of the matrices' transposes.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], SharedAddress row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
#else
  emulation::load_matrices(to, row, true);
#endif
}

// sum [16, 8] += a [16, 16] b [16, 8]. Lane l holds, with g = l / 4 and t = 2 (l % 4), elements
//   a    (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8) and each one's right neighbour
//   b    (t, g), (t + 8, g) and each one's lower neighbour
//   sum  (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
__device__ __forceinline__ void multiply_matrices(float (&sum)[4], const unsigned (&a)[4],
                                                  const unsigned* b) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::multiply_matrices(sum, a, b);
#endif
}

// ---- Operands: kRows rows of kDepth bfloat16 elements, and again for the low parts when split

template <int kRows_, int kDepth_, bool kSplit_>
struct SharedOperand {
  static constexpr int kRows = kRows_, kDepth = kDepth_;
  static constexpr bool kSplit = kSplit_;
  static constexpr int kPackets = kDepth / 8;  // of 16 bytes, in a row
  static constexpr int kRowBytes = kDepth * 2, kPartBytes = kRows * kRowBytes;
  static constexpr int kBytes = kPartBytes * (kSplit ? 2 : 1);
  static_assert(kPackets == 4 || kPackets % 8 == 0);

  unsigned char* memory;

  // Eight rows' packets of one column lie in different banks: a row's packets change places, packet
  // p with p ^ swizzle(row).
  static __device__ __forceinline__ int swizzle(int row) {
    return kPackets == 4 ? row / 2 % 4 : row % 8;
  }
  __device__ __forceinline__ unsigned char* packet(int row, int packet) const {
    return memory + row * kRowBytes + (packet ^ swizzle(row)) * 16;
  }

  // Elements 2 * pair and the next of a row.
  __device__ __forceinline__ float2 read_pair(int row, int pair) const {
    const auto* const at = packet(row, pair / 4) + pair % 4 * 4;
    const unsigned high = *reinterpret_cast<const unsigned*>(at);
    const unsigned low = kSplit ? *reinterpret_cast<const unsigned*>(at + kPartBytes) : 0;
    return make_float2(first_bfloat16(high) + first_bfloat16(low),
                       second_bfloat16(high) + second_bfloat16(low));
  }
  __device__ __forceinline__ void write_packet(int row, int at, const float (&values)[8]) const {
    struct alignas(16) Packet {
      unsigned pairs[4];
    } high, low;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float first = values[2 * i], second = values[2 * i + 1];
      high.pairs[i] = pack_bfloat16(first, second);
      if constexpr (kSplit) {
        low.pairs[i] = pack_bfloat16(first - first_bfloat16(high.pairs[i]),
                                     second - second_bfloat16(high.pairs[i]));
      }
    }
    *reinterpret_cast<Packet*>(packet(row, at)) = high;
    if constexpr (kSplit) *reinterpret_cast<Packet*>(packet(row, at) + kPartBytes) = low;
  }
};

// Which of an operand's matrices a lane's address is for, when four make the fragments of 16 x 16
// elements.
enum class Fragment {
  kLeft,       // of rows as the left factor
  kRight,      // of rows as columns of the right factor: two fragments of eight columns
  kRightRows,  // of rows as rows of the right factor: two fragments of eight columns
};

// Reads fragments from around a corner, of which all lanes know the row (a multiple of 16) and the
// packet (of which no bit is set that is set in a packet below). A lane's part of the address is
// made once: what is added to it is known to the compiler.
template <Fragment kFragment, typename Operand>
struct FragmentReader {
  SharedAddress row_address;
  int place;  // in bytes, before a packet's own bits

  __device__ __forceinline__ FragmentReader(const Operand& from, int row, int packet) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool columns = kFragment == Fragment::kRight;
    const int lane_row = columns ? lane / 16 * 8 + lane % 8 : lane % 16;
    const int lane_packet = columns ? lane / 8 % 2 : lane / 16;
    row_address =
        shared_address(from.memory) + (row + lane_row) * Operand::kRowBytes + packet / 8 * 128;
    place = (packet % 8 ^ lane_packet ^ Operand::swizzle(lane_row)) * 16;
  }

  // Of rows [row, row + 16) and packets [packet, packet + 2), counted from the corner.
  __device__ __forceinline__ void read(unsigned (&high)[4], unsigned (&low)[4], int row,
                                       int packet) const {
    const SharedAddress address =
        row_address + (row * Operand::kRowBytes + packet / 8 * 128) + (place ^ packet % 8 * 16);
    if constexpr (kFragment == Fragment::kRightRows) {
      load_matrices_transposed(high, address);
      if constexpr (Operand::kSplit) load_matrices_transposed(low, address + Operand::kPartBytes);
    } else {
      load_matrices(high, address);
      if constexpr (Operand::kSplit) load_matrices(low, address + Operand::kPartBytes);
    }
  }
};

// Writes a lane's elements of sums (see multiply_matrices) as an operand, around a corner as above.
template <typename Operand>
struct FragmentWriter {
  unsigned char* row_memory;
  int place;

  __device__ __forceinline__ FragmentWriter(const Operand& to, int row, int packet) {
    const int lane_row = static_cast<int>(threadIdx.x) % 32 / 4;
    row_memory = to.memory + (row + lane_row) * Operand::kRowBytes + packet / 8 * 128 +
                 static_cast<int>(threadIdx.x) % 4 * 4;
    place = (packet % 8 ^ Operand::swizzle(lane_row)) * 16;
  }

  // Two neighbouring columns' sums of a row (a multiple of 8 from the corner).
  __device__ __forceinline__ void write(int row, int packet, float first, float second) const {
    unsigned char* const to =
        row_memory + (row * Operand::kRowBytes + packet / 8 * 128) + (place ^ packet % 8 * 16);
    const unsigned high = pack_bfloat16(first, second);
    *reinterpret_cast<unsigned*>(to) = high;
    if constexpr (Operand::kSplit) {
      *reinterpret_cast<unsigned*>(to + Operand::kPartBytes) =
          pack_bfloat16(first - first_bfloat16(high), second - second_bfloat16(high));
    }
  }
};

// sum += the products of two fragments of eight columns with one of 16 rows. Low parts of both are
// multiplied with each other where kAll.
template <bool kSplit, bool kAll = false>
__device__ __forceinline__ void multiply_fragments(float (&sum)[2][4], const unsigned (&a)[4],
                                                   const unsigned (&a_low)[4],
                                                   const unsigned (&b)[4],
                                                   const unsigned (&b_low)[4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if constexpr (kSplit) {
      if constexpr (kAll) multiply_matrices(sum[n], a_low, b_low + 2 * n);
      multiply_matrices(sum[n], a_low, b + 2 * n);
      multiply_matrices(sum[n], a, b_low + 2 * n);
    }
    multiply_matrices(sum[n], a, b + 2 * n);
  }
}

// A warp's sums of 16 kM rows and 16 kN columns, in blocks of 16 x 8.
template <int kM, int kN>
using WarpSums = float[kM][kN][2][4];

__device__ __forceinline__ void add_block(float (&to)[2][4], const float (&part)[2][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i / 4][i % 4] += part[i / 4][i % 4];
}

// sum += a[row ...] b[column ...]^T over a depth of 16 kSteps from a packet of both on.
//
// Tensor cores cut off what does not fit a sum. Split factors would feel it in long sums: theirs
// are made of short ones, added up by rounding.
template <int kM, int kN, int kSteps, typename A, typename B>
__device__ __forceinline__ void multiply(WarpSums<kM, kN>& sum, const A& a, int row, const B& b,
                                         int column, int packet) {
  const FragmentReader<Fragment::kLeft, A> rows(a, row, packet);
  const FragmentReader<Fragment::kRight, B> columns(b, column, packet);
  if constexpr (A::kSplit) {
    constexpr int kGroup = kN % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int block = 0; block < kM * kN; block += kGroup) {
      const int m = block / kN, group = block % kN;
      WarpSums<1, kGroup> part = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        unsigned left[4], left_low[4], right[4], right_low[4];
        rows.read(left, left_low, 16 * m, 2 * step);
#pragma unroll
        for (int n = 0; n < kGroup; ++n) {
          columns.read(right, right_low, 16 * (group + n), 2 * step);
          multiply_fragments<true, true>(part[0][n], left, left_low, right, right_low);
        }
      }
#pragma unroll
      for (int n = 0; n < kGroup; ++n) add_block(sum[m][group + n], part[0][n]);
    }
  } else {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      unsigned left[kM][4], right[4];
#pragma unroll
      for (int m = 0; m < kM; ++m) rows.read(left[m], left[m], 16 * m, 2 * step);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        columns.read(right, right, 16 * n, 2 * step);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply_fragments<false>(sum[m][n], left[m], left[m], right, right);
        }
      }
    }
  }
}

// sum += a[row ...] b[:, column ...] over all of a's depth, which is b's rows. `column` is a
// multiple of 16 kN.
template <int kM, int kN, typename A, typename B>
__device__ __forceinline__ void multiply_rows(WarpSums<kM, kN>& sum, const A& a, int row,
                                              const B& b, int column) {
  constexpr bool kSplit = A::kSplit;
  constexpr int kSteps = A::kDepth / 16;
  constexpr int kGroup = !kSplit ? kN : kN % 2 == 0 ? 2 : 1;
  static_assert(A::kDepth == B::kRows);
  const FragmentReader<Fragment::kLeft, A> rows(a, row, 0);
  const FragmentReader<Fragment::kRightRows, B> columns(b, 0, column / 8);
#pragma unroll
  for (int group = 0; group < kN; group += kGroup) {
    WarpSums<kM, kGroup> part = {};  // see multiply()
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      unsigned left[kM][4], left_low[kM][4], right[4], right_low[4];
#pragma unroll
      for (int m = 0; m < kM; ++m) rows.read(left[m], left_low[m], 16 * m, 2 * step);
#pragma unroll
      for (int n = 0; n < kGroup; ++n) {
        columns.read(right, right_low, 16 * step, 2 * (group + n));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply_fragments<kSplit>(kSplit ? part[m][n] : sum[m][group + n], left[m], left_low[m],
                                     right, right_low);
        }
      }
    }
    if constexpr (kSplit) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kGroup; ++n) add_block(sum[m][group + n], part[m][n]);
      }
    }
  }
}

}  // namespace mast_ext::kernels
