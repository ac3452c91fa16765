// Passes over embeddings [V, N, D] that reduce or standardize columns along the batch axis N, for
// variance_covariance and cross_correlation_penalty, before and after their matrix products.
//
// Tiles, the operands of the matrix products, are dense, in the accumulation type or, on CUDA for
// bfloat16 embeddings, in bfloat16. Sums are always in the accumulation type.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// [V, N, D] in one or two tensors: the views of x, then those of y. The last dimension is dense.
struct Columns {
  struct List {
    const void* data;
    std::int64_t view_stride, row_stride;
  };
  DType dtype;
  List x, y;
  std::int64_t x_views;
  std::int64_t views;  // V
  std::int64_t rows;   // N
  std::int64_t dim;    // D
};

// The first element of row n of view v.
template <typename T>
MAST_EXT_HD const T* row_of(const Columns& z, std::int64_t v, std::int64_t n) {
  const bool is_x = v < z.x_views;
  const Columns::List& from = is_x ? z.x : z.y;
  return static_cast<const T*>(from.data) + (is_x ? v : v - z.x_views) * from.view_stride +
         n * from.row_stride;
}

// Mean and sum_n (z - mean)^2 of every column, and from the same pass, unless null, its scale and
// the standardized tile.
struct ColumnMoments {
  Columns z;
  void* mean;         // [V, D]
  void* sum_squares;  // [V, D]
  void* scale;        // [V, D]  1 / sqrt(sum_squares / divisor + eps), or null
  double divisor, eps;
  void* tile;  // [V, N, D]  (z - mean) * scale, or z - mean if scale is null; or null
  void* differences = nullptr;  // [D]  sum_n (x - y)^2 of the first views of both, or null

  // The views, and the differences as one more.
  MAST_EXT_HD std::int64_t passes() const { return z.views + (differences != nullptr ? 1 : 0); }
};

// The columns [first_dim, first_dim + dims) and rows [first_row, first_row + rows), standardized:
//   tile[k, v, n, d] = (z - mean) * scale_kvd
struct ColumnTile {
  Columns z;
  const void* mean;   // [V, D]
  const void* scale;  // element (k, v, d) at k * subspace_stride + v * view_stride + d; null: 1
  std::int64_t subspaces, subspace_stride, view_stride;
  std::int64_t first_row, rows, first_dim, dims;
  void* tile;  // [K, V, rows, dims]
};

// dots[k, v, d] = sum_n x[v, n, d] * y[k, v, n, d], or += if `add`.
struct ColumnDots {
  DType dtype;    // of x and y
  const void* x;  // [V, N, dims]
  const void* y;  // [K, V, N, dims]
  std::int64_t subspaces, views, rows, dims;
  std::int64_t stride;
  void* dots;  // element (k, v, d) at (k * views + v) * stride + d
  bool add = false;
};

// The columns of a block, which the CPU takes together down the rows.
inline constexpr std::int64_t kColumnBlock = 256;
inline std::int64_t column_blocks(std::int64_t dims) {
  return (dims + kColumnBlock - 1) / kColumnBlock;
}

// Blocks [begin, end) of passes() * column_blocks(dim).
void column_moments_cpu(const ColumnMoments& p, std::int64_t begin, std::int64_t end);
// Blocks [begin, end) of subspaces * views * column_blocks(dims).
void column_dots_cpu(const ColumnDots& p, std::int64_t begin, std::int64_t end);
// Rows [begin, end) of views * rows.
void column_tile_cpu(const ColumnTile& p, std::int64_t begin, std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int column_moments_cuda(const ColumnMoments& p, CUstream_st* stream);
[[gnu::weak]] int column_tile_cuda(const ColumnTile& p, CUstream_st* stream);
[[gnu::weak]] int column_dots_cuda(const ColumnDots& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
