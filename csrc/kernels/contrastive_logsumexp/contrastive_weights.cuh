// Writes the weights W rx ry to memory, for embeddings too wide for the fused backward: a thread
// block owns a tile of rows and columns.
#pragma once

#include <algorithm>

#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

// Shared memory for a tile's products, which replace the operands.
template <typename T>
inline constexpr int kProductsBytes =
    ProductTile<T>::kRows * ProductTile<T>::kColumns * static_cast<int>(sizeof(float));

template <typename T>
inline constexpr int kMostWeightsSharedBytes =
    std::max(ProductTile<T>::kMostSharedBytes, kProductsBytes<T>);

template <typename T>
int weights_shared_bytes(std::int64_t dim) {
  return std::max(ProductTile<T>::shared_bytes(dim), kProductsBytes<T>);
}

template <typename T, typename W, int kMostBytes = kMostWeightsSharedBytes<T>>
__global__ void __launch_bounds__(kTileThreads, 2)
    tile_weights(DynamicShared<kMostBytes>, ContrastiveWeights f) {
  using Tile = ProductTile<T>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns;
  constexpr int kRowStep = kTileThreads / kColumns;
  static_assert(kRows == kTileThreads && kTileThreads % kColumns == 0);
  const Contrastive& p = f.b.p;
  const auto row_tiles = static_cast<int>((f.count + kRows - 1) / kRows);
  const auto column_tiles = static_cast<int>((p.y.rows + kColumns - 1) / kColumns);
  const auto block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  // Blocks that run at the same time share rows and columns of one subspace.
  const int tile = block / row_tiles % column_tiles, views = block / row_tiles / column_tiles;
  const auto y_views = static_cast<int>(p.y.views), x_views = static_cast<int>(f.views);
  const int j = views % y_views, k = views / y_views / x_views;
  const int local_view = views / y_views % x_views, i = static_cast<int>(f.view) + local_view;
  const int local_row = block % row_tiles * kRows, first_column = tile * kColumns;
  const int first_row = static_cast<int>(f.first) + local_row;
  const int rows_left = static_cast<int>(f.count) - local_row;
  const int rows = rows_left < kRows ? rows_left : kRows;
  const Temperature t(p);
  const bool left_out = p.options.leaves_out(i, j), exclude = p.options.excludes(i, j);

  const std::int64_t row_at = row_block(p, k, i, j) + first_row;
  __shared__ float row_scale[kRows], row_factor[kRows], row_lse[kRows];
  if (thread < rows) {
    const AnchorTerm term(AnchorValues(f.b.row, row_at + thread), t);
    row_scale[thread] = p.inv_norm_x[(k * p.x.views + i) * p.x.rows + first_row + thread];
    row_factor[thread] = term.factor;
    row_lse[thread] = term.lse;
  }

  // The products go through shared memory, because a thread then takes rows of a single column, and
  // neighboring threads write neighboring weights.
  auto* const products = reinterpret_cast<float*>(dynamic_shared_memory());
  const auto offset_of = [](int row, int column) {
    return row * kColumns + (column ^ row % 8 * 8);  // swizzled against bank conflicts
  };
  multiply_tiles<T>(
      ViewRows<T>(p.x, i, k), ViewRows<T>(p.y, j, k), MaskFactor(p, k), first_row, tile,
      left_out ? tile : tile + 1, [](int) {},
      [&](int, const typename Tile::Sums& sums) {
        __syncthreads();  // no thread still reads the operands
#pragma unroll
        for (int r = 0; r < Tile::kThreadRows; ++r) {
#pragma unroll
          for (int c = 0; c < Tile::kThreadColumns; ++c) {
            const float* const pair = Tile::pair(sums, r, c);
            *reinterpret_cast<float2*>(products + offset_of(Tile::row(r), Tile::column(c))) =
                make_float2(pair[0], pair[1]);
          }
        }
      });
  __syncthreads();

  const int column = thread % kColumns;
  if (first_column + column >= p.y.rows) return;
  const float scale = p.inv_norm_y[(k * p.y.views + j) * p.y.rows + first_column + column];
  const std::int64_t column_at = column_block(p, k, i, j) + first_column + column;
  const AnchorTerm column_term(AnchorValues(f.b.column, column_at), t);
  const Positives positives(p, first_row, kRows, first_column, kColumns);
  const int positive_row = positives.here ? column - positives.partner : -1;
  W* const to = static_cast<W*>(f.weights) +
                ((k * f.views + local_view) * f.count + local_row) * p.y.views * p.y.rows +
                j * p.y.rows + first_column + column;
#pragma unroll 4
  for (int row = thread / kColumns; row < rows; row += kRowStep) {
    if (left_out) {  // the products were not computed
      to[row * p.y.views * p.y.rows] = static_cast<W>(0.0f);
      continue;
    }
    AnchorTerm row_term;
    row_term.factor = row_factor[row];
    row_term.lse = row_lse[row];
    const float cosine = products[offset_of(row, column)] * scale * row_scale[row];
    float w = t.fixed_shift ? sums_weight<true>(cosine, t.scale, scale, t, row_term, column_term)
                            : sums_weight<false>(cosine, t.scale, scale, t, row_term, column_term);
    if (row == positive_row) {
      w = (exclude ? 0.0f : w) + positive_weight(f.b, row_at + row, column_at, t);
    }
    to[row * p.y.views * p.y.rows] = static_cast<W>(w * scale * row_scale[row]);
  }
}

}  // namespace mast_ext::kernels::contrastive
