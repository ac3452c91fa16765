// The backward pass. A thread block owns a tile of rows of one view and walks the columns of all
// views, or a share of them; a second kernel adds up the shares and computes the gradients. There
// are no atomic additions, and a row's gradient has a fixed order of summation.
//
// For every tile of columns it computes the products again, turns them into weights P = W ry, and
// accumulates P y, reading the same copy of y in shared memory. The weight of a positive is not
// rounded to an operand like the rest of P: its product is computed and added in float.
//
// What bounds it, besides the tensor cores, is how fast operands are read from shared memory. Where
// the registers suffice and there are rows enough, a warp therefore has rows of its own and all
// columns: then P stays in registers, which hold it in the layout of a left factor, and every
// fragment of y serves 32 rows.
#pragma once

#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

inline constexpr int kFusedThreads = 128, kFusedWarps = kFusedThreads / 32;

template <typename T, int kDim>
inline constexpr bool kCanOwnRows = kPartsOf<T> == 1 && kDim <= 128;

// The tile for rows of up to kDim elements, of a size that fits every GPU's shared memory.
template <typename T, int kDim_, bool kOwnRows_>
struct FusedTile {
  static constexpr int kDim = kDim_;
  static constexpr int kParts = kPartsOf<T>;
  static constexpr bool kOwnRows = kOwnRows_;  // of each warp
  static constexpr int kRows = kOwnRows ? 128 : kParts > 1 && kDim > 128 ? 32 : 64;
  static constexpr int kColumns = kDim > 64 && (kParts > 1 || kOwnRows) ? 32 : 64;
  // Warps of a block: four by one, or two by two.
  static constexpr int kWarpColumns = kOwnRows ? 1 : 2, kWarpRows = kFusedWarps / kWarpColumns;
  // Blocks per warp: of 16 rows, 16 columns, 16 elements.
  static constexpr int kRowBlocks = kRows / 16 / kWarpRows;
  static constexpr int kColumnBlocks = kColumns / 16 / kWarpColumns;
  static constexpr int kDimBlocks = kDim / 16 / kWarpColumns;
  static constexpr int kThreadRows = 2 * kRowBlocks;
  using Rows = SharedOperand<kRows, kDim, kParts>;
  using Columns = SharedOperand<kColumns, kDim, kParts>;
  using Weights = SharedOperand<kRows, kColumns, kParts>;
  static constexpr int kWeightsBytes = kOwnRows ? 0 : Weights::kBytes;
  static constexpr int kStages =
      Rows::kBytes + 2 * Columns::kBytes + kWeightsBytes <= (88 << 10) ? 2 : 1;
  static constexpr int kSharedBytes = Rows::kBytes + kStages * Columns::kBytes + kWeightsBytes;
};

// Iterates over a share of the tiles of columns of all views, without the view that is left out, if
// any.
struct ColumnTile {
  int view, first, step, columns, skipped, left;

  __device__ __forceinline__ ColumnTile(const Contrastive& p, int i, int step_, int share = 0,
                                        int shares = 1)
      : step(step_),
        columns(static_cast<int>(p.y.rows)),
        skipped(p.options.leaves_out(i, i) ? i : -1) {
    const int of_view = (columns + step - 1) / step;
    const auto views = static_cast<int>(p.y.views) - (0 <= skipped && skipped < p.y.views ? 1 : 0);
    const std::int64_t tiles = std::int64_t{views} * of_view;
    const std::int64_t begin = tiles * share / shares;
    left = static_cast<int>(tiles * (share + 1) / shares - begin);
    view = of_view == 0 ? 0 : static_cast<int>(begin / of_view);
    first = of_view == 0 ? 0 : static_cast<int>(begin % of_view) * step;
    if (skipped >= 0 && view >= skipped) ++view;
  }
  __device__ __forceinline__ bool exists() const { return left > 0; }
  __device__ __forceinline__ ColumnTile next() const {
    ColumnTile tile = *this;
    --tile.left;
    tile.first += step;
    if (tile.first < columns) return tile;
    tile.first = 0;
    if (++tile.view == skipped) ++tile.view;
    return tile;
  }
};

