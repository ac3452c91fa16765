// The forward pass: a thread block owns a tile of rows of one block (k, i, j) and a split (a share)
// of its columns. The sums of several splits are merged by a second kernel.
//
// In self-contrast with the fixed shift, the matrix of all rows of all views by themselves is cut
// into squares of tiles, and a thread block owns a square on the diagonal or above it. A tile adds
// to the sums of its rows and, except on the diagonal, to those of its columns, which are rows of
// the mirror image. The squares beside each other are the splits.
#pragma once

#include "kernels/contrastive_logsumexp/contrastive_sums.cuh"
#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

// Adds the entries of a tile to the sums of its rows and, if kMirrored, of its columns; overwrites
// the products. kWhole: all entries exist and none is left out.
template <bool kFixedShift, bool kWhole, bool kMirrored, typename Tile>
__device__ __forceinline__ void add_tile(ShiftedSum (&sums)[Tile::kThreadRows],
                                         float (&column_sums)[2 * Tile::kThreadColumns],
                                         typename Tile::Sums& products, const float* row_scale,
                                         const float* column_scale, int rows, int columns,
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
    const int columns_here = !kMirrored || Tile::row(r) < rows ? columns : 0;
    const auto each = [&](const auto& body) {
#pragma unroll
      for (int c = 0; c < 2 * Tile::kThreadColumns; ++c) {
        const int column = Tile::column(c / 2) + c % 2;
        if (kWhole || (column < columns_here && column != excluded)) {
          body(c, Tile::pair(products, r, c / 2)[c % 2]);
        }
      }
    };
    float shift = sums[r].max;
    if constexpr (!kFixedShift) {
      float top = shift;
      each([&](int, float value) { top = fmaxf(top, value * scale); });
      sums[r].raise(top);
      shift = sums[r].shift();
    }
    float sum = 0;
    each([&](int c, float value) {
      const float entry = exp2_fast(fmaf(value, scale, -shift));
      sum += entry;
      if (kMirrored) column_sums[c] += entry;
    });
    sums[r].sum += sum;
  }
}

// Exchanges the halves of 2 kHalf values with the lane at this distance, and adds up: each lane
// gets the sums of one half, as the first ones of `values`.
template <int kHalf, int kCount>
__device__ __forceinline__ void sum_halves(float (&values)[kCount], int distance) {
  const bool second = (threadIdx.x & distance) != 0;
#pragma unroll
  for (int v = 0; v < kHalf; ++v) {
    const float mine = second ? values[v + kHalf] : values[v];
    const float other = second ? values[v] : values[v + kHalf];
    values[v] = mine + __shfl_xor_sync(0xffffffffu, other, distance);
  }
}

// Adds up kCount values, 8 or 16, over the lanes that are equal modulo 4. Lane l gets the sums
// number kCount / 8 * (l / 4) and, of 16, the next one, as the first ones of `values`.
template <int kCount>
__device__ __forceinline__ void sum_over_rows(float (&values)[kCount]) {
  sum_halves<kCount / 2>(values, 16);
  sum_halves<kCount / 4>(values, 8);
  sum_halves<kCount / 8>(values, 4);
}

// What a thread block computes: of block (k, i, j), some tiles of rows by some tiles of columns.
struct ForwardPart {
  int k, i, j;
  int first_rows, last_rows;        // tiles of rows
  int first_columns, last_columns;  // tiles of columns
  int split, mirrored_split;        // of the rows' sums, and of the columns'
  bool diagonal;                    // a square on the diagonal

  // A tile of rows, and a split.
  template <typename Tile>
  static __device__ __forceinline__ ForwardPart of_split(const ContrastiveForward& f) {
    const Contrastive& p = f.p;
    const auto row_tiles = static_cast<int>((p.x.rows + Tile::kRows - 1) / Tile::kRows);
    const auto splits = static_cast<int>(f.splits), y_views = static_cast<int>(p.y.views);
    ForwardPart part{};
    auto block = static_cast<int>(blockIdx.x);
    part.first_rows = block % row_tiles;
    part.last_rows = part.first_rows + 1;
    block /= row_tiles;
    part.split = block % splits;
    block /= splits;
    part.j = block % y_views;
    block /= y_views;
    part.i = block % static_cast<int>(p.x.views);
    part.k = block / static_cast<int>(p.x.views);
    const std::int64_t tiles = (p.y.rows + Tile::kColumns - 1) / Tile::kColumns;
    part.first_columns = static_cast<int>(tiles * part.split / splits);
    part.last_columns = static_cast<int>(tiles * (part.split + 1) / splits);
    return part;
  }

