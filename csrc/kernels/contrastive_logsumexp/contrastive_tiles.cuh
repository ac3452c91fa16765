// What the CUDA kernels of contrastive_logsumexp share: loading rows into shared memory,
// temperatures, the weight of an entry, and the products of a tile of rows with tiles of columns.
//
// bfloat16 embeddings are multiplied as they are: a tile is copied to shared memory without passing
// through registers. float32 and float16 are split into parts (mma.cuh).
//
// Masks are applied so that an entry and its mirror image, with row and column exchanged, are the
// same number: the gradient weighs an entry by exp(s - lse), where the lse of a column was summed
// over mirror images. Rounding must therefore treat rows and columns alike: bfloat16 rows and
// columns are both multiplied by m, beforehand (mask_rows). Split rows are multiplied by w = m^2
// and columns by 1, because the parts hold w x to the last bit of float32, or to 2^-17 for float16.
//
// Logits are to base 2 inside the kernels, so that an exponential is one instruction.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/dtype.h"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/contrastive_logsumexp/contrastive_logsumexp.h"

namespace mast_ext::kernels::contrastive {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// The number of bfloat16 parts that an element is split into.
template <typename T>
inline constexpr int kPartsOf = std::is_same_v<T, float>       ? 3
                                : std::is_same_v<T, c10::Half> ? 2
                                                               : 1;
template <typename T>
inline constexpr bool kSplitFactors = kPartsOf<T> > 1;

// ---- Rows

// Reads kCount elements, 4 or 8, as floats; those from `count` on are beyond the end of the row and
// become 0. `aligned`: rows begin at a multiple of 16 bytes and have a multiple of eight elements.
template <int kCount, typename T>
__device__ __forceinline__ void read_packet(const T* from, int count, bool aligned,
                                            float (&to)[kCount]) {
  constexpr int kElements = std::min(kCount, static_cast<int>(16 / sizeof(T)));
  struct alignas(kElements * sizeof(T)) Packet {
    T values[kElements];
  };
  if (aligned && count > 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += kElements) {
      const Packet packet = *reinterpret_cast<const Packet*>(from + i);
#pragma unroll
      for (int e = 0; e < kElements; ++e) to[i + e] = static_cast<float>(packet.values[e]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = i < count ? static_cast<float>(from[i]) : 0.0f;
}

// Writes kCount elements, as many of them as a row has.
template <int kCount, typename T>
__device__ __forceinline__ void write_packet(const float (&from)[kCount], int count, bool aligned,
                                             T* to) {
  struct alignas(kCount * sizeof(T)) Packet {
    T values[kCount];
  };
  static_assert(sizeof(Packet) <= 16);
  if (aligned && count > 0) {
    Packet packet;
#pragma unroll
    for (int e = 0; e < kCount; ++e) packet.values[e] = static_cast<T>(from[e]);
    *reinterpret_cast<Packet*>(to) = packet;
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) to[i] = static_cast<T>(from[i]);
  }
}

template <typename T>
__device__ __forceinline__ bool is_aligned(const T* rows, std::int64_t stride, std::int64_t dim) {
  const auto bytes = reinterpret_cast<std::uintptr_t>(rows) |
                     static_cast<std::uintptr_t>(stride * std::int64_t{sizeof(T)});
  return bytes % 16 == 0 && dim % 8 == 0;
}

// The rows of one view, in subspace k if there are copies for each.
template <typename T>
struct ViewRows {
  const T* data;
  std::int64_t stride;
  int count, dim;
  bool aligned;

  __device__ __forceinline__ ViewRows(const EmbeddingRows& z, int view, int k = 0)
      : data(static_cast<const T*>(z.data) + k * z.subspace_stride + view * z.view_stride),
        stride(z.row_stride),
        count(static_cast<int>(z.rows)),
        dim(static_cast<int>(z.dim)),
        aligned(is_aligned(data, stride, dim)) {}
};

// The factor of a row's elements: w = m^2, or 1 without masks.
struct MaskFactor {
  const float* mask = nullptr;  // [D]

  MaskFactor() = default;
  __device__ __forceinline__ explicit MaskFactor(const float* of_subspace) : mask(of_subspace) {}
  __device__ __forceinline__ MaskFactor(const Contrastive& p, int k)
      : mask(p.masks == nullptr ? nullptr : p.masks + k * p.x.dim) {}
  __device__ __forceinline__ float operator()(std::int64_t d) const {
    return mask == nullptr ? 1.0f : mask[d] * mask[d];
  }
};

// Loads elements [first_dim, first_dim + kDepth) of rows [first_row, first_row + kRows), times the
// factor, into shared memory; elements out of range become 0. The data are there after
// wait_for_copies().
template <int kThreads, typename T, typename Operand>
__device__ __forceinline__ void load_rows(const Operand& to, const ViewRows<T>& from, int first_row,
                                          int first_dim, const MaskFactor& factor = {}) {
  constexpr int kRowStep = kThreads / Operand::kPackets;
  constexpr int kSteps = (Operand::kRows + kRowStep - 1) / kRowStep;
  constexpr bool kEven = kThreads % Operand::kPackets == 0 && Operand::kRows % kRowStep == 0;
  const int packet = static_cast<int>(threadIdx.x) % Operand::kPackets;
  const int first = static_cast<int>(threadIdx.x) / Operand::kPackets;
  if (!kEven && first >= kRowStep) return;
  const int d = first_dim + packet * 8;
  const int rows = d < from.dim ? from.count - first_row : 0;  // of this packet
  const T* source = from.data + (first_row + first) * from.stride + d;
  if constexpr (!kSplitFactors<T>) {
    if (from.aligned) {
#pragma unroll 4
      for (int i = 0; i < kSteps; ++i) {
        const int row = first + i * kRowStep;
        if (!kEven && row >= Operand::kRows) break;
        copy_async<16>(to.packet(row, packet), row < rows ? source : from.data, row < rows);
        source += kRowStep * from.stride;
      }
      return;
    }
  }
  float factors[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) factors[e] = d + e < from.dim ? factor(d + e) : 0.0f;
#pragma unroll 2
  for (int i = 0; i < kSteps; ++i) {
    const int row = first + i * kRowStep;
    if (!kEven && row >= Operand::kRows) break;
    float values[8] = {};
    if (row < rows) {
      read_packet(source, from.dim - d, from.aligned, values);
      if (kSplitFactors<T> && factor.mask != nullptr) {
#pragma unroll
        for (int e = 0; e < 8; ++e) values[e] *= factors[e];
      }
    }
    to.write_packet(row, packet, values);
    source += kRowStep * from.stride;
  }
}

// ---- Logits and weights

struct Temperature {
  float inverse, scale;  // scale * cos is the logit to base 2
  bool fixed_shift;      // exponentials are of logit - scale

  __device__ __forceinline__ explicit Temperature(const Contrastive& p)
      : inverse(1 / (p.temperature_tensor == nullptr ? static_cast<float>(p.temperature)
                                                     : *p.temperature_tensor)),
        scale(kLog2E * inverse),
        fixed_shift(p.temperature_tensor == nullptr && p.temperature >= kLeastFixedTemperature) {}
};

// Whether a tile holds positives, and if so, the column of its first row's positive, counted from
// the tile's first and possibly outside.
struct Positives {
  bool here;
  int partner;

  __device__ __forceinline__ Positives(const Contrastive& p, int row, int rows, int column,
                                       int columns) {
    const std::int64_t at = row + p.partner - column;
    here = p.options.has_positive && -rows < at && at < columns;
    partner = here ? static_cast<int>(at) : 0;
  }
};

// lse of a row, or of a column, and its gradient. To load them early and use them late hides the
// latency of global memory.
struct AnchorValues {
  float lse = -INFINITY, grad_lse = 0;

  AnchorValues() = default;
  __device__ __forceinline__ AnchorValues(const ContrastiveAnchor& anchor, std::int64_t at) {
    if (anchor.lse == nullptr || anchor.grad_lse == nullptr) return;
    lse = static_cast<const float*>(anchor.lse)[at];
    grad_lse = static_cast<const float*>(anchor.grad_lse)[at];
  }
};

// The term of a row, or of a column, in the weights W of its entries: with the fixed shift
// factor * exp(s - 1 / temperature), else factor * exp(s - lse).
struct AnchorTerm {
  float factor = 0, lse = INFINITY;

  AnchorTerm() = default;
  __device__ __forceinline__ AnchorTerm(const AnchorValues& values, const Temperature& t) {
    const float value = values.lse * kLog2E;
    if (value == -INFINITY) return;  // an empty sum
    lse = value;
    factor = values.grad_lse * t.inverse;
    if (t.fixed_shift) factor *= exp2_fast(t.scale - value);
  }
};

// The part of W that comes from lse, for an entry with the logit value * scale and this column
// scale. A column behind the last one has the scale 0 and so the logit 0, which may be so far above
// the logits in lse that exp(s - lse) overflows.
template <bool kFixedShift>
__device__ __forceinline__ float sums_weight(float value, float scale, float column_scale,
                                             const Temperature& t, const AnchorTerm& row,
                                             const AnchorTerm& column) {
  const auto exp = [&](float lse) { return exp2_fast(fmaf(value, scale, -lse)); };
  if constexpr (kFixedShift) return exp(t.scale) * (row.factor + column.factor);
  return column_scale == 0 ? 0.0f : row.factor * exp(row.lse) + column.factor * exp(column.lse);
}

// What multiplies the gradients.
__device__ __forceinline__ float factor_of(const float* factor) {
  return factor == nullptr ? 1.0f : *factor;
}

// h of a row: G - h x is G without its component along x.
__device__ __forceinline__ float row_projection(float inv_norm, float dot) {
  return inv_norm >= static_cast<float>(1 / kSmallestNorm) ? 0.0f : inv_norm * inv_norm * dot;
}

// The part of W that comes from `positive`, for an entry that is one.
__device__ __forceinline__ float positive_weight(const ContrastiveBackward& b, std::int64_t row_at,
                                                 std::int64_t column_at, const Temperature& t) {
  const auto* of_row = static_cast<const float*>(b.row.grad_positive);
  const auto* of_column = static_cast<const float*>(b.column.grad_positive);
  return ((of_row == nullptr ? 0.0f : of_row[row_at]) +
          (of_column == nullptr ? 0.0f : of_column[column_at])) *
         t.inverse;
}

// The index of row 0 of block (k, i, j) in [K, Vx, Vy, N], and of its column 0 in [K, Vy, Vx, M].
__device__ __forceinline__ std::int64_t row_block(const Contrastive& p, int k, int i, int j) {
  return ((k * p.x.views + i) * p.y.views + j) * p.x.rows;
}
__device__ __forceinline__ std::int64_t column_block(const Contrastive& p, int k, int i, int j) {
  return ((k * p.y.views + j) * p.x.views + i) * p.y.rows;
}

// ---- Products of any depth: a thread block computes a tile, each of its four warps a quarter

inline constexpr int kTileThreads = 128;

// Split operands take more registers, which leaves fewer for accumulators.
template <typename T>
struct ProductTile {
  static constexpr int kRows = 128, kColumns = kSplitFactors<T> ? 64 : 128;
  // Blocks of 16 rows and of 16 columns per warp.
  static constexpr int kRowBlocks = kRows / 32, kColumnBlocks = kColumns / 32;
  static constexpr int kThreadRows = 2 * kRowBlocks, kThreadColumns = 2 * kColumnBlocks;
  using Sums = WarpSums<kRowBlocks, kColumnBlocks>;

  // A thread accumulates rows row(r) and columns column(c) and column(c) + 1 of the tile, which are
  // the two elements at pair(sums, r, c).
  static __device__ __forceinline__ int row(int r) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp / 2 * (kRows / 2) + lane / 4 + 8 * r;
  }
  static __device__ __forceinline__ int column(int c) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp % 2 * (kColumns / 2) + lane % 4 * 2 + 8 * c;
  }
  static __device__ __forceinline__ const float* pair(const Sums& sums, int r, int c) {
    return sums[r / 2][c / 2][c % 2] + r % 2 * 2;
  }
  static __device__ __forceinline__ float* pair(Sums& sums, int r, int c) {
    return sums[r / 2][c / 2][c % 2] + r % 2 * 2;
  }

