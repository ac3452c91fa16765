// The backward pass. A thread block owns a tile of rows of one view and walks all columns of all
// views: there are no atomic additions, and a row's gradient has a fixed order of summation.
//
// For every tile of columns it computes the products again, turns them into weights P = W ry, and
// accumulates P y, reading the same copy of y in shared memory. The weight of a positive is not
// rounded to an operand like the rest of P: its product is computed and added in float.
#pragma once

#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

inline constexpr int kFusedThreads = 128;  // two by two warps

// The tile for rows of up to kDim elements, of a size that fits every GPU's shared memory.
template <typename T, int kDim_>
struct FusedTile {
  static constexpr int kDim = kDim_;
  static constexpr int kParts = kPartsOf<T>;
  static constexpr int kRows = kParts > 1 && kDim > 128 ? 32 : 64;
  static constexpr int kColumns = kParts > 1 && kDim > 64 ? 32 : 64;
  // Blocks per warp: of 16 rows, 16 columns, 16 elements.
  static constexpr int kRowBlocks = kRows / 32;
  static constexpr int kColumnBlocks = kColumns / 32;
  static constexpr int kDimBlocks = kDim / 32;
  static constexpr int kThreadRows = 2 * kRowBlocks;
  using Rows = SharedOperand<kRows, kDim, kParts>;
  using Columns = SharedOperand<kColumns, kDim, kParts>;
  using Weights = SharedOperand<kRows, kColumns, kParts>;
  static constexpr int kStages =
      Rows::kBytes + 2 * Columns::kBytes + Weights::kBytes <= (88 << 10) ? 2 : 1;
  static constexpr int kSharedBytes = Rows::kBytes + kStages * Columns::kBytes + Weights::kBytes;
  static constexpr int kSumStride = kDim + 8;  // so that eight rows lie in different banks
  static_assert(kRows * kSumStride * 4 <= kSharedBytes);
};

// Iterates over the tiles of columns of all views, without the view that is left out, if any.
struct ColumnTile {
  int view, first, step, views, columns, skipped;

  __device__ __forceinline__ ColumnTile(const Contrastive& p, int i, int step_)
      : view(0),
        first(0),
        step(step_),
        views(p.y.rows == 0 ? 0 : static_cast<int>(p.y.views)),
        columns(static_cast<int>(p.y.rows)),
        skipped(p.options.leaves_out(i, i) ? i : -1) {
    if (view == skipped) ++view;
  }
  __device__ __forceinline__ bool exists() const { return view < views; }
  __device__ __forceinline__ ColumnTile next() const {
    ColumnTile tile = *this;
    tile.first += step;
    if (tile.first < columns) return tile;
    tile.first = 0;
    if (++tile.view == skipped) ++tile.view;
    return tile;
  }
};

// What the weights need of an embedding, which is a row or a column.
struct EmbeddingTerm {
  float scale = 0;  // 1 / norm
  AnchorTerm anchor;
};

// The terms of a tile's rows, or of its columns, in shared memory.
template <int kCount>
struct EmbeddingTerms {
  float scale[kCount], factor[kCount], lse[kCount];

  __device__ __forceinline__ void write(int at, const EmbeddingTerm& term) {
    if (at >= kCount) return;
    scale[at] = term.scale;
    factor[at] = term.anchor.factor;
    lse[at] = term.anchor.lse;
  }
  template <bool kFixedShift>
  __device__ __forceinline__ AnchorTerm anchor(int at) const {
    AnchorTerm term;
    term.factor = factor[at];
    if (!kFixedShift) term.lse = lse[at];
    return term;
  }
};

__device__ __forceinline__ EmbeddingTerm column_term(const ContrastiveBackward& b, int k, int i,
                                                     const ColumnTile& tile, int column,
                                                     const Temperature& t) {
  const Contrastive& p = b.p;
  const std::int64_t at = tile.first + column;
  EmbeddingTerm term;
  if (!tile.exists() || column >= tile.step || at >= tile.columns) return term;
  term.scale = p.inv_norm_y[(k * p.y.views + tile.view) * p.y.rows + at];
  term.anchor = AnchorTerm(b.column, column_block(p, k, i, tile.view) + at, t);
  return term;
}