// What the weights need of an embedding, which is a row or a column.
struct EmbeddingValues {
  float scale = 0;  // 1 / norm
  AnchorValues anchor;
};

// The terms of a tile's rows, or of its columns, in shared memory.
template <int kCount>
struct EmbeddingTerms {
  float scale[kCount], factor[kCount], lse[kCount];

  __device__ __forceinline__ void write(int at, const EmbeddingValues& values,
                                        const Temperature& t) {
    if (at >= kCount) return;
    const AnchorTerm term(values.anchor, t);
    scale[at] = values.scale;
    factor[at] = term.factor;
    lse[at] = term.lse;
  }
  template <bool kFixedShift>
  __device__ __forceinline__ AnchorTerm anchor(int at) const {
    AnchorTerm term;
    term.factor = factor[at];
    if (!kFixedShift) term.lse = lse[at];
    return term;
  }
};

__device__ __forceinline__ EmbeddingValues column_values(const ContrastiveBackward& b, int k, int i,
                                                         const ColumnTile& tile, int column) {
  const Contrastive& p = b.p;
  const std::int64_t at = tile.first + column;
  EmbeddingValues values;
  if (!tile.exists() || column >= tile.step || at >= tile.columns) return values;
  values.scale = p.inv_norm_y[(k * p.y.views + tile.view) * p.y.rows + at];
  values.anchor = AnchorValues(b.column, column_block(p, k, i, tile.view) + at);
  return values;
}

__device__ __forceinline__ EmbeddingValues row_values(const ContrastiveBackward& b, int k, int i,
                                                      int j, int row) {
  const Contrastive& p = b.p;
  EmbeddingValues values;
  if (row >= p.x.rows) return values;
  values.scale = p.inv_norm_x[(k * p.x.views + i) * p.x.rows + row];
  values.anchor = AnchorValues(b.row, row_block(p, k, i, j) + row);
  return values;
}

// A part of the rows of one launch: tiles [first_tile, first_tile + tiles), counted through all
// views with row_tiles each, which are the rows [first_row, first_row + rows) of V * N.
struct FusedPart {
  int first_tile, tiles, row_tiles;
  std::int64_t first_row, rows, first_slice, slices;
};

// The work space for a part: sums of W ry y, and of W <w x, y> ry.
struct PartialSums {
  float *sums, *dots;
  std::int64_t rows;
  int splits, dim;

  PartialSums() = default;
  PartialSums(const ContrastiveFusedBackward& f, const FusedPart& part, int dim_)
      : sums(f.partial),
        dots(f.partial + f.b.p.subspaces * f.plan.splits * part.rows * dim_),
        rows(part.rows),
        splits(static_cast<int>(f.plan.splits)),
        dim(dim_) {}
  // Where the sums of row `row` of this part lie.
  __device__ __forceinline__ float* sums_of(int k, int split, std::int64_t row) const {
    return sums + ((k * splits + split) * rows + row) * dim;
  }
  __device__ __forceinline__ float& dot_of(int k, int split, std::int64_t row) const {
    return dots[(k * splits + split) * rows + row];
  }
};

template <typename T, int kDim, bool kOwnRows,
          int kMostBytes = FusedTile<T, kDim, kOwnRows>::kSharedBytes>
