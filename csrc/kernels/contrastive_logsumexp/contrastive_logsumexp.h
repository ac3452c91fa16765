// contrastive_logsumexp: log-sum-exp, per row, of the cosine similarities of all rows of
// x [Vx, N, D] with all rows of y [Vy, M, D], which are the columns of the similarity matrix. The
// matrix is not stored, except that a CPU keeps the products of a small one for the backward, or
// their exponentials, which then need not be computed again.
//
//   s[k, i, b, j, c]      = <m_k x_ib, m_k y_jc> rx ry / temperature      r = 1 / max(norm, 1e-8)
//   positive[k, i, j, b]  = s[k, i, b, j, b + offset]
//   lse[k, i, j, b]       = log sum_c exp(s[k, i, b, j, c])
//
// Backward. With g the gradient of lse and p that of positive, the weight of an entry is
//
//   W = dL/dcos = 1/temperature * ( g_row exp(s - lse_row) + g_column exp(s - lse_column)
//                                   + [c = b + offset] (p_row + p_column) )
//
// where the terms of the columns exist if the columns are also rows of the same loss: in
// self-contrast, and where y is a gathered batch. Then, per row, with w = m^2,
//
//   G = sum_jc W rx ry y_jc      dot = <w x, G> = sum_jc W cos      h = norm < 1e-8 ? 0 : rx^2 dot
//   grad x += w (G - h x)        grad m += m x (G - h x), of rows and of columns
//   grad temperature -= dot / temperature, halved if W has the terms of the columns
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them. On the CPU the host code lets the vendor library multiply one tile after the other,
// and the kernels process the products of a tile; on CUDA one kernel does both.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

inline constexpr double kSmallestNorm = 1e-8;

// From this temperature up, exp((cos - 1) / temperature) is a normal float for every cosine. Sums
// then subtract the constant 1 / temperature (the fixed shift) instead of a running maximum.
inline constexpr double kLeastFixedTemperature = 0.03;

// ---- Rows, both devices

// Embeddings [V, N, D] with a dense last dimension; or one of them for each subspace (MaskedRows).
struct EmbeddingRows {
  DType dtype;
  const void* data;
  std::int64_t view_stride, row_stride;
  std::int64_t views, rows, dim;
  std::int64_t subspace_stride = 0;
};

// inv_norm[k, v, n] = 1 / max(|m_k z_vn|, kSmallestNorm)
struct InverseNorms {
  EmbeddingRows z;
  const void* masks;  // [K, D], or null: one subspace of all ones
  std::int64_t subspaces;
  void* inv_norm;  // [K, V, N]
};

// The last step of the backward, from G to the gradients, in subspace k and for the rows
// [first, first + count) of V * N.
struct ContrastiveRows {
  EmbeddingRows z;
  const void* mask;      // [D] of subspace k, or null
  const void* inv_norm;  // [V, N] of subspace k
  std::int64_t first, count;
  DType products_dtype;
  const void* products;  // G [count, D]
  bool add;              // whether to add to grad instead of overwriting it
  DType grad_dtype;      // of grad: float32 while subspaces are added up, else z's
  void* grad;            // [V, N, D], or null
  std::int64_t slices;   // the rows are divided into slices, which have their own sums over rows
  void* grad_mask;       // [slices, D]  sum of m x (G - h x), added to, or null
  void* dots;            // [slices]  sum of dot, added to
  const float* factor = nullptr;  // CUDA: scalar that multiplies the gradients and dots, or null: 1
};

// Rows [begin, end) of V * N.
void inverse_norms_cpu(const InverseNorms& p, std::int64_t begin, std::int64_t end);
// Slices [begin, end) of the rows.
void contrastive_rows_cpu(const ContrastiveRows& p, std::int64_t begin, std::int64_t end);
[[gnu::weak]] int inverse_norms_cuda(const InverseNorms& p, CUstream_st* stream);
[[gnu::weak]] int contrastive_rows_cuda(const ContrastiveRows& p, CUstream_st* stream);

// Which entries a sum includes. Block (i, j) has the entries of x's view i and y's view j.
struct ContrastiveOptions {
  bool has_positive;
  bool exclude_self;      // positives are left out of blocks (i, i)
  bool exclude_positive;  // positives are left out of all blocks
  bool within_views;      // false: blocks (i, i) are left out