  // A square: number J (J + 1) / 2 + I is at (I, J), where sides are counted through all views.
  template <typename Tile>
  static __device__ __forceinline__ ForwardPart of_square(const ContrastiveForward& f) {
    static_assert(Tile::kRows == kSquareRows);
    constexpr int kTiles = Tile::kRows / Tile::kColumns;  // of columns in a square tile
    const auto of_view = static_cast<int>(f.splits), side = static_cast<int>(f.side);
    const std::int64_t sides = f.p.x.views * f.splits, squares = sides * (sides + 1) / 2;
    const std::int64_t at = blockIdx.x % squares;
    auto column = static_cast<std::int64_t>((sqrtf(8 * static_cast<float>(at) + 1) - 1) / 2);
    while (column * (column + 1) / 2 > at) --column;
    while ((column + 1) * (column + 2) / 2 <= at) ++column;
    const auto b = static_cast<int>(column), a = static_cast<int>(at - column * (column + 1) / 2);
    const auto tiles = static_cast<int>((f.p.x.rows + kSquareRows - 1) / kSquareRows);
    const auto column_tiles = static_cast<int>((f.p.x.rows + Tile::kColumns - 1) / Tile::kColumns);
    ForwardPart part{};
    part.k = static_cast<int>(blockIdx.x / squares);
    part.i = a / of_view;
    part.j = b / of_view;
    part.split = b % of_view;  // the rows' sums are over this part of the columns
    part.mirrored_split = a % of_view;
    part.diagonal = a == b;
    part.first_rows = part.mirrored_split * side;
    part.last_rows = std::min(part.first_rows + side, tiles);
    part.first_columns = part.split * side * kTiles;
    part.last_columns = std::min(part.first_columns + side * kTiles, column_tiles);
    return part;
  }
};

