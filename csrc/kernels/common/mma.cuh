// Building blocks of matrix products on tensor cores, for every GPU since sm_80: one function per
// instruction, and operands in shared memory in a layout without bank conflicts.
//
// The tensor cores multiply bfloat16 (or float16, for who has numbers in its range). A wider number
// is split into a sum of bfloat16 parts, each of which rounds what the parts before it left over:
// two parts hold a float16 (all 11 bits of its significand), three hold a float32 (all 24 bits;
// tf32 would keep 11). The product of two split numbers is a sum of products of parts, of which
// those too small to matter are left out.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

// ---- Pairs of bfloat16 in one register; the first element is in the lower half

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

// 2^x with a relative error of at most 2^-22; results below 2^-126 become 0.
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
  return emulation::dynamic_shared_memory();
#endif
}

// An address in shared memory, in the form that the instructions below take.
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

// Starts an asynchronous copy of kBytes from global to shared memory; both addresses are aligned to
// kBytes. Unless `inside`, zeros are written and `from` is not read, though it must still be a
// global address.
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
  emulation::start_copy(to, from, kBytes, inside);
#endif
}

// Waits for all copies that the calling thread has started. Other threads see their results after
// the next barrier.
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_all;" ::: "memory");
#else
  emulation::wait_for_copies();
#endif
}

// ---- Instructions that a warp executes together

// Loads four 8x8 matrices of 16-bit elements. Lane l passes the address of row l % 8 of matrix
// l / 8, and receives two neighboring elements of each matrix: 2 (l % 4) and the next of row l / 4.
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

// The same, with each matrix transposed.
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

// sum [16, 8] += a [16, 16] b [16, 8]. With g = l / 4 and t = 2 (l % 4), lane l holds the elements
//   a    (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8), each with its right neighbor
//   b    (t, g), (t + 8, g), each with its lower neighbor
//   sum  (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
// Number: what a and b are made of, bfloat16 or float16.
template <typename Number = c10::BFloat16>
__device__ __forceinline__ void multiply_matrices(float (&sum)[4], const unsigned (&a)[4],
                                                  const unsigned* b) {
  constexpr bool kHalf = std::is_same_v<Number, c10::Half>;
  static_assert(kHalf || std::is_same_v<Number, c10::BFloat16>);
#ifdef __CUDACC__
  if constexpr (kHalf) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  emulation::multiply_matrices(sum, a, b, kHalf);
#endif
}

// ---- Operands in shared memory

// Splits off the next part of two numbers: returns the pair of parts and leaves the remainders in
// `first` and `second`.
__device__ __forceinline__ unsigned take_part(float& first, float& second) {
  const unsigned part = pack_bfloat16(first, second);
  first -= first_bfloat16(part);
  second -= second_bfloat16(part);
  return part;
}

// An operand of kRows rows of kDepth elements. Each of the kParts parts is a matrix of its own; a
// row is stored in packets of eight elements.
template <int kRows_, int kDepth_, int kParts_>
struct SharedOperand {
  static constexpr int kRows = kRows_, kDepth = kDepth_, kParts = kParts_;
  static constexpr int kPackets = kDepth / 8;  // of a row; a packet has 16 bytes
  static constexpr int kRowBytes = kDepth * 2, kPartBytes = kRows * kRowBytes;
  static constexpr int kBytes = kPartBytes * kParts;
  static_assert(kPackets == 4 || kPackets % 8 == 0);

  unsigned char* memory;

  // load_matrices() reads the same packet of eight rows at once, which therefore must lie in
  // different banks: packet p of a row is stored at position p ^ swizzle(row).
  static __device__ __forceinline__ int swizzle(int row) {
    return kPackets == 4 ? row / 2 % 4 : row % 8;
  }
  __device__ __forceinline__ unsigned char* packet(int row, int packet) const {
    return memory + row * kRowBytes + (packet ^ swizzle(row)) * 16;
  }

  // Returns elements 2 * pair and 2 * pair + 1 of a row, the sums of their parts.
  __device__ __forceinline__ float2 read_pair(int row, int pair) const {
    const auto* const at = packet(row, pair / 4) + pair % 4 * 4;
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int part = kParts - 1; part >= 0; --part) {
      const unsigned bits = *reinterpret_cast<const unsigned*>(at + part * kPartBytes);
      sum.x += first_bfloat16(bits);
      sum.y += second_bfloat16(bits);
    }
    return sum;
  }
  // Splits eight values into parts and writes them as packet `at` of a row.
  __device__ __forceinline__ void write_packet(int row, int at, const float (&values)[8]) const {
    struct alignas(16) Packet {
      unsigned pairs[4];
    } packets[kParts];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float first = values[2 * i], second = values[2 * i + 1];
#pragma unroll
      for (Packet& part : packets) part.pairs[i] = take_part(first, second);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      *reinterpret_cast<Packet*>(packet(row, at) + part * kPartBytes) = packets[part];
    }
  }
};

