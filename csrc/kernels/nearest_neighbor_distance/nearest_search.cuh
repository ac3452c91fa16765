// The search for nearest neighbors: all products of rows on tensor cores, of which only the largest
// of every row is kept.
//
// A tile of products serves its rows and its columns, so only pairs of tiles on and above the
// diagonal are computed. The product of two rows is the same number, to the last bit, whichever of
// them is the left factor: equal rows have equal products, and the first of them wins.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/nearest_neighbor_distance/nearest_neighbor_distance.h"

namespace mast_ext::kernels::nearest {

// Offered are rows in ascending order, so that the first of equal ones stays.
__device__ __forceinline__ void offer(NearestCandidate& best, float product, int row) {
  if (!(product > best.product)) return;
  best.product = product;
  best.row = row;
}

// The same in any order.
__device__ __forceinline__ void merge(NearestCandidate& best, const NearestCandidate& other) {
  const bool replaces =
      (other.product > best.product) | ((other.product == best.product) & (other.row < best.row));
  best.product = replaces ? other.product : best.product;
  best.row = replaces ? other.row : best.row;
}

inline constexpr int kSearchThreads = 128;

// A tile of kTile x kTile products, of which each of four warps computes a quarter.
template <typename Number_, int kPlanes_, int kTile_>
struct SearchTile {
  using Number = Number_;
  static constexpr int kPlanes = kPlanes_, kTile = kTile_;
  static constexpr int kDepth = 64 / kPlanes, kStages = 2;
  static_assert(kNearestDepth % kDepth == 0);
  using Operand = SharedOperand<kTile, kDepth, kPlanes>;

  static constexpr int kBlocks = kTile / 32;  // of 16 rows, and of 16 columns, of a warp
  using Sums = WarpSums<kBlocks, kBlocks>;
  static constexpr int kThreadRows = 2 * kBlocks, kThreadColumns = 4 * kBlocks;

  // A thread has rows row() + row_offset(r) and columns column() + column_offset(c) of the tile.
  static __device__ __forceinline__ int row() {
    const int thread = static_cast<int>(threadIdx.x);
    return thread / 64 * (kTile / 2) + thread % 32 / 4;
  }
  static __device__ __forceinline__ int column() {
    const int thread = static_cast<int>(threadIdx.x);
    return thread / 32 % 2 * (kTile / 2) + thread % 4 * 2;
  }
  static __device__ __forceinline__ int row_offset(int r) { return 8 * r; }
  static __device__ __forceinline__ int column_offset(int c) { return c / 2 * 8 + c % 2; }
  static __device__ __forceinline__ float& at(Sums& sums, int r, int c) {
    return sums[r / 2][c / 4][c / 2 % 2][r % 2 * 2 + c % 2];
  }

  // Candidates of the threads that share a row, or a column, lie in the operands' memory. Distances
  // are such that the threads of a warp write to different banks.
  static constexpr int kRowSharers = 8, kColumnSharers = 16;
  static constexpr int kRowStride = kTile + 4, kColumnStride = kTile + 8;
  static constexpr int kCandidates = kRowSharers * kRowStride + kColumnSharers * kColumnStride;
  static constexpr int kSharedBytes = kStages * 2 * Operand::kBytes;
  static_assert(kCandidates * int{sizeof(NearestCandidate)} <= kSharedBytes);

  static __device__ __forceinline__ Operand rows_at(int stage) {
    return {dynamic_shared_memory() + 2 * stage * Operand::kBytes};
  }
  static __device__ __forceinline__ Operand columns_at(int stage) {
    return {dynamic_shared_memory() + (2 * stage + 1) * Operand::kBytes};
  }
};

// Copies the rows of a tile and those that are its columns, kDepth elements at a time.
template <typename Tile>
struct RowCopier {
  using Operand = typename Tile::Operand;
  static constexpr int kRowStep = kSearchThreads / Operand::kPackets;
  static_assert(kRowStep % 8 == 0);  // so that all rows of a thread are swizzled alike

  const typename Tile::Number* from;
  std::int64_t row_step, plane_step, to_columns;  // in elements

  __device__ __forceinline__ RowCopier(const NearestSearch& p, int first_row, int first_column)
      : row_step(kRowStep * p.depth),
        plane_step(p.padded_rows * p.depth),
        to_columns((first_column - first_row) * p.depth) {
    const int row = static_cast<int>(threadIdx.x) / Operand::kPackets;
    const int packet = static_cast<int>(threadIdx.x) % Operand::kPackets;
    from = static_cast<const typename Tile::Number*>(p.planes) + (first_row + row) * p.depth +
           packet * 8;
  }