  MAST_EXT_HD bool excludes(std::int64_t i, std::int64_t j) const {
    return has_positive && (exclude_positive || (exclude_self && i == j));
  }
  MAST_EXT_HD bool leaves_out(std::int64_t i, std::int64_t j) const {
    return i == j && !within_views;
  }
};

// ---- CPU: a tile of products <w x, y>, rows of view i by columns of view j

struct ContrastiveTile {
  DType dtype;  // of everything here: float32 or float64
  std::int64_t rows, columns;
  std::int64_t stride;   // between the rows of `products`
  std::int64_t partner;  // column of row 0's positive, counted from the tile's first; any sign
  bool has_positive;     // column row + partner, if inside the tile, is the row's positive
  bool exclude;          // positives are left out of the sums
  double temperature;
  bool fixed_shift;          // temperature >= kLeastFixedTemperature
  const void* row_scale;     // [rows], 1 / norm
  const void* column_scale;  // [columns]
  void* products;            // [rows, columns]
  // Only with the fixed shift: contrastive_tile_sums_cpu() replaces the products by
  // exp((cos - 1) / temperature), which contrastive_tile_weights_cpu() then reads.
  bool keeps_exponentials;
};

// The rows of a slice. Threads share a tile by slices, which have their own sums of each column.
inline constexpr std::int64_t kTileSlice = 64;

// Adds a tile to the sums of its rows and, for self-contrast, of its columns.
struct ContrastiveTileSums {
  ContrastiveTile tile;
  // Running sums of exp(s - shift), where shift is 1 / temperature or the running maximum
  void* row_sum;     // [rows]
  void* row_max;     // [rows], null with the fixed shift
  void* column_sum;  // [columns] of block (j, i), or null
  void* column_max;
  void* slice_sum;  // [slices, columns], work space if column_sum is not null
  void* slice_max;
  void* positive;         // [rows] of block (i, j), or null
  void* column_positive;  // [columns] of block (j, i), or null
};

// The term of the rows, or of the columns, in W; null pointers where there is no such term.
struct ContrastiveAnchor {
  const void* lse;
  const void* grad_lse;
  const void* grad_positive;
};

// W rx ry.
struct ContrastiveTileWeights {
  ContrastiveTile tile;
  ContrastiveAnchor row, column;
  std::int64_t stride;  // between the rows of `weights`
  void* weights;        // [rows, columns]; may be the products
};

// Slices [begin, end) of the tile's rows.
void contrastive_tile_sums_cpu(const ContrastiveTileSums& p, std::int64_t begin, std::int64_t end);
// Columns [begin, end): merges the slices' sums into column_sum.
void contrastive_tile_columns_cpu(const ContrastiveTileSums& p, std::int64_t begin,
                                  std::int64_t end);
// Slices [begin, end) of the tile's rows.
void contrastive_tile_weights_cpu(const ContrastiveTileWeights& p, std::int64_t begin,
                                  std::int64_t end);

// ---- CUDA: all blocks at once

// Copies m_k z of bfloat16 embeddings, rounded to bfloat16. The products read an embedding many
// times: with these, they need not multiply it by the mask each time.
struct MaskedRows {
  EmbeddingRows z;
  const float* masks;  // [K, D]
  std::int64_t subspaces;
  void* to;  // [K, V, N, D rounded up to a multiple of kMaskedPacket, with zeros]
};
inline constexpr std::int64_t kMaskedPacket = 8;
[[gnu::weak]] int mask_rows_cuda(const MaskedRows& p, CUstream_st* stream);

// The kernels that multiply bfloat16 embeddings need those of mask_rows_cuda(), and no masks.
struct Contrastive {
  EmbeddingRows x, y;
  const float* masks;  // [K, D], or null
  std::int64_t subspaces;
  double temperature;
  const float* temperature_tensor;  // scalar on the device, or null: `temperature`
  std::int64_t partner;             // column of row 0's positive; any sign
  ContrastiveOptions options;
  const float* inv_norm_x;  // [K, Vx, N]
  const float* inv_norm_y;  // [K, Vy, M]
};