  // Elements are loaded in chunks of kDepth. Rows of up to kMostKept chunks are loaded once and
  // stay in shared memory; longer ones are loaded again for every tile of columns.
  static constexpr int kDepth = kSplitFactors<T> ? 32 : 64, kStages = 2;
  static constexpr int kMostKept = kPartsOf<T> == 3 ? 3 : 4;
  using Rows = SharedOperand<kRows, kDepth, kPartsOf<T>>;
  using Columns = SharedOperand<kColumns, kDepth, kPartsOf<T>>;

  static __host__ __device__ int chunks(std::int64_t dim) {
    return dim <= kDepth ? 1 : static_cast<int>((dim + kDepth - 1) / kDepth);
  }
  static int shared_bytes(std::int64_t dim) {
    return kStages * Columns::kBytes +
           (chunks(dim) <= kMostKept ? chunks(dim) : kStages) * Rows::kBytes;
  }
  static constexpr int kMostSharedBytes =
      kStages * Columns::kBytes + std::max(kMostKept, kStages) * Rows::kBytes;
};

// Multiplies x's rows from first_row on by y's columns from tile * kColumns on, for the tiles
// [first_tile, last_tile) of columns. Calls begin(tile) when it starts to load a tile, so that the
// caller can start copies of its own, and end(tile, sums) with the products <w x, y>.
template <typename T, typename Begin, typename End>
__device__ __forceinline__ void multiply_tiles(const ViewRows<T>& x, const ViewRows<T>& y,
                                               const MaskFactor& factor, int first_row,
                                               int first_tile, int last_tile, const Begin& begin,
                                               const End& end) {
  using Tile = ProductTile<T>;
  const int chunks = Tile::chunks(x.dim);
  const bool kept = chunks <= Tile::kMostKept;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const auto columns_at = [](int stage) {
    return typename Tile::Columns{dynamic_shared_memory() + stage * Tile::Columns::kBytes};
  };
  const auto rows_at = [](int slot) {
    return typename Tile::Rows{dynamic_shared_memory() + Tile::kStages * Tile::Columns::kBytes +
                               slot * Tile::Rows::kBytes};
  };
  const auto start = [&](int tile, int chunk, int stage) {
    if (chunk == 0) begin(tile);
    load_rows<kTileThreads>(columns_at(stage), y, tile * Tile::kColumns, chunk * Tile::kDepth);
    if (!kept) {
      load_rows<kTileThreads>(rows_at(stage), x, first_row, chunk * Tile::kDepth, factor);
    }
  };

  if (first_tile >= last_tile) return;
  if (kept) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      load_rows<kTileThreads>(rows_at(chunk), x, first_row, chunk * Tile::kDepth, factor);
    }
  }
  start(first_tile, 0, 0);
  int stage = 0;
  for (int tile = first_tile; tile < last_tile; ++tile) {
    typename Tile::Sums sums = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      wait_for_copies();
      __syncthreads();  // this stage has arrived, and no thread still reads the other one
      const bool last = chunk + 1 == chunks;
      if (!last || tile + 1 < last_tile) {
        start(last ? tile + 1 : tile, last ? 0 : chunk + 1, 1 - stage);
      }
      multiply<Tile::kRowBlocks, Tile::kColumnBlocks, Tile::kDepth / 16>(
          sums, rows_at(kept ? chunk : stage), warp / 2 * (Tile::kRows / 2), columns_at(stage),
          warp % 2 * (Tile::kColumns / 2), 0);
      stage = 1 - stage;
    }
    end(tile, sums);
  }
}

}  // namespace mast_ext::kernels::contrastive