  __device__ __forceinline__ void start_next(const Operand& rows, const Operand& columns) {
    start(rows, from);
    start(columns, from + to_columns);
    from += Tile::kDepth;
  }

 private:
  __device__ __forceinline__ void start(const Operand& to, const typename Tile::Number* at) const {
    unsigned char* const memory = to.packet(static_cast<int>(threadIdx.x) / Operand::kPackets,
                                            static_cast<int>(threadIdx.x) % Operand::kPackets);
#pragma unroll
    for (int plane = 0; plane < Tile::kPlanes; ++plane) {
#pragma unroll
      for (int i = 0; i < Tile::kTile / kRowStep; ++i) {
        copy_async<16>(memory + plane * Operand::kPartBytes + i * kRowStep * Operand::kRowBytes,
                       at + plane * plane_step + i * row_step, true);
      }
    }
  }
};

// sum += a b, of fragments of 16 rows and, from register `b_at` on, 8 columns.
//
// Two planes: (a + a') (b + b') without a' b', which is beyond the precision. a b' and a' b are
// summed apart, so that their sum is the same if a and b are exchanged. It is a short sum because
// tensor cores truncate when they accumulate, see multiply().
template <typename Number, int kPlanes>
__device__ __forceinline__ void add_product(float (&sum)[4], const Parts<kPlanes>& a,
                                            const Parts<kPlanes>& b, int b_at) {
  if constexpr (kPlanes == 1) {
    multiply_matrices<Number>(sum, a[0], b[0] + b_at);
  } else {
    float part[4] = {}, other[4] = {};
    multiply_matrices<Number>(part, a[0], b[1] + b_at);
    multiply_matrices<Number>(other, a[1], b[0] + b_at);
#pragma unroll
    for (int i = 0; i < 4; ++i) part[i] += other[i];
    multiply_matrices<Number>(part, a[0], b[0] + b_at);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part[i];
  }
}

// sums += rows columns^T
template <typename Tile>
__device__ __forceinline__ void multiply_chunk(typename Tile::Sums& sums,
                                               const typename Tile::Operand& left_rows,
                                               const typename Tile::Operand& right_rows) {
  using Operand = typename Tile::Operand;
  constexpr int kPlanes = Tile::kPlanes, kBlocks = Tile::kBlocks;
  const FragmentReader<Fragment::kLeft, Operand> rows(left_rows, Tile::row() / 8 * 8, 0);
  const FragmentReader<Fragment::kRight, Operand> columns(right_rows, Tile::column() / 8 * 8, 0);
#pragma unroll
  for (int step = 0; step < Tile::kDepth / 16; ++step) {
    Parts<kPlanes> left[kBlocks], right;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) rows.read(left[m], 16 * m, 2 * step);
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      columns.read(right, 16 * n, 2 * step);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          add_product<typename Tile::Number, kPlanes>(sums[m][n][half], left[m], right, 2 * half);
        }
      }
    }
  }
}

// The products of the rows from first_row on and those from first_column on.
template <typename Tile>
__device__ __forceinline__ void multiply_tile(typename Tile::Sums& sums, const NearestSearch& p,
                                              int first_row, int first_column) {
  RowCopier<Tile> copier(p, first_row, first_column);
  copier.start_next(Tile::rows_at(0), Tile::columns_at(0));
  const int chunks = static_cast<int>(p.depth) / Tile::kDepth;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_for_copies();
    __syncthreads();  // this stage has arrived, and no thread still reads the other one
    const int stage = chunk % 2, next = 1 - stage;
    if (chunk + 1 < chunks) copier.start_next(Tile::rows_at(next), Tile::columns_at(next));
    multiply_chunk<Tile>(sums, Tile::rows_at(stage), Tile::columns_at(stage));
  }
}

