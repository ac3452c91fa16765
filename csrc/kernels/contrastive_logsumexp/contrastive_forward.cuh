// The forward pass: a thread block owns a tile of rows of one block (k, i, j) and a split (a share)
// of its columns. The sums of several splits are merged by a second kernel.
#pragma once

#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

// The state of an online log-sum-exp: the running maximum, and the sum of 2^(s - max). With the
// fixed shift, `max` is that shift and never changes.
struct ShiftedSum {
  float max = -INFINITY, sum = 0;

  // What to subtract from s: the maximum of an empty sum is -inf.
  __device__ __forceinline__ float shift() const { return max == -INFINITY ? 0.0f : max; }

  __device__ __forceinline__ void raise(float to) {
    if (!(to > max)) return;
    sum *= exp2_fast(max - to);
    max = to;
  }
  __device__ __forceinline__ void add(ShiftedSum other) {
    const float top = fmaxf(max, other.max);
    raise(top);
    other.raise(top);
    sum += other.sum;
  }
  __device__ __forceinline__ float log() const { return (log2f(sum) + shift()) * kLn2; }
};

// Adds the entries of a tile to the sums of its rows; overwrites the products. kWhole: all entries
// exist and none is left out.
template <bool kFixedShift, bool kWhole, typename Tile>
__device__ __forceinline__ void add_tile(ShiftedSum (&sums)[Tile::kThreadRows],
                                         typename Tile::Sums& products, const float* row_scale,
                                         const float* column_scale, int columns,
                                         const Positives& left_out) {
#pragma unroll
  for (int c = 0; c < Tile::kThreadColumns; ++c) {
    const float2 scale = *reinterpret_cast<const float2*>(column_scale + Tile::column(c));
#pragma unroll
    for (int r = 0; r < Tile::kThreadRows; ++r) {
      Tile::pair(products, r, c)[0] *= scale.x;
      Tile::pair(products, r, c)[1] *= scale.y;
    }
  }
#pragma unroll
  for (int r = 0; r < Tile::kThreadRows; ++r) {
    const float scale = row_scale[Tile::row(r)];
    const int excluded = left_out.here ? Tile::row(r) + left_out.partner : -1;
    const auto each = [&](const auto& body) {
#pragma unroll
      for (int c = 0; c < 2 * Tile::kThreadColumns; ++c) {
        const int column = Tile::column(c / 2) + c % 2;
        if (kWhole || (column < columns && column != excluded)) {
          body(Tile::pair(products, r, c / 2)[c % 2]);
        }
      }
    };
    float shift = sums[r].max;
    if constexpr (!kFixedShift) {
      float top = shift;
      each([&](float value) { top = fmaxf(top, value * scale); });
      sums[r].raise(top);
      shift = sums[r].shift();
    }
    float sum = 0;
    each([&](float value) { sum += exp2_fast(fmaf(value, scale, -shift)); });
    sums[r].sum += sum;
  }
}