// How multiply_matrices() uses 16 x 16 elements of an operand. This determines in which order, and
// whether transposed, their four 8x8 matrices are loaded.
enum class Fragment {
  kLeft,       // the fragment `a`: 16 rows of the left factor
  kRight,      // two fragments `b`: the operand's rows are columns of the right factor
  kRightRows,  // two fragments `b`: the operand's rows are rows of the right factor
};

// The registers of 16 x 16 elements in one lane, for each part of the operand.
template <int kParts>
using Parts = unsigned[kParts][4];

// Reads fragments at offsets from a corner, which is the same for all lanes of the warp. The
// address of the corner is computed once per lane, so that read() with constant offsets has little
// left to compute.
//
// The corner's row is a multiple of 16. The corner's packet is even and has no bit in common with
// any packet offset, so that adding the offset is an exclusive or, like the swizzle.
template <Fragment kFragment, typename Operand>
struct FragmentReader {
  SharedAddress row_address;
  int packet_bytes;  // swizzled offset of the corner's packet, within the row's 128 bytes

  __device__ __forceinline__ FragmentReader(const Operand& from, int row, int packet) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool columns = kFragment == Fragment::kRight;
    const int lane_row = columns ? lane / 16 * 8 + lane % 8 : lane % 16;
    const int lane_packet = columns ? lane / 8 % 2 : lane / 16;
    row_address =
        shared_address(from.memory) + (row + lane_row) * Operand::kRowBytes + packet / 8 * 128;
    packet_bytes = (packet % 8 ^ lane_packet ^ Operand::swizzle(lane_row)) * 16;
  }

  // Reads rows [row, row + 16) of packets [packet, packet + 2), counted from the corner.
  __device__ __forceinline__ void read(Parts<Operand::kParts>& to, int row, int packet) const {
    const SharedAddress address = row_address + (row * Operand::kRowBytes + packet / 8 * 128) +
                                  (packet_bytes ^ packet % 8 * 16);
#pragma unroll
    for (int part = 0; part < Operand::kParts; ++part) {
      if constexpr (kFragment == Fragment::kRightRows) {
        load_matrices_transposed(to[part], address + part * Operand::kPartBytes);
      } else {
        load_matrices(to[part], address + part * Operand::kPartBytes);
      }
    }
  }
};

// Writes the accumulators of multiply_matrices() into an operand, at offsets from a corner as in
// FragmentReader. Each lane writes the elements that it holds.
template <typename Operand>
struct FragmentWriter {
  unsigned char* row_memory;
  int packet_bytes;

  __device__ __forceinline__ FragmentWriter(const Operand& to, int row, int packet) {
    const int lane_row = static_cast<int>(threadIdx.x) % 32 / 4;
    row_memory = to.memory + (row + lane_row) * Operand::kRowBytes + packet / 8 * 128 +
                 static_cast<int>(threadIdx.x) % 4 * 4;
    packet_bytes = (packet % 8 ^ Operand::swizzle(lane_row)) * 16;
  }

  // Writes the lane's two neighboring elements of a row; `row`, a multiple of 8, and `packet` are
  // counted from the corner.
  __device__ __forceinline__ void write(int row, int packet, float first, float second) const {
    unsigned char* const to = row_memory + (row * Operand::kRowBytes + packet / 8 * 128) +
                              (packet_bytes ^ packet % 8 * 16);
#pragma unroll
    for (int part = 0; part < Operand::kParts; ++part) {
      *reinterpret_cast<unsigned*>(to + part * Operand::kPartBytes) = take_part(first, second);
    }
  }
};

// sum += a b, where `a` is a fragment of 16 rows and `b` holds two fragments of eight columns. Part
// i of a is multiplied by part j of b where i + j <= kOrder; the smallest products are added first.
template <int kOrder, int kA, int kB>
__device__ __forceinline__ void multiply_fragments(float (&sum)[2][4], const Parts<kA>& a,
                                                   const Parts<kB>& b) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int order = kOrder; order >= 0; --order) {
#pragma unroll
      for (int i = kA - 1; i >= 0; --i) {
        if (order - i >= 0 && order - i < kB) {
          multiply_matrices(sum[n], a[i], b[order - i] + 2 * n);
        }
      }
    }
  }
}

// A warp's accumulators for 16 kM rows and 16 kN columns: four per lane for each block of 16 x 8.
template <int kM, int kN>
using WarpSums = float[kM][kN][2][4];

__device__ __forceinline__ void add_block(float (&to)[2][4], const float (&part)[2][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i / 4][i % 4] += part[i / 4][i % 4];
}