// Finds the largest products of every row and of every column of a tile. Thread t receives those of
// row t and of column t, as rows of x.
template <typename Tile>
__device__ __forceinline__ void reduce_tile(typename Tile::Sums& sums, const float* row_scale,
                                            const float* column_scale, int first_row,
                                            int first_column, NearestCandidate& of_row,
                                            NearestCandidate& of_column) {
  auto* const by_row = reinterpret_cast<NearestCandidate*>(dynamic_shared_memory());
  auto* const by_column = by_row + Tile::kRowSharers * Tile::kRowStride;
  const auto thread = static_cast<int>(threadIdx.x);
  const int row = Tile::row(), column = Tile::column();
  if (first_row == first_column) {  // no row is its own neighbor
#pragma unroll
    for (int r = 0; r < Tile::kThreadRows; ++r) {
#pragma unroll
      for (int c = 0; c < Tile::kThreadColumns; ++c) {
        if (row + Tile::row_offset(r) == column + Tile::column_offset(c)) {
          Tile::at(sums, r, c) = static_cast<float>(NAN);
        }
      }
    }
  }
  __syncthreads();  // no thread still reads the operands, whose memory is used again

  float scales[Tile::kThreadColumns];
#pragma unroll
  for (int c = 0; c < Tile::kThreadColumns; ++c) {
    scales[c] = column_scale[column + Tile::column_offset(c)];
  }
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r) {
    NearestCandidate best{-INFINITY, 0};
#pragma unroll
    for (int c = 0; c < Tile::kThreadColumns; ++c) {
      offer(best, Tile::at(sums, r, c) * scales[c], Tile::column_offset(c));
    }
    best.row += first_column + column;
    const int sharer = thread / 32 % 2 * 4 + thread % 4;
    by_row[sharer * Tile::kRowStride + row + Tile::row_offset(r)] = best;
  }
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r) scales[r] = row_scale[row + Tile::row_offset(r)];
#pragma unroll
  for (int c = 0; c < Tile::kThreadColumns; c += 2) {
    struct alignas(16) Pair {
      NearestCandidate of[2];
    } pair;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      NearestCandidate best{-INFINITY, 0};
#pragma unroll
      for (int r = 0; r < Tile::kThreadRows; ++r) {
        offer(best, Tile::at(sums, r, c + i) * scales[r], Tile::row_offset(r));
      }
      best.row += first_row + row;
      pair.of[i] = best;
    }
    const int sharer = thread / 64 * 8 + thread % 32 / 4;
    *reinterpret_cast<Pair*>(by_column + sharer * Tile::kColumnStride + column +
                             Tile::column_offset(c)) = pair;
  }
  __syncthreads();
  if (thread < Tile::kTile) {
    of_row = by_row[thread];
#pragma unroll
    for (int i = 1; i < Tile::kRowSharers; ++i)
      merge(of_row, by_row[i * Tile::kRowStride + thread]);
    of_column = by_column[thread];
#pragma unroll
    for (int i = 1; i < Tile::kColumnSharers; ++i) {
      merge(of_column, by_column[i * Tile::kColumnStride + thread]);
    }
  }
}

// Thread blocks are numbered along bands of this many slots, so that those that run at the same
// time read few rows, which stay in the cache.
inline constexpr int kBand = 16;

inline std::int64_t search_blocks(std::int64_t slots) {
  std::int64_t count = 0;
  for (std::int64_t first = 0; first < slots; first += kBand) count += (slots - first) * kBand;
  return count;
}

// Each thread block compares tile pair / span of slot a with tile pair % span of slot b >= a. This
// is launched for one pair after the other, so that candidates are merged in ascending order.
template <typename Number, int kPlanes, int kTile,
          int kMostBytes = SearchTile<Number, kPlanes, kTile>::kSharedBytes>
__global__ void __launch_bounds__(kSearchThreads, kTile == kNearestTile ? 2 : 5 - kPlanes)
    search(DynamicShared<kMostBytes>, NearestSearch p, int pair) {
  using Tile = SearchTile<Number, kPlanes, kTile>;
  const auto slots = static_cast<int>(p.slots), span = static_cast<int>(p.span);
  auto block = static_cast<int>(blockIdx.x);
  int first = 0;
  while (block >= (slots - first) * kBand) {
    block -= (slots - first) * kBand;
    first += kBand;
  }
  const int a = first + block % kBand, b = first + block / kBand;
  const int row_tile = a * span + pair / span, column_tile = b * span + pair % span;
  const int first_row = row_tile * kTile, first_column = column_tile * kTile;
  if (row_tile > column_tile || first_column >= p.padded_rows) return;

  __shared__ float row_scale[kTile], column_scale[kTile];
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < kTile) {
    row_scale[thread] = p.scale[first_row + thread];
    column_scale[thread] = p.scale[first_column + thread];
  }
  typename Tile::Sums sums = {};
  multiply_tile<Tile>(sums, p, first_row, first_column);
  NearestCandidate of_row{-INFINITY, 0}, of_column = of_row;
  reduce_tile<Tile>(sums, row_scale, column_scale, first_row, first_column, of_row, of_column);

  const auto keep = [&](int slot, int row, const NearestCandidate& best, bool is_first) {
    NearestCandidate& known = p.candidates[slot * p.padded_rows + row];
    if (is_first || best.product > known.product) known = best;
  };
  if (thread >= kTile) return;
  keep(b, first_row + thread, of_row, a == b ? pair == 0 : pair % span == 0);
  if (row_tile != column_tile) keep(a, first_column + thread, of_column, pair < span);
}

}  // namespace mast_ext::kernels::nearest