__device__ __forceinline__ EmbeddingTerm row_term(const ContrastiveBackward& b, int k, int i, int j,
                                                  int row, const Temperature& t) {
  const Contrastive& p = b.p;
  EmbeddingTerm term;
  if (row >= p.x.rows) return term;
  term.scale = p.inv_norm_x[(k * p.x.views + i) * p.x.rows + row];
  term.anchor = AnchorTerm(b.row, row_block(p, k, i, j) + row, t);
  return term;
}

// Adds the contribution of subspace k to an element of grad_x.
template <typename T>
__device__ __forceinline__ void add_gradient(const ContrastiveFusedBackward& f, int k,
                                             std::int64_t element, float value) {
  T& grad = static_cast<T*>(f.grad_x)[element];
  if (f.b.p.subspaces == 1) {
    grad = static_cast<T>(value);
  } else if constexpr (std::is_same_v<T, float>) {
    grad = k == 0 ? value : grad + value;
  } else {
    float& sum = f.sum[element];
    const float total = k == 0 ? value : sum + value;
    if (k + 1 == f.b.p.subspaces) {
      grad = static_cast<T>(total);
    } else {
      sum = total;
    }
  }
}

template <typename T, int kDim, int kMostBytes = FusedTile<T, kDim>::kSharedBytes>
__global__ void __launch_bounds__(kFusedThreads, 2)
    fused_backward(DynamicShared<kMostBytes>, ContrastiveFusedBackward f) {
  using Tile = FusedTile<T, kDim>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kThreadRows = Tile::kThreadRows;
  const Contrastive& p = f.b.p;
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, lane = thread % 32;
  const int warp_row = warp / 2 * (kRows / 2);
  const int warp_column = warp % 2 * (kColumns / 2), warp_dim = warp % 2 * 16;
  // A thread accumulates rows row_of(r): for the products, columns 8 c + 2 (lane % 4) of its warp
  // and the next ones; for the gradient, elements dim_of(c) and the next ones.
  const auto row_of = [&](int r) { return warp_row + lane / 4 + 8 * r; };
  const auto dim_of = [&](int c) { return c / 2 * 32 + warp_dim + c % 2 * 8 + lane % 4 * 2; };
  const int row_tiles = static_cast<int>((p.x.rows + kRows - 1) / kRows);
  const auto i = static_cast<int>(blockIdx.x) / row_tiles;
  const int first_row = static_cast<int>(blockIdx.x) % row_tiles * kRows;
  const int rows_left = static_cast<int>(p.x.rows) - first_row;
  const int rows_here = rows_left < kRows ? rows_left : kRows;
  const auto dim = static_cast<int>(p.x.dim);
  const Temperature t(p);

  unsigned char* const memory = dynamic_shared_memory();
  const typename Tile::Rows row_operand{memory};
  const typename Tile::Weights weights{memory + Tile::Rows::kBytes};
  const auto columns_at = [&](int stage) {
    return typename Tile::Columns{memory + Tile::Rows::kBytes + Tile::Weights::kBytes +
                                  stage * Tile::Columns::kBytes};
  };
  const auto load_columns = [&](const ColumnTile& tile, int stage, const MaskFactors<T>& factors) {
    if (!tile.exists()) return;
    load_rows<kFusedThreads>(columns_at(stage), ViewRows<T>(p.y, tile.view), tile.first, 0,
                             factors.columns);
  };
  __shared__ EmbeddingTerms<kColumns> column_terms[2];  // of this tile and the next
  __shared__ EmbeddingTerms<kRows> row_terms[2];        // of this view and the next
  // Of the rows' positives: the part of W that comes from lse, and <w x, y> / |y|.
  __shared__ float positive_weights[kRows], positive_values[kRows];
  __shared__ float half_dots[2][kRows], row_scale[kRows], projection[kRows];

  float dots = 0;  // of row `thread`
  for (int k = 0; k < p.subspaces; ++k) {
    const MaskFactors<T> factors(p, k);
    ColumnTile tile(p, i, kColumns);
    __syncthreads();  // all threads are done with the last subspace's shared memory
    load_rows<kFusedThreads>(row_operand, ViewRows<T>(p.x, i), first_row, 0, factors.rows);
    if (Tile::kStages == 2) load_columns(tile, 0, factors);
    column_terms[0].write(thread, column_term(f.b, k, i, tile, thread, t));
    if (tile.exists() && thread < kRows) {
      row_terms[0].write(thread, row_term(f.b, k, i, tile.view, first_row + thread, t));
    }

    float dots_here[kThreadRows] = {};  // sums of W <w x, y> / |y|
    WarpSums<Tile::kRowBlocks, Tile::kDimBlocks> sums = {};
    for (int stage = 0, column_buffer = 0, row_buffer = 0; tile.exists();
         column_buffer = 1 - column_buffer) {
      if (Tile::kStages == 1) {
        __syncthreads();  // no thread still reads the last tile
        load_columns(tile, 0, factors);
      }
      wait_for_copies();
      __syncthreads();  // this tile has arrived, and no thread still reads the last one
      const ColumnTile next = tile.next();
      if (Tile::kStages == 2) load_columns(next, 1 - stage, factors);
      const EmbeddingTerm next_term = column_term(f.b, k, i, next, thread, t);
      const bool exclude = p.options.excludes(i, tile.view);
      const Positives positives(p, first_row, kRows, tile.first, kColumns);
      const typename Tile::Columns columns = columns_at(stage);
      WarpSums<Tile::kRowBlocks, Tile::kColumnBlocks> products = {};
      // Steps as in the forward, so that the products have the same bits.
      constexpr int kSteps = ProductTile<T>::kDepth / 16;
#pragma unroll 1
      for (int d = 0; d < dim; d += ProductTile<T>::kDepth) {
        multiply<Tile::kRowBlocks, Tile::kColumnBlocks, kSteps>(products, row_operand, warp_row,
                                                                columns, warp_column, d / 8);
      }
      const FragmentWriter<typename Tile::Weights> weight_writer(weights, warp_row,
                                                                 warp_column / 8);
      const auto weigh = [&](auto fixed_shift, auto has_positives) {
#pragma unroll
        for (int c = 0; c < 2 * Tile::kColumnBlocks; ++c) {
          const int at = warp_column + 8 * c + lane % 4 * 2;
          const EmbeddingTerms<kColumns>& of_columns = column_terms[column_buffer];
          const EmbeddingTerms<kRows>& of_rows = row_terms[row_buffer];
#pragma unroll
          for (int r = 0; r < kThreadRows; ++r) {
            const AnchorTerm row_anchor = of_rows.template anchor<fixed_shift>(row_of(r));
            float entry[2];
#pragma unroll
            for (int q = 0; q < 2; ++q) {
              const float scale = of_columns.scale[at + q];
              const float value = products[r / 2][c / 2][c % 2][r % 2 * 2 + q] * scale;
              float w =
                  sums_weight<fixed_shift>(value * of_rows.scale[row_of(r)], scale, t, row_anchor,
                                           of_columns.template anchor<fixed_shift>(at + q));
              entry[q] = w * scale;
              if (has_positives && at + q - row_of(r) == positives.partner) {
                positive_weights[row_of(r)] = exclude ? 0.0f : w;
                positive_values[row_of(r)] = value;
                entry[q] = w = 0;
              }
              dots_here[r] += w * value;
            }
            weight_writer.write(8 * r, c, entry[0], entry[1]);
          }
        }
      };
      using std::false_type, std::true_type;
      if (positives.here) {
        t.fixed_shift ? weigh(true_type{}, true_type{}) : weigh(false_type{}, true_type{});
      } else {
        t.fixed_shift ? weigh(true_type{}, false_type{}) : weigh(false_type{}, false_type{});
      }
      column_terms[1 - column_buffer].write(thread, next_term);
      if (next.view != tile.view) {
        row_buffer = 1 - row_buffer;
        if (next.exists() && thread < kRows) {
          row_terms[row_buffer].write(thread,
                                      row_term(f.b, k, i, next.view, first_row + thread, t));
        }
      }
      __syncthreads();  // all weights have been written

      multiply_rows<Tile::kRowBlocks, Tile::kDimBlocks>(sums, weights, warp_row, columns, warp_dim);
      if (positives.here) {
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
          const int column = row_of(r) + positives.partner;
          if (row_of(r) >= rows_here || column < 0 || column >= kColumns ||
              tile.first + column >= tile.columns) {
            continue;
          }
          const float w =
              positive_weights[row_of(r)] +
              positive_weight(f.b, row_block(p, k, i, tile.view) + first_row + row_of(r),
                              column_block(p, k, i, tile.view) + tile.first + column, t);
          if (warp % 2 == 0 && lane % 4 == 0) dots_here[r] += w * positive_values[row_of(r)];
          const float factor = w * column_terms[column_buffer].scale[column];
#pragma unroll
          for (int c = 0; c < 2 * Tile::kDimBlocks; ++c) {
            const int pair = dim_of(c) / 2;
            float* const sum = sums[r / 2][c / 2][c % 2] + r % 2 * 2;
            const float2 z = columns.read_pair(column, pair);
            sum[0] += factor * z.x;
            sum[1] += factor * z.y;
          }
        }
      }
      if (Tile::kStages == 2) stage = 1 - stage;
      tile = next;
    }

    // Gradients from the accumulators. These go through shared memory, because a thread then takes
    // all rows of an element. A row's dot is spread over two warps, and over four lanes of each.
    wait_for_copies();  // those of the rows, if there was no tile of columns
    __syncthreads();    // no thread still reads the last tile
    auto* const row_sums = reinterpret_cast<float*>(memory);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float dot = group_sum<4>(dots_here[r]);
      if (lane % 4 == 0) half_dots[warp % 2][row_of(r)] = dot;
#pragma unroll
      for (int c = 0; c < 2 * Tile::kDimBlocks; ++c) {
        float* const to = row_sums + row_of(r) * Tile::kSumStride + dim_of(c);
        const float* const sum = sums[r / 2][c / 2][c % 2] + r % 2 * 2;
        *reinterpret_cast<float2*>(to) = make_float2(sum[0], sum[1]);
      }
    }
    __syncthreads();
    if (thread < kRows) {
      const std::int64_t at = (k * p.x.views + i) * p.x.rows + first_row + thread;
      const float scale = thread < rows_here ? p.inv_norm_x[at] : 0.0f;
      const float dot =
          thread < rows_here ? (half_dots[0][thread] + half_dots[1][thread]) * scale : 0.0f;
      dots += dot;
      row_scale[thread] = scale;
      projection[thread] = row_projection(scale, dot);
    }
    __syncthreads();
    const T* const x =
        static_cast<const T*>(p.x.data) + i * p.x.view_stride + first_row * p.x.row_stride;
    const std::int64_t first_element = (i * p.x.rows + first_row) * dim;
    for (int d = thread; d < dim; d += kFusedThreads) {
      // The columns were multiplied by their factor, so that value = column_factor (G - h x).
      const float row_factor = factors.rows(d), column_factor = factors.columns(d);
      float grad_factor = 0;
#pragma unroll 4
      for (int row = 0; row < rows_here; ++row) {
        const auto z = static_cast<float>(x[row * p.x.row_stride + d]);
        const float value = row_sums[row * Tile::kSumStride + d] * row_scale[row] -
                            projection[row] * (z * column_factor);
        grad_factor += z * value;
        if (f.grad_x != nullptr) {
          add_gradient<T>(f, k, first_element + std::int64_t{row} * dim + d, row_factor * value);
        }
      }
      if (f.grad_masks != nullptr) {
        // The gradient of m is m x (G - h x); if column_factor is m, `value` has the m already.
        const float missing = factors.rows.squared ? factors.mask[d] : 1.0f;
        f.grad_masks[(blockIdx.x * p.subspaces + k) * dim + d] = grad_factor * missing;
      }
    }
  }
  dots = block_sum<kFusedThreads>(dots);
  if (thread == 0) f.dots[blockIdx.x] = dots;
}

// body.operator()<T, kDim>() for the narrowest tile that holds the embeddings.
template <typename T, typename Body>
auto visit_fused_dim(std::int64_t dim, Body&& body) {
  constexpr int kWidest = std::is_same_v<T, float> ? kMostFusedFloats : kMostFusedDims;
  if (dim <= 64) return body.template operator()<T, 64>();
  if (dim <= 128) return body.template operator()<T, 128>();
  return body.template operator()<T, kWidest>();
}

}  // namespace mast_ext::kernels::contrastive