// sum += a b for operands of one part, where read_left(to, step) reads fragments of all rows and
// read_right(to, step, n) those of 16 columns. Every fragment is read a block of columns before its
// use and into registers of its own: the tensor cores need not wait for shared memory.
template <int kM, int kN, int kSteps, typename ReadLeft, typename ReadRight>
__device__ __forceinline__ void multiply_ahead(WarpSums<kM, kN>& sum, const ReadLeft& read_left,
                                               const ReadRight& read_right) {
  Parts<1> left[2][kM], right[2];
  read_left(left[0], 0);
  read_right(right[0], 0, 0);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const int at = step * kN + n, next = at + 1;
      if (next < kSteps * kN) read_right(right[next % 2], next / kN, next % kN);
      if (n == (kN - 1) / 2 && step + 1 < kSteps) read_left(left[(step + 1) % 2], step + 1);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_fragments<0>(sum[m][n], left[step % 2][m], right[at % 2]);
      }
    }
  }
}

// sum += a[row ...] b[column ...]^T, over 16 kSteps elements of depth from `packet` on.
//
// Tensor cores truncate when they accumulate. In a long sum the error would exceed the precision of
// split operands; these accumulate short sums, which are then added with correct rounding.
template <int kM, int kN, int kSteps, typename A, typename B>
__device__ __forceinline__ void multiply(WarpSums<kM, kN>& sum, const A& a, int row, const B& b,
                                         int column, int packet) {
  const FragmentReader<Fragment::kLeft, A> rows(a, row, packet);
  const FragmentReader<Fragment::kRight, B> columns(b, column, packet);
  if constexpr (A::kParts > 1) {
    constexpr int kGroup = A::kParts < 3 && kN % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int block = 0; block < kM * kN; block += kGroup) {
      const int m = block / kN, group = block % kN;
      WarpSums<1, kGroup> part = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        Parts<A::kParts> left;
        Parts<B::kParts> right;
        rows.read(left, 16 * m, 2 * step);
#pragma unroll
        for (int n = 0; n < kGroup; ++n) {
          columns.read(right, 16 * (group + n), 2 * step);
          multiply_fragments<2>(part[0][n], left, right);
        }
      }
#pragma unroll
      for (int n = 0; n < kGroup; ++n) add_block(sum[m][group + n], part[0][n]);
    }
  } else {
    multiply_ahead<kM, kN, kSteps>(
        sum,
        [&](Parts<1>(&to)[kM], int step) {
#pragma unroll
          for (int m = 0; m < kM; ++m) rows.read(to[m], 16 * m, 2 * step);
        },
        [&](Parts<1>& to, int step, int n) { columns.read(to, 16 * n, 2 * step); });
  }
}

// sum += a[row ...] b, over all of a's depth, which is the number of b's rows. The columns of b are
// taken in kN blocks of 16, the first of which begins at `column` (0 or 16) and each other one 32
// columns after the one before.
template <int kM, int kN, typename A, typename B>
__device__ __forceinline__ void multiply_rows(WarpSums<kM, kN>& sum, const A& a, int row,
                                              const B& b, int column) {
  constexpr int kSteps = A::kDepth / 16;
  static_assert(A::kDepth == B::kRows);
  const FragmentReader<Fragment::kLeft, A> rows(a, row, 0);
  const FragmentReader<Fragment::kRightRows, B> columns(b, 0, column / 8);
  const auto read_left = [&](Parts<A::kParts>(&to)[kM], int step) {
#pragma unroll
    for (int m = 0; m < kM; ++m) rows.read(to[m], 16 * m, 2 * step);
  };
  if constexpr (A::kParts > 1) {
    constexpr int kGroup = kN % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int group = 0; group < kN; group += kGroup) {
      WarpSums<kM, kGroup> part = {};  // see multiply()
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        Parts<A::kParts> left[kM];
        Parts<B::kParts> right;
        read_left(left, step);
#pragma unroll
        for (int n = 0; n < kGroup; ++n) {
          columns.read(right, 16 * step, 4 * (group + n));
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            multiply_fragments<A::kParts - 1>(part[m][n], left[m], right);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kGroup; ++n) add_block(sum[m][group + n], part[m][n]);
      }
    }
  } else {
    multiply_ahead<kM, kN, kSteps>(
        sum, read_left, [&](Parts<1>& to, int step, int n) { columns.read(to, 16 * step, 4 * n); });
  }
}

// A left factor of 16 kM rows and depth 16 kSteps that a warp holds in registers.
template <int kM, int kSteps>
using LeftFragments = Parts<1>[kM][kSteps];

// sum += a b, with all rows and the first 16 kN columns of b.
template <int kM, int kN, int kSteps, typename B>
__device__ __forceinline__ void multiply_rows(WarpSums<kM, kN>& sum,
                                              const LeftFragments<kM, kSteps>& a, const B& b) {
  static_assert(B::kRows == 16 * kSteps && B::kDepth >= 16 * kN);
  const FragmentReader<Fragment::kRightRows, B> columns(b, 0, 0);
  multiply_ahead<kM, kN, kSteps>(
      sum,
      [&](Parts<1>(&to)[kM], int step) {
#pragma unroll
        for (int i = 0; i < 4 * kM; ++i) to[i / 4][0][i % 4] = a[i / 4][step][0][i % 4];
      },
      [&](Parts<1>& to, int step, int n) { columns.read(to, 16 * step, 2 * n); });
}

}  // namespace mast_ext::kernels