template <typename T, bool kMirrored, int kMostBytes = ProductTile<T>::kMostSharedBytes>
__global__ void __launch_bounds__(kTileThreads, 2)
    forward_tiles(DynamicShared<kMostBytes>, ContrastiveForward f) {
  using Tile = ProductTile<T>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kThreadRows = Tile::kThreadRows;
  constexpr int kThreadColumns = Tile::kThreadColumns;
  static_assert(kRows == kTileThreads && kColumns <= kTileThreads);
  const Contrastive& p = f.p;
  ForwardPart part;
  if constexpr (kMirrored) {
    part = ForwardPart::of_square<Tile>(f);
  } else {
    part = ForwardPart::of_split<Tile>(f);
  }
  const int k = part.k, i = part.i, j = part.j;
  const bool left_out = p.options.leaves_out(i, j);
  if (left_out && kMirrored) return;  // merge_splits() knows it

  const auto thread = static_cast<int>(threadIdx.x);
  const Temperature t(p);
  const bool fixed_shift = kMirrored || t.fixed_shift;
  const float* const inv_norm_y = p.inv_norm_y + (k * p.y.views + j) * p.y.rows;
  const std::int64_t results = row_block(p, static_cast<int>(p.subspaces), 0, 0);
  // The results of block (i, j)'s row 0, and of (j, i)'s; the latter is one of the same loss.
  const std::int64_t result = row_block(p, k, i, j), mirrored = row_block(p, k, j, i);
  __shared__ float row_scale[kRows];  // logit = row_scale <w x, y> / |y|
  alignas(16) __shared__ float column_scale[2][kColumns];
  __shared__ float half_columns[2][kMirrored ? kColumns : 1];

#pragma unroll 1
  for (int row_tile = part.first_rows; row_tile < part.last_rows; ++row_tile) {
    const int first_row = row_tile * kRows;
    const int rows_left = static_cast<int>(p.x.rows) - first_row;
    const float* const inv_norm_x = p.inv_norm_x + (k * p.x.views + i) * p.x.rows + first_row;
    if (kMirrored) __syncthreads();  // no thread still reads the last tile's memory
    row_scale[thread] = thread < rows_left ? inv_norm_x[thread] * t.scale : 0.0f;
    ShiftedSum sums[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      if (fixed_shift) sums[r].max = t.scale;
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
      // On the diagonal, a tile serves its rows, which are its columns, too.
      const bool mirrors = kMirrored && !(part.diagonal && tile * kColumns < first_row + kRows);
      float* const column_sum =
          f.partial_sum + part.mirrored_split * results + mirrored + tile * kColumns + thread;
      const bool has_column = mirrors && thread < kColumns && thread < columns;
      const float before = has_column && row_tile > part.first_rows ? *column_sum : 0.0f;
      Positives positives(p, first_row, kRows, tile * kColumns, kColumns);
      if (positives.here && f.positive != nullptr) {
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
          const int row = Tile::row(r), partner = row + positives.partner;
          float product = 0;
          bool here = false;
#pragma unroll
          for (int c = 0; c < 2 * kThreadColumns; ++c) {
            if (Tile::column(c / 2) + c % 2 != partner) continue;
            product = Tile::pair(products, r, c / 2)[c % 2];
            here = true;
          }
          if (!here || partner >= columns || row >= rows_left) continue;
          const float positive = product * scale[partner] * row_scale[row] * kLn2;
          f.positive[result + first_row + row] = positive;
          if (mirrors) f.positive[mirrored + tile * kColumns + partner] = positive;
        }
      }
      positives.here &= p.options.excludes(i, j);
      float column_sums[2 * kThreadColumns] = {};
      const auto add = [&](auto fixed, auto whole) {
        add_tile<fixed, whole, kMirrored, Tile>(sums, column_sums, products, row_scale, scale,
                                                rows_left, columns, positives);
      };
      using std::false_type, std::true_type;
      const bool whole =
          columns >= kColumns && !positives.here && (!kMirrored || rows_left >= kRows);
      if constexpr (kMirrored) {
        whole ? add(true_type{}, true_type{}) : add(true_type{}, false_type{});
      } else if (whole) {
        t.fixed_shift ? add(true_type{}, true_type{}) : add(false_type{}, true_type{});
      } else {
        t.fixed_shift ? add(true_type{}, false_type{}) : add(false_type{}, false_type{});
      }
      if (!mirrors) return;  // the same for all threads
      // The rows of a column are spread over two warps, and over eight lanes of each.
      sum_over_rows(column_sums);
#pragma unroll
      for (int v = 0; v < kThreadColumns / 4; ++v) {
        const int c = kThreadColumns / 4 * (thread % 32 / 4) + v;
        half_columns[thread / 64][Tile::column(c / 2) + c % 2] = column_sums[v];
      }
      __syncthreads();
      if (has_column) *column_sum = before + (half_columns[0][thread] + half_columns[1][thread]);
    };
    const int first_columns = part.diagonal ? row_tile * (kRows / kColumns) : part.first_columns;
    multiply_tiles<T>(ViewRows<T>(p.x, i, k), ViewRows<T>(p.y, j, k), MaskFactor(p, k), first_row,
                      first_columns, left_out ? first_columns : part.last_columns, begin, end);

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
    if (thread >= rows_left) continue;  // with a part of a tile of rows, which is the last one
    ShiftedSum total = halves[thread];
    total.add(halves[kRows + thread]);
    const std::int64_t at = result + first_row + thread;
    if (left_out && part.split == 0 && f.positive != nullptr) f.positive[at] = 0;
    if (!kMirrored && f.splits == 1) {
      f.lse[at] = total.log();
      return;
    }
    float& sum = f.partial_sum[part.split * results + at];
    // On the diagonal, a tile of rows has been one of columns before.
    sum = part.diagonal && row_tile > part.first_rows ? sum + total.sum : total.sum;
    if (!fixed_shift) f.partial_max[part.split * results + at] = total.max;
  }
}

inline constexpr int kMergeThreads = 256;

__global__ void __launch_bounds__(kMergeThreads)
    merge_splits(ContrastiveForward f, std::int64_t count) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  if (at < count) merge(f, Temperature(f.p), count, at);
}

}  // namespace mast_ext::kernels::contrastive
