// nearest_neighbor_distance: for every row of x [N, D] the other row with the largest cosine, and
// the distance of the two after normalization.
//
//   u_i        = r_i x_i                      r_i = 1 / max(|x_i|, eps)
//   n(i)       = argmax_{j != i} <u_i, u_j>   the first on ties; a number wins over NaN
//   distance_i = |v_i|                        v_i = u_i - u_n(i) + eps, in every dimension
//
// Backward. With g the gradient of the distance and c_i = g_i / distance_i (0 where that is 0),
//
//   G_i      = c_i v_i - sum_{j: n(j) = i} c_j v_j     j ascending
//   grad x_i = r_i (G_i - u_i <u_i, G_i>)              r_i G_i where |x_i| < eps
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them. On the CPU the host code computes the products tile by tile; on CUDA a kernel does.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// ---- Forward; everything but x is in accum_t

// unit[i] = u_i, inv_norm[i] = r_i
struct UnitRows {
  DType dtype;
  std::int64_t rows, dim;  // N, D
  const void* x;           // [N, D], D dense
  std::int64_t row_stride;
  double eps;
  void* unit;      // [N, D]; CPU
  void* inv_norm;  // [N]
};

// A tile of products <u_i, u_j> on or above the diagonal. It updates the neighbors of its rows and,
// off the diagonal, of its columns. Tiles must come in the order of first_row, then first_column,
// so that the first of equal cosines wins.
struct NearestTile {
  DType dtype;
  std::int64_t first_row, rows, first_column, columns;
  const void* products;  // [rows, columns]
  std::int64_t stride;   // between its rows
  void* cosine;          // [N], the largest so far; NaN at the start
  std::int64_t* index;   // [N], the row with this cosine
};

struct NeighborDistances {
  DType dtype;
  std::int64_t rows, dim;
  const void* unit;  // CPU
  double eps;
  const void* cosine;   // [N]; CPU
  std::int64_t* index;  // [N]; written where all cosines are NaN: the first other row
  void* distance;       // [N]
};

// Rows [begin, end).
void unit_rows_cpu(const UnitRows& p, std::int64_t begin, std::int64_t end);
void neighbor_distances_cpu(const NeighborDistances& p, std::int64_t begin, std::int64_t end);
// Rows, or columns, [begin, end) of the tile.
void nearest_tile_rows_cpu(const NearestTile& p, std::int64_t begin, std::int64_t end);
void nearest_tile_columns_cpu(const NearestTile& p, std::int64_t begin, std::int64_t end);

// ---- Forward on CUDA
//
// The search multiplies 16-bit numbers on tensor cores. What it multiplies is not u, but x divided
// by a power of two near its norm:
//
//   u_i = s_i y_i    1 <= s_i < 2
//
// So y_i has the digits of x_i: bfloat16 and float16 rows stay in their type, a float32 row becomes
// the sum of two planes of float16, which hold 22 bits. (float16 is scaled up by 2^15, its products
// by 2^30.) The nearest neighbor of i is the j with the largest s_j <y_i, y_j>.

// Of a row: its largest s_j <y_i, y_j> with a share of the rows, and that j. A product of -inf: all
// are NaN.
struct alignas(8) NearestCandidate {
  float product;
  std::int32_t row;
};

// The rows are divided into tiles, and `span` neighboring tiles are a slot. The candidates of a row
// are the best of each slot.
struct NearestSearch {
  std::int64_t padded_rows;  // whole tiles
  std::int64_t depth;        // D and zeros behind it
  std::int64_t tile, span, slots;
  void* planes;                  // [planes, padded_rows, depth], 16-bit numbers: y
  float* scale;                  // [padded_rows]: s, and NaN behind the last row
  NearestCandidate* candidates;  // [slots, padded_rows]
};