template <typename T, int kMostBytes = ProductTile<T>::kMostSharedBytes>
__global__ void __launch_bounds__(kTileThreads, 2)
    forward_tiles(DynamicShared<kMostBytes>, ContrastiveForward f) {
  using Tile = ProductTile<T>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kThreadRows = Tile::kThreadRows;
  static_assert(kRows == kTileThreads && kColumns <= kTileThreads);
  const Contrastive& p = f.p;
  const int row_tiles = static_cast<int>((p.x.rows + kRows - 1) / kRows);
  const auto splits = static_cast<int>(f.splits), y_views = static_cast<int>(p.y.views);
  auto block = static_cast<int>(blockIdx.x);
  const int first_row = block % row_tiles * kRows;
  block /= row_tiles;
  const int split = block % splits;
  block /= splits;
  const int j = block % y_views;
  block /= y_views;
  const int i = block % static_cast<int>(p.x.views), k = block / static_cast<int>(p.x.views);
  const std::int64_t column_tiles =
      p.options.leaves_out(i, j) ? 0 : (p.y.rows + kColumns - 1) / kColumns;
  const auto first_tile = static_cast<int>(column_tiles * split / splits);
  const auto last_tile = static_cast<int>(column_tiles * (split + 1) / splits);

  const auto thread = static_cast<int>(threadIdx.x);
  const int rows_left = static_cast<int>(p.x.rows) - first_row;
  const Temperature t(p);
  const std::int64_t first_result = row_block(p, k, i, j) + first_row;
  const float* const inv_norm_x = p.inv_norm_x + (k * p.x.views + i) * p.x.rows + first_row;
  const float* const inv_norm_y = p.inv_norm_y + (k * p.y.views + j) * p.y.rows;
  __shared__ float row_scale[kRows];  // logit = row_scale <w x, y> / |y|
  alignas(16) __shared__ float column_scale[2][kColumns];
  row_scale[thread] = thread < rows_left ? inv_norm_x[thread] * t.scale : 0.0f;
  ShiftedSum sums[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    if (t.fixed_shift) sums[r].max = t.scale;
  }

  const auto begin = [&](int tile) {
    const int column = tile * kColumns + thread;
    const bool inside = column < p.y.rows;
    if (thread >= kColumns) return;
    copy_async<4>(&column_scale[tile % 2][thread], inside ? inv_norm_y + column : inv_norm_y,
                  inside);
  };
  const auto end = [&](int tile, typename Tile::Sums& products) {
    const auto columns = static_cast<int>(p.y.rows - tile * kColumns);
    const float* const scale = column_scale[tile % 2];
    Positives positives(p, first_row, kRows, tile * kColumns, kColumns);
    if (positives.here && f.positive != nullptr) {
      float* const to = f.positive + first_result;
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
        const int row = Tile::row(r), partner = row + positives.partner;
#pragma unroll
        for (int c = 0; c < 2 * Tile::kThreadColumns; ++c) {
          const int column = Tile::column(c / 2) + c % 2;
          if (column != partner || column >= columns || row >= rows_left) continue;
          to[row] = Tile::pair(products, r, c / 2)[c % 2] * scale[column] * row_scale[row] * kLn2;
        }
      }
    }
    positives.here &= p.options.excludes(i, j);
    const auto add = [&](auto fixed_shift, auto whole) {
      add_tile<fixed_shift, whole, Tile>(sums, products, row_scale, scale, columns, positives);
    };
    using std::false_type, std::true_type;
    if (columns >= kColumns && !positives.here) {
      t.fixed_shift ? add(true_type{}, true_type{}) : add(false_type{}, true_type{});
    } else {
      t.fixed_shift ? add(true_type{}, false_type{}) : add(false_type{}, false_type{});
    }
  };
  multiply_tiles<T>(ViewRows<T>(p.x, i, k), ViewRows<T>(p.y, j, k), MaskFactor(p, k), first_row,
                    first_tile, last_tile, begin, end);

  // The columns of a row are spread over two warps, and over four lanes of each.
  __syncthreads();  // no thread still reads the operands, whose memory is used again
  auto* const halves = reinterpret_cast<ShiftedSum*>(dynamic_shared_memory());
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      ShiftedSum other;
      other.max = __shfl_xor_sync(0xffffffffu, sums[r].max, offset);
      other.sum = __shfl_xor_sync(0xffffffffu, sums[r].sum, offset);
      sums[r].add(other);
    }
    if (thread % 4 == 0) halves[thread / 32 % 2 * kRows + Tile::row(r)] = sums[r];
  }
  __syncthreads();
  if (thread >= rows_left) return;
  ShiftedSum total = halves[thread];
  total.add(halves[kRows + thread]);
  const std::int64_t at = first_result + thread;
  if (p.options.leaves_out(i, j) && split == 0 && f.positive != nullptr) f.positive[at] = 0;
  if (splits == 1) {
    f.lse[at] = total.log();
    return;
  }
  const std::int64_t partial = split * row_block(p, static_cast<int>(p.subspaces), 0, 0) + at;
  f.partial_sum[partial] = total.sum;
  if (!t.fixed_shift) f.partial_max[partial] = total.max;
}

inline constexpr int kMergeThreads = 256;

__global__ void __launch_bounds__(kMergeThreads)
    merge_splits(ContrastiveForward f, std::int64_t count) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  if (at >= count) return;
  const Temperature t(f.p);
  ShiftedSum total;
  for (std::int64_t split = 0; split < f.splits; ++split) {
    ShiftedSum part;
    part.max = t.fixed_shift ? t.scale : f.partial_max[split * count + at];
    part.sum = f.partial_sum[split * count + at];
    total.add(part);
  }
  f.lse[at] = total.log();
}

}  // namespace mast_ext::kernels::contrastive