// In self-contrast with the fixed shift, an entry serves its row, and its column as a row of block
// (j, i): only the upper triangle of all rows by all columns is computed, in squares of tiles.
struct ContrastiveForward {
  Contrastive p;
  std::int64_t side;  // of a square, in tiles of kSquareRows; 0: there are none
  std::int64_t
      splits;  // shares of a view's columns, one thread block each; with squares, a side each
  float* partial_max;  // [splits, K, Vx, Vy, N]; unused with the fixed shift
  float* partial_sum;
  float* lse;       // [K, Vx, Vy, N]
  float* positive;  // [K, Vx, Vy, N], or null
};
inline constexpr std::int64_t kSquareRows = 128;

// Whether lse is yet to be merged from several sums.
MAST_EXT_HD bool has_splits(const ContrastiveForward& f) { return f.side > 0 || f.splits > 1; }

// The tensors of `row` are [K, Vx, Vy, N], those of `column` [K, Vy, Vx, M].
struct ContrastiveBackward {
  Contrastive p;
  ContrastiveAnchor row, column;
};

// The gradient of x and the sums over its rows, for dims up to most_fused_dims() and some subspaces
// at a time. A thread block takes a share of the columns, for a tile of rows in one subspace; a
// second kernel adds up the shares. With many rows, they are processed in several parts.
struct ContrastiveFusedPlan {
  std::int64_t subspaces;   // at a time, at most
  std::int64_t splits;      // shares of the columns
  std::int64_t tiles;       // of rows, in a part
  std::int64_t slice_rows;  // a slice of the Vx * N rows has its own grad_masks and dots
  std::int64_t slices;
  std::int64_t partial;  // floats of work space
  bool many_rows;        // so many that tiles of twice the rows fill a GPU, too
};
inline constexpr std::int64_t kManyRows = 8192;
// Two for each multiprocessor of a large GPU, which run at the same time.
inline constexpr std::int64_t kFusedBlocks = 264;
[[gnu::weak]] ContrastiveFusedPlan contrastive_fused_plan_cuda(const Contrastive& p,
                                                               std::int64_t many_rows,
                                                               std::int64_t wanted_blocks);

struct ContrastiveFusedBackward {
  ContrastiveBackward b;
  ContrastiveFusedPlan plan;
  std::int64_t first_subspace, all_subspaces;  // b has subspaces [first, first + b.p.subspaces)
  EmbeddingRows z;                             // x, without masks applied
  const float* masks;                          // [K, D] of b's subspaces, or null
  float* partial;                              // [plan.partial] work space
  void* grad_x;         // [Vx, N, D] in x's dtype, or null; written after the last subspace
  float* sum;           // [Vx, N, D] work space, for 16-bit grad_x in several launches only
  float* grad_masks;    // [plan.slices, all K, D], or null; those of b's subspaces are written
  float* dots;          // [plan.slices], written in the first subspace, then added to
  const float* factor;  // scalar that multiplies all of these, or null: 1
};

// For wider embeddings: W rx ry of rows [first, first + count) of `views` views from `view` on, and
// of all columns. `first` is 0 and `count` is N with several views, and Vx views are taken with
// several subspaces.
struct ContrastiveWeights {
  ContrastiveBackward b;
  std::int64_t view, views, first, count;
  DType dtype;    // of weights: bfloat16 for bfloat16 embeddings, else float32
  void* weights;  // [K, views, count, Vy * M]
};

// CUDA kernels index the rows of a view and the elements of a row in 32 bits, by steps of at most
// 1024, which must not leave them after the last element.
inline constexpr std::int64_t kMostCounted = (std::int64_t{1} << 31) - 1024;

// The widest rows whose tiles fit into a GPU's shared memory. float32 takes more of it: three parts
// of 16 bits for each element (mma.cuh).
inline constexpr int kMostFusedDims = 256, kMostFusedFloats = 192;
inline std::int64_t most_fused_dims(DType dtype) {
  return dtype == DType::kFloat32 ? kMostFusedFloats : kMostFusedDims;
}

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted. lse
// is complete only after contrastive_merge_cuda().
[[gnu::weak]] int contrastive_forward_cuda(const ContrastiveForward& p, CUstream_st* stream);
[[gnu::weak]] int contrastive_merge_cuda(const ContrastiveForward& p, CUstream_st* stream);
[[gnu::weak]] int contrastive_fused_backward_cuda(const ContrastiveFusedBackward& p,
                                                  CUstream_st* stream);
[[gnu::weak]] int contrastive_weights_cuda(const ContrastiveWeights& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