__global__ void __launch_bounds__(kFusedThreads, 2)
    fused_backward(DynamicShared<kMostBytes>, ContrastiveBackward f, FusedPart part,
                   PartialSums partial) {
  using Tile = FusedTile<T, kDim, kOwnRows>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kThreadRows = Tile::kThreadRows;
  const Contrastive& p = f.p;
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, lane = thread % 32;
  constexpr int kWarpColumns = Tile::kWarpColumns;
  const int warp_row = warp / kWarpColumns * (kRows / Tile::kWarpRows);
  const int warp_side = warp % kWarpColumns;
  const int warp_column = warp_side * (kColumns / kWarpColumns), warp_dim = warp_side * 16;
  // A thread accumulates rows row_of(r): for the products, columns 8 c + 2 (lane % 4) of its warp
  // and the next ones; for the gradient, elements dim_of(c) and the next ones.
  const auto row_of = [&](int r) { return warp_row + lane / 4 + 8 * r; };
  const auto dim_of = [&](int c) {
    return c / 2 * (16 * kWarpColumns) + warp_dim + c % 2 * 8 + lane % 4 * 2;
  };
  const auto block = static_cast<int>(blockIdx.x);
  const int tile_of_rows = part.first_tile + block % part.tiles;
  const int split = block / part.tiles % partial.splits, k = block / part.tiles / partial.splits;
  const int i = tile_of_rows / part.row_tiles, first_row = tile_of_rows % part.row_tiles * kRows;
  const int rows_left = static_cast<int>(p.x.rows) - first_row;
  const int rows_here = rows_left < kRows ? rows_left : kRows;
  const auto dim = static_cast<int>(p.x.dim);
  const Temperature t(p);

  unsigned char* const memory = dynamic_shared_memory();
  const typename Tile::Rows row_operand{memory};
  const typename Tile::Weights weights{memory + Tile::Rows::kBytes};
  const auto columns_at = [&](int stage) {
    return typename Tile::Columns{memory + Tile::Rows::kBytes + Tile::kWeightsBytes +
                                  stage * Tile::Columns::kBytes};
  };
  const auto load_columns = [&](const ColumnTile& tile, int stage) {
    if (!tile.exists()) return;
    load_rows<kFusedThreads>(columns_at(stage), ViewRows<T>(p.y, tile.view, k), tile.first, 0);
  };
  __shared__ EmbeddingTerms<kColumns> column_terms[2];  // of this tile and the next
  __shared__ EmbeddingTerms<kRows> row_terms[2];        // of this view and the next
  // Of the rows' positives: the part of W that comes from lse, and <w x, y> / |y|.
  __shared__ float positive_weights[kRows], positive_values[kRows];
  __shared__ float side_dots[kWarpColumns][kRows];

  ColumnTile tile(p, i, kColumns, split, partial.splits);
  load_rows<kFusedThreads>(row_operand, ViewRows<T>(p.x, i, k), first_row, 0, MaskFactor(p, k));
  if (Tile::kStages == 2) load_columns(tile, 0);
  column_terms[0].write(thread, column_values(f, k, i, tile, thread), t);
  if (tile.exists() && thread < kRows) {
    row_terms[0].write(thread, row_values(f, k, i, tile.view, first_row + thread), t);
  }

  float dots[kThreadRows] = {};  // sums of W <w x, y> / |y|
  WarpSums<Tile::kRowBlocks, Tile::kDimBlocks> sums = {};
  for (int stage = 0, column_buffer = 0, row_buffer = 0; tile.exists();
       column_buffer = 1 - column_buffer) {
    if (Tile::kStages == 1) {
      __syncthreads();  // no thread still reads the last tile
      load_columns(tile, 0);
    }
    wait_for_copies();
    __syncthreads();  // this tile has arrived, and no thread still reads the last one
    const ColumnTile next = tile.next();
    if (Tile::kStages == 2) load_columns(next, 1 - stage);
    const EmbeddingValues next_values = column_values(f, k, i, next, thread);
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
    const FragmentWriter<typename Tile::Weights> weight_writer(weights, warp_row, warp_column / 8);
    LeftFragments<Tile::kRowBlocks, Tile::kColumnBlocks> own_weights;  // if the rows are its own
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
            float w = sums_weight<fixed_shift>(value, of_rows.scale[row_of(r)] * t.scale, scale, t,
                                               row_anchor,
                                               of_columns.template anchor<fixed_shift>(at + q));
            entry[q] = w * scale;
            if (has_positives && at + q - row_of(r) == positives.partner) {
              positive_weights[row_of(r)] = exclude ? 0.0f : w;
              positive_values[row_of(r)] = value;
              entry[q] = w = 0;
            }
            dots[r] += w * value;
          }
          if constexpr (Tile::kOwnRows) {
            own_weights[r / 2][c / 2][0][c % 2 * 2 + r % 2] = pack_bfloat16(entry[0], entry[1]);
          } else {
            weight_writer.write(8 * r, c, entry[0], entry[1]);
          }
        }
      }
    };
    using std::false_type, std::true_type;
    if (positives.here) {
      t.fixed_shift ? weigh(true_type{}, true_type{}) : weigh(false_type{}, true_type{});
    } else {
      t.fixed_shift ? weigh(true_type{}, false_type{}) : weigh(false_type{}, false_type{});
    }
    column_terms[1 - column_buffer].write(thread, next_values, t);
    if (next.view != tile.view) {
      row_buffer = 1 - row_buffer;
      if (next.exists() && thread < kRows) {
        row_terms[row_buffer].write(thread, row_values(f, k, i, next.view, first_row + thread), t);
      }
    }
    if (!Tile::kOwnRows || positives.here) __syncthreads();  // all weights have been written

    if constexpr (Tile::kOwnRows) {
      multiply_rows(sums, own_weights, columns);
    } else {
      multiply_rows<Tile::kRowBlocks, Tile::kDimBlocks>(sums, weights, warp_row, columns, warp_dim);
    }
    if (positives.here) {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        const int column = row_of(r) + positives.partner;
        if (row_of(r) >= rows_here || column < 0 || column >= kColumns ||
            tile.first + column >= tile.columns) {
          continue;
        }
        const float w = positive_weights[row_of(r)] +
                        positive_weight(f, row_block(p, k, i, tile.view) + first_row + row_of(r),
                                        column_block(p, k, i, tile.view) + tile.first + column, t);
        if (warp_side == 0 && lane % 4 == 0) dots[r] += w * positive_values[row_of(r)];
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

  // A row's dot is spread over the warps beside each other, and over four lanes of each.
  wait_for_copies();  // those of the rows, if there was no tile of columns
  const std::int64_t first_in_part = i * p.x.rows + first_row - part.first_row;
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    const float dot = group_sum<4>(dots[r]);
    if (lane % 4 == 0) side_dots[warp_side][row_of(r)] = dot;
    if (row_of(r) >= rows_here) continue;
    float* const to = partial.sums_of(k, split, first_in_part + row_of(r));
#pragma unroll
    for (int c = 0; c < 2 * Tile::kDimBlocks; ++c) {
      const float* const sum = sums[r / 2][c / 2][c % 2] + r % 2 * 2;
      *reinterpret_cast<float2*>(to + dim_of(c)) = make_float2(sum[0], sum[1]);
    }
  }
  __syncthreads();
  if (thread < rows_here) {
    float dot = side_dots[0][thread];
    if constexpr (kWarpColumns == 2) dot += side_dots[1][thread];
    partial.dot_of(k, split, first_in_part + thread) = dot;
  }
}

