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
  void* unit;      // [N, D]
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
  const void* unit;
  double eps;
  const void* cosine;   // [N]
  std::int64_t* index;  // [N]; written where all cosines are NaN: the first other row
  void* distance;       // [N]
};

// Rows [begin, end).
void unit_rows_cpu(const UnitRows& p, std::int64_t begin, std::int64_t end);
void neighbor_distances_cpu(const NeighborDistances& p, std::int64_t begin, std::int64_t end);
// Rows, or columns, [begin, end) of the tile.
void nearest_tile_rows_cpu(const NearestTile& p, std::int64_t begin, std::int64_t end);
void nearest_tile_columns_cpu(const NearestTile& p, std::int64_t begin, std::int64_t end);

// CUDA work space. A thread block compares a tile of rows with one of the splits of the columns.
struct NearestSplits {
  std::int64_t splits;
  float* cosine;        // [splits, N]
  std::int64_t* index;  // [splits, N]
};

inline constexpr std::int64_t kNearestTile = 64;

// As many as give every multiprocessor of a large GPU a thread block or two.
inline std::int64_t nearest_splits(std::int64_t rows) {
  constexpr std::int64_t kBlocks = 264;
  const std::int64_t tiles = (rows + kNearestTile - 1) / kNearestTile;
  return std::clamp<std::int64_t>((kBlocks + tiles - 1) / tiles, 1, tiles);
}

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted. The
// cosine of `distances` is not read.
[[gnu::weak]] int nearest_neighbor_distance_cuda(const UnitRows& unit, const NearestSplits& splits,
                                                 const NeighborDistances& distances,
                                                 CUstream_st* stream);

// ---- Backward

// Reads the rows that UnitRows wrote. If it computed them on the fly, fused multiply-adds would
// make the difference of two equal rows a rounding error as large as eps, instead of 0.
struct NearestNeighborDistanceBackward {
  DType dtype;             // of grad_x; the others are in accum_t
  std::int64_t rows, dim;  // N, D
  const void* unit;        // [N, D]
  double eps;
  const void* inv_norm;              // [N]
  const void* distance;              // [N]
  const void* grad_distance;         // [N]
  const std::int64_t* index;         // [N], n(i)
  const std::int64_t* sorted_index;  // [N], n(i) in ascending order
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
[[gnu::weak]] int nearest_neighbor_distance_backward_cuda(const UnitRows& unit,
                                                          const NearestNeighborDistanceBackward& p,
                                                          CUstream_st* stream);

}  // namespace mast_ext::kernels