inline constexpr std::int64_t kNearestTile = 128, kSmallNearestTile = 64;
// Up to so many rows, there are more multiprocessors than pairs of large tiles.
inline constexpr std::int64_t kMostRowsInSmallTiles = 2816;
inline constexpr std::int64_t kMostNearestSlots = 128;  // 1 KB of candidates per row
inline constexpr std::int64_t kNearestDepth = 64;       // which divides `depth`

inline std::int64_t nearest_planes(DType dtype) { return dtype == DType::kFloat32 ? 2 : 1; }

// All but the pointers, for N >= 2 rows and at most so many slots.
inline NearestSearch plan_nearest_search(std::int64_t rows, std::int64_t dim,
                                         std::int64_t most_rows_in_small_tiles,
                                         std::int64_t most_slots) {
  const auto quotient = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  NearestSearch plan{};
  plan.tile = rows <= most_rows_in_small_tiles ? kSmallNearestTile : kNearestTile;
  const std::int64_t tiles = quotient(rows, plan.tile);
  plan.padded_rows = tiles * plan.tile;
  plan.depth = quotient(dim, kNearestDepth) * kNearestDepth;
  plan.span = quotient(tiles, most_slots);
  plan.slots = quotient(tiles, plan.span);
  return plan;
}

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted. The
// normalized rows are neither written nor read, nor is the cosine of `distances`.
[[gnu::weak]] int nearest_neighbor_distance_cuda(const UnitRows& rows, const NearestSearch& search,
                                                 const NeighborDistances& distances,
                                                 CUstream_st* stream);

// ---- Backward

// Normalized rows are rounded before they are subtracted: with a fused multiply-add, the difference
// of two equal rows would be a rounding error as large as eps, instead of 0. The CPU reads the rows
// that UnitRows wrote, CUDA multiplies again.
struct NearestNeighborDistanceBackward {
  DType dtype;             // of grad_x; the others are in accum_t
  std::int64_t rows, dim;  // N, D
  const void* unit;        // [N, D]; CPU
  double eps;
  const void* inv_norm;              // [N]
  const void* distance;              // [N]
  const void* grad_distance;         // [N]
  const std::int64_t* index;         // [N], n(i)
  const std::int64_t* sorted_index;  // [N], n(i) in ascending order; null if `order` is not sorted
  const std::int64_t* order;         // [N], the i of each sorted_index; ascending for equal ones
  void* grad_x;                      // [N, D]

  // n(i), clamped to existing rows, since a caller may pass any index.
  MAST_EXT_HD std::int64_t neighbor(std::int64_t i) const {
    const std::int64_t n = index[i];
    return n < 0 ? 0 : n < rows ? n : rows - 1;
  }

  // The position in `order` of the first row whose neighbor is i.
  MAST_EXT_HD std::int64_t first_follower(std::int64_t i) const {
    std::int64_t begin = 0, end = rows;
    while (begin < end) {
      const std::int64_t middle = (begin + end) / 2;
      if (sorted_index[middle] < i) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }

  template <typename A>
  MAST_EXT_HD A coefficient(std::int64_t i) const {
    const A d = static_cast<const A*>(distance)[i];
    return d == 0 ? A{0} : static_cast<const A*>(grad_distance)[i] / d;
  }
};

void nearest_neighbor_distance_backward_cpu(const NearestNeighborDistanceBackward& p,
                                            std::int64_t begin, std::int64_t end);

// CUDA work space. The followers of row i are order[first[i]] to order[first[i + 1]].
struct NearestFollowers {
  std::int64_t* first;  // [N + 1]
  // [N], the memory of the `order` above, to be filled in. Null: that is sorted already.
  std::int64_t* order;
};

// Up to so many rows it takes less time to count, for each one, all those before it in the order.
inline constexpr std::int64_t kMostCountedFollowers = 8192;

// Queues on `stream`, like the forward pass.
[[gnu::weak]] int nearest_neighbor_distance_backward_cuda(const UnitRows& rows,
                                                          const NearestNeighborDistanceBackward& p,
                                                          const NearestFollowers& followers,
                                                          CUstream_st* stream);

}  // namespace mast_ext::kernels