// ---- From the partial sums to the gradients

inline constexpr int kFinishThreads = 256, kFinishRows = kFinishThreads / kWarpSize;

// A thread block takes a slice of the rows, and a warp every kFinishRows-th of them.
template <typename T, int kDim>
__global__ void __launch_bounds__(kFinishThreads, 4)
    finish_rows(ContrastiveFusedBackward f, FusedPart part, PartialSums partial) {
  constexpr int kChunks = (kDim + 127) / 128;  // of 32 lanes with four elements each
  const Contrastive& p = f.b.p;
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const auto dim = static_cast<int>(f.z.dim), subspaces = static_cast<int>(p.subspaces);
  const std::int64_t slice = part.first_slice + blockIdx.x;
  const std::int64_t begin = blockIdx.x * f.plan.slice_rows;
  const std::int64_t end = std::min(begin + f.plan.slice_rows, part.rows);
  const bool aligned =
      is_aligned(static_cast<const T*>(f.z.data), f.z.row_stride, dim) && f.z.view_stride % 8 == 0;
  const bool aligned_grad = dim % 8 == 0;
  const bool first = f.first_subspace == 0;
  const bool last = f.first_subspace + subspaces == f.all_subspaces;
  alignas(16) __shared__ float grad_masks[kFinishRows][kChunks * 128];

  float dots = 0;  // of the warp's rows
  for (std::int64_t from = begin; from < end; from += kFinishRows) {
    const std::int64_t row = from + warp, at = part.first_row + row;
    const bool inside = row < end;
    float z[kChunks][4] = {}, grads[kChunks][4] = {};
    if (inside) {
      const T* const source = static_cast<const T*>(f.z.data) + at / f.z.rows * f.z.view_stride +
                              at % f.z.rows * f.z.row_stride;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int d = c * 128 + lane * 4;
        read_packet(source + d, dim - d, aligned, z[c]);
      }
    }
    for (int k = 0; k < subspaces; ++k) {
      const float* const mask = f.masks == nullptr ? nullptr : f.masks + k * dim;
      float scale = 0, dot = 0;
      if (inside) {
        scale = p.inv_norm_x[k * f.z.views * f.z.rows + at];
#pragma unroll 4
        for (int split = 0; split < partial.splits; ++split) {
          dot += partial.dot_of(k, split, row);
        }
        dot *= scale;
      }
      const float factor = factor_of(f.factor);  // here, where it takes a register for few lines
      const float projection = row_projection(scale, dot) * factor;
      dots += dot * factor;
      scale *= factor;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int d = c * 128 + lane * 4;
        float sum[4] = {}, grad_mask[4] = {};
        if (inside && d < dim) {
#pragma unroll 4
          for (int split = 0; split < partial.splits; ++split) {
            const float4 part_sum =
                *reinterpret_cast<const float4*>(partial.sums_of(k, split, row) + d);
            sum[0] += part_sum.x;
            sum[1] += part_sum.y;
            sum[2] += part_sum.z;
            sum[3] += part_sum.w;
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float m = mask != nullptr && d + e < dim ? mask[d + e] : 1.0f;
            // Unless elements are split, columns were multiplied by m, and so is G here.
            const float of_columns = kSplitFactors<T> ? 1.0f : m;
            const float value = sum[e] * scale - projection * (z[c][e] * of_columns);
            grads[c][e] += (kSplitFactors<T> ? m * m : m) * value;
            grad_mask[e] = z[c][e] * value * (kSplitFactors<T> ? m : 1.0f);
          }
        }
        if (f.grad_masks != nullptr) {
          *reinterpret_cast<float4*>(&grad_masks[warp][d]) =
              make_float4(grad_mask[0], grad_mask[1], grad_mask[2], grad_mask[3]);
        }
      }
      if (f.grad_masks == nullptr) continue;
      __syncthreads();
      for (int d = thread; d < dim; d += kFinishThreads) {
        float& to = f.grad_masks[(slice * f.all_subspaces + f.first_subspace + k) * dim + d];
        float sum = from == begin ? 0.0f : to;
#pragma unroll
        for (int w = 0; w < kFinishRows; ++w) sum += grad_masks[w][d];
        to = sum;
      }
      __syncthreads();  // no thread still reads the sums of this subspace
    }
    if (!inside || f.grad_x == nullptr) continue;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int d = c * 128 + lane * 4;
      float* const sum = f.sum == nullptr ? nullptr : f.sum + at * dim + d;
      T* const grad = static_cast<T*>(f.grad_x) + at * dim + d;
      if (!first) {
        float before[4];
        if constexpr (std::is_same_v<T, float>) {
          read_packet(grad, dim - d, aligned_grad, before);
        } else {
          read_packet(sum, dim - d, aligned_grad, before);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) grads[c][e] = before[e] + grads[c][e];
      }
      if (last || std::is_same_v<T, float>) {
        write_packet(grads[c], dim - d, aligned_grad, grad);
      } else {
        write_packet(grads[c], dim - d, aligned_grad, sum);
      }
    }
  }
  dots = block_sum<kFinishThreads>(lane == 0 ? dots : 0.0f);
  if (thread == 0) f.dots[slice] = first ? dots : f.dots[slice] + dots;
}

// body.operator()<kDim, kOwnRows>() for the narrowest tile that holds the embeddings.
template <typename T, typename Body>
auto visit_fused_tile(std::int64_t dim, bool many_rows, Body&& body) {
  constexpr int kWidest = std::is_same_v<T, float> ? kMostFusedFloats : kMostFusedDims;
  const auto of_dim = [&]<int kDim>() {
    if constexpr (kCanOwnRows<T, kDim>) {
      if (many_rows) return body.template operator()<kDim, true>();
    }
    return body.template operator()<kDim, false>();
  };
  if (dim <= 64) return of_dim.template operator()<64>();
  if (dim <= 128) return of_dim.template operator()<128>();
  return of_dim.template operator()<kWidest>();
}

}  // namespace mast_ext::kernels::contrastive
