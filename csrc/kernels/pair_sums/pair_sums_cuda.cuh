// The forward of the CUDA engine of pair_sums.h, in plain float32 arithmetic, and what its backward
// (pair_sums_grads_cuda.cuh) shares with it.
//
// A warp owns a tile of 4 rows x 8 or 16 masks of one image, and its lanes divide D. The squared
// masks pass through shared memory, for all warps of a thread block at once. If there are few
// tiles, the warps of a thread block divide D, too. There are no atomic additions: every result is
// written by one thread, with a fixed order of summation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/pair_sums/pair_math.h"
#include "kernels/pair_sums/pair_sums.h"

namespace mast_ext::kernels::pair_sums_cuda {

inline constexpr int kThreads = 128;
inline constexpr int kTileRows = 4;  // rows of a tile

// The functions of pair_math.h for CUDA, where they take few instructions.
struct CudaMath {
  __device__ static float exp(float x) { return std::exp(x); }

  // exp(-|gap|), with an absolute error of at most 2^-22.
  __device__ static float exp_of_gap(float gap) {
    constexpr float kLog2E = 1.44269504f;
    return exp2_fast(-std::fabs(gap) * kLog2E);
  }

  // log(1 + u) for u in [0, 1], with an error of at most 2^-23: a minimax polynomial.
  __device__ static float log1p(float u) {
    float p = 0.002030238247250454f;
    p = p * u - 0.013407514886863528f;
    p = p * u + 0.04147819569725907f;
    p = p * u - 0.0824417166957735f;
    p = p * u + 0.12418433618316255f;
    p = p * u - 0.16105690484578988f;
    p = p * u + 0.19890747449540505f;
    p = p * u - 0.24987270825670452f;
    p = p * u + 0.3333255962153938f;
    p = p * u - 0.4999998143350807f;
    p = p * u + 0.9999999992568138f;
    return p * u;
  }

  // x / y for y in [1, 2], rounded like a division but for the last bit.
  __device__ static float divide(float x, float y) {
#ifdef __CUDACC__
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
    return x * (inverse + inverse * (1 - y * inverse));
#else
    return x / y;
#endif
  }
};

// The squared mask of subspace k, or ones without masks.
template <int N>
__device__ __forceinline__ void read_weights(const PairSums& p, std::int64_t k, std::int64_t d,
                                             float (&to)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] = 1;
  if (p.masks == nullptr) return;
  read(static_cast<const float*>(p.masks) + k * p.dim + d, to);
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] *= to[n];
}

// Embeddings of no dimensions have masks without an address.
inline bool has_masks(const PairSums& p) { return p.masks != nullptr || p.subspaces > 1; }

// The first element of a view's row of image b; `view` counts the views of x, then those of y.
template <typename T>
__device__ __forceinline__ const T* row_of(const PairRows& rows, const Views& x, const Views& y,
                                           std::int32_t view, std::int64_t b) {
  const bool is_x = view < rows.x_views;
  const Views& from = is_x ? x : y;
  return static_cast<const T*>(from.data) + (is_x ? view : view - rows.x_views) * from.view_stride +
         b * from.batch_stride;
}

// A view's row of an image and, if the values need it, that of its log-variances.
template <typename T, typename Values>
struct Row {
  const T* z;
  const T* log_var;

  static __device__ __forceinline__ Row of(const PairSums& p, std::int32_t view, std::int64_t b) {
    Row row{row_of<T>(p.rows, p.x, p.y, view, b), nullptr};
    if constexpr (Values::kHasVariance) {
      row.log_var = row_of<T>(p.rows, p.log_var_x, p.log_var_y, view, b);
    }
    return row;
  }
};

// Tells the compiler that an address that was kept in shared memory is one of global memory.
template <typename T>
__device__ __forceinline__ const T* of_global_memory(const T* address) {
#ifdef __CUDACC__
  __builtin_assume(__isGlobal(address));
#else
  emulation::require_global(address, "an address of global memory");
#endif
  return address;
}

// Reads what the kernel does not write, so that the load need not wait for stores before it.
__device__ __forceinline__ float read_only(const float* from) {
#ifdef __CUDACC__
  return __ldg(from);
#else
  return *from;
#endif
}

// N elements of a view and, if the values need them, of its log-variances.
template <typename T, typename Values, int N>
struct Elements {
  float z[N], log_var[N];

  __device__ __forceinline__ void read_at(const Row<T, Values>& row, std::int64_t d) {
    read(of_global_memory(row.z) + d, z);
    if constexpr (Values::kHasVariance) read(of_global_memory(row.log_var) + d, log_var);
  }
  __device__ __forceinline__ void read_at(const PairSums& p, std::int32_t view, std::int64_t b,
                                          std::int64_t d) {
    read_at(Row<T, Values>::of(p, view, b), d);
  }

  __device__ __forceinline__ Element<float> at(int n) const {
    if constexpr (Values::kHasVariance) return {z[n], log_var[n]};
    return {z[n], 0.0f};
  }
};

// Adds up each of `values` over the lanes of the warp, all of which must call it. Lane l receives
// the totals of values[l * Count / 32] and of those that follow it, in values[0] and after: every
// exchange, with the lane `kOffset` away, halves the number kKept of values that a lane is left
// with.
template <int kOffset, int kKept, int Count>
__device__ __forceinline__ void exchange_sums(float (&values)[Count]) {
  constexpr int kHalf = kKept / 2;
  if constexpr (kHalf == 0) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], kOffset);
  } else {
    const bool upper = (threadIdx.x & kOffset) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float own = upper ? values[i + kHalf] : values[i];
      const float other = upper ? values[i] : values[i + kHalf];
      values[i] = own + __shfl_xor_sync(0xffffffffu, other, kOffset);
    }
  }
  if constexpr (kOffset > 1) exchange_sums<kOffset / 2, kHalf == 0 ? 1 : kHalf>(values);
}

template <int Count>
__device__ __forceinline__ void sum_over_lanes(float (&values)[Count]) {
  exchange_sums<kWarpSize / 2, Count>(values);
}

// A warp's tile: some masks of `Rows` or fewer rows of one image.
template <int Rows>
struct Tile {
  std::int64_t b;
  std::int32_t first_row;
  int rows;  // none if the warp has no tile

  __device__ __forceinline__ Tile(const PairSums& p, std::int64_t index, std::int64_t row_tiles) {
    const bool exists = index < p.batch * row_tiles;
    b = exists ? index / row_tiles : 0;
    first_row = exists ? static_cast<std::int32_t>(index % row_tiles) * Rows : 0;
    const std::int32_t left_over = p.rows.count() - first_row;
    rows = !exists ? 0 : left_over < Rows ? left_over : Rows;
  }
};

// The two views of a row of pairs.
template <typename T, typename Values>
struct Sides {
  Row<T, Values> left, right;

  // Of row q of the tile, or of its first one if there is no such row.
  template <int Rows>
  static __device__ __forceinline__ Sides of(const PairSums& p, const Tile<Rows>& tile, int q) {
    std::int32_t left, right;
    p.rows.views_of(tile.first_row + (q < tile.rows ? q : 0), left, right);
    return {Row<T, Values>::of(p, left, tile.b), Row<T, Values>::of(p, right, tile.b)};
  }
};

// Adds up the sums of a tile over the lanes of its warps and writes them. `parts` neighboring warps
// have sums of the same tile; `partial` has room for Rows * Masks numbers for every warp.
template <int Masks, int Rows>
__device__ __forceinline__ void finish_tile(const PairSums& p, const Tile<Rows>& tile,
                                            std::int64_t k0, float (&values)[Rows * Masks],
                                            int parts, float (*partial)[Rows * Masks],
                                            float* sums) {
  constexpr int kCount = Rows * Masks;
  constexpr int kOwn = kCount < kWarpSize ? 1 : kCount / kWarpSize;
  constexpr int kCopies = kCount < kWarpSize ? kWarpSize / kCount : 1;  // lanes with equal totals
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int first = lane / kCopies * kOwn;
  sum_over_lanes(values);
  if (parts > 1) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (lane % kCopies == 0) partial[warp][first + i] = values[i];
    }
    __syncthreads();
    if (warp % parts != 0) return;
    for (int part = 1; part < parts; ++part) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) values[i] += partial[warp + part][first + i];
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int q = (first + i) / Masks, k = (first + i) % Masks;
    if (lane % kCopies == 0 && q < tile.rows && k0 + k < p.subspaces) {
      sums[((tile.first_row + q) * p.subspaces + k0 + k) * p.batch + tile.b] = values[i];
    }
  }
}

// sums[row, 0, b] without masks. `parts` neighboring warps share a tile.
template <typename T, typename Values, int N, int Rows>
__global__ void __launch_bounds__(kThreads)
    sum_pairs_unmasked(PairSums p, std::int64_t row_tiles, int parts, float* sums) {
  constexpr int kWarps = kThreads / kWarpSize;
  __shared__ float partial[kWarps][Rows];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Tile<Rows> tile(p, std::int64_t{blockIdx.x} * (kWarps / parts) + warp / parts, row_tiles);

  float sum[Rows] = {};
  if (tile.rows > 0) {
    Sides<T, Values> sides[Rows];
#pragma unroll
    for (int q = 0; q < Rows; ++q) sides[q] = Sides<T, Values>::of(p, tile, q);
#pragma unroll(Rows == 1 ? 4 : 1)
    for (std::int64_t d = (warp % parts * kWarpSize + lane) * N; d < p.dim;
         d += parts * kWarpSize * N) {
      Elements<T, Values, N> a[Rows], c[Rows];
#pragma unroll
      for (int q = 0; q < Rows; ++q) {
        a[q].read_at(sides[q].left, d);
        c[q].read_at(sides[q].right, d);
      }
#pragma unroll
      for (int q = 0; q < Rows; ++q) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          sum[q] += Values::template value<CudaMath>(a[q].at(n), c[q].at(n));
        }
      }
    }
  }
  finish_tile<1>(p, tile, 0, sum, parts, partial, sums);
}

inline constexpr int kSumSteps = 4;  // of a warp's width, whose masks are in shared memory at once

// sums[row, k, b]. `parts` neighboring warps, at most kSumSteps, share a tile; all warps of a
// thread block have the same masks.
template <typename T, typename Values, int N, int Masks>
__global__ void __launch_bounds__(kThreads, 4)
    sum_pairs(PairSums p, std::int64_t row_tiles, std::int64_t mask_tiles, int parts, float* sums) {
  constexpr int kWarps = kThreads / kWarpSize;
  constexpr int kStep = kWarpSize * N, kChunk = kSumSteps * kStep;  // elements of D
  alignas(16) __shared__ float weights[Masks][kChunk];
  static_assert(kChunk == kThreads * N);
  __shared__ float partial[kWarps][kTileRows * Masks];
  __shared__ Sides<T, Values> sides[kWarps][kTileRows];  // registers are scarce
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t k0 = blockIdx.x % mask_tiles * Masks;
  const Tile<kTileRows> tile(p, blockIdx.x / mask_tiles * (kWarps / parts) + warp / parts,
                             row_tiles);

  // Of every mask, this thread brings N elements to shared memory.
  const int own = static_cast<int>(threadIdx.x) * N;
  const float* first_mask = static_cast<const float*>(p.masks) + k0 * p.dim + own;
  if (lane < kTileRows) sides[warp][lane] = Sides<T, Values>::of(p, tile, lane);

  float sum[kTileRows * Masks] = {};
  for (std::int64_t begin = 0; begin < p.dim; begin += kChunk) {
    __syncthreads();  // nobody reads the weights before any more
    if (begin + own < p.dim) {
      const float* mask = first_mask + begin;
#pragma unroll 4
      for (int k = 0; k < Masks; ++k) {  // the last mask again for those that do not exist
        float w[N];
        read(mask, w);
        if (k0 + k + 1 < p.subspaces) mask += p.dim;
#pragma unroll
        for (int n = 0; n < N; ++n) w[n] *= w[n];
        *reinterpret_cast<Packet<float, N>*>(&weights[k][own]) = packet_of(w);
      }
    }
    __syncthreads();
    for (int step = warp % parts; step < kSumSteps; step += parts) {
      const int at = step * kStep + lane * N;
      const std::int64_t d = begin + at;
      if (tile.rows == 0 || d >= p.dim) break;
      float value[kTileRows][N];
#pragma unroll
      for (int q = 0; q < kTileRows; ++q) {
        if (q >= tile.rows) break;
        Elements<T, Values, N> a, c;
        a.read_at(sides[warp][q].left, d);
        c.read_at(sides[warp][q].right, d);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          value[q][n] = Values::template value<CudaMath>(a.at(n), c.at(n));
        }
      }
#pragma unroll
      for (int k = 0; k < Masks; ++k) {
        float w[N];
        read(&weights[k][at], w);
#pragma unroll
        for (int q = 0; q < kTileRows; ++q) {
#pragma unroll
          for (int n = 0; n < N; ++n) sum[q * Masks + k] += w[n] * value[q][n];
        }
      }
    }
  }
  finish_tile<Masks>(p, tile, k0, sum, parts, partial, sums);
}

// sum_d w_kd, the same in every thread of the block.
__device__ __forceinline__ float total_weight(const PairSums& p, std::int64_t k) {
  if (p.masks == nullptr) return static_cast<float>(p.dim);
  float sum = 0;
  for (std::int64_t d = threadIdx.x; d < p.dim; d += kThreads) {
    const float mask = static_cast<const float*>(p.masks)[k * p.dim + d];
    sum += mask * mask;
  }
  return block_sum<kThreads>(sum);
}

// A grid with a thread for every image of every subspace: thread blocks of subspace 0, then of 1,
// and so on. It has one dimension, x, since the others are limited to 65535.
inline unsigned subspace_grid(const PairSums& p) {
  return blocks(blocks(p.batch, kThreads) * p.subspaces, 1);
}

__device__ __forceinline__ std::int64_t blocks_of_subspace(const PairSums& p) {
  return (p.batch + kThreads - 1) / kThreads;
}

// In a subspace_grid(): the subspace of the calling thread, the same for its thread block.
__device__ __forceinline__ std::int64_t own_subspace(const PairSums& p) {
  return blockIdx.x / blocks_of_subspace(p);
}

// In a subspace_grid(): the image of the calling thread, which may be beyond the last one.
__device__ __forceinline__ std::int64_t own_image(const PairSums& p) {
  return blockIdx.x % blocks_of_subspace(p) * kThreads + threadIdx.x;
}

// Whether the layout allows to load and store `count` neighboring elements by one instruction.
inline bool packs(const PairSums& p, bool has_variance, std::int64_t count) {
  const std::int64_t element = p.dtype == DType::kFloat32 ? 4 : 2;
  return p.dim % count == 0 && aligned(p.masks, 4 * count) && aligned(p.x, element, count) &&
         (p.rows.self || aligned(p.y, element, count)) &&
         (!has_variance || (aligned(p.log_var_x, element, count) &&
                            (p.rows.self || aligned(p.log_var_y, element, count))));
}

// body.operator()<N>(), or <1> if the layout does not allow packets of N elements.
template <int N, typename Body>
cudaError_t visit_packets(const PairSums& p, bool has_variance, Body&& body) {
  return packs(p, has_variance, N) ? body.template operator()<N>() : body.template operator()<1>();
}

// body.operator()<T, N>() for the tensors' type and the widest packet they allow.
template <typename Body>
cudaError_t visit_layout(const PairSums& p, bool has_variance, Body&& body) {
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    return visit_packets<4>(p, has_variance,
                            [&]<int N>() { return body.template operator()<T, N>(); });
  });
}

// How many warps share each of `tiles` tiles: one, or up to `most` as long as there is little to do
// otherwise, and every lane has a packet of N elements.
inline int warps_of_tile(std::int64_t tiles, std::int64_t dim, int n, int most) {
  constexpr std::int64_t kManyWarps = 4096;
  int parts = 1;
  while (parts < most && tiles * parts < kManyWarps && dim > parts * kWarpSize * n) parts *= 2;
  return parts;
}

template <typename Values>
cudaError_t launch_sums(const PairSums& p, float* sums, cudaStream_t stream) {
  constexpr bool kHasVariance = Values::kHasVariance;
  const auto unmasked = [&]<typename T, int N, int Rows>() {
    constexpr int kWarps = kThreads / kWarpSize;
    const std::int64_t row_tiles = (p.rows.count() + Rows - 1) / Rows, tiles = p.batch * row_tiles;
    const int parts = warps_of_tile(tiles, p.dim, N, kWarps);
    return launch(sum_pairs_unmasked<T, Values, N, Rows>, blocks(tiles, kWarps / parts), kThreads,
                  stream, p, row_tiles, parts, sums);
  };
  const auto masked = [&]<typename T, int N, int Masks>() {
    constexpr int kWarps = kThreads / kWarpSize;
    const std::int64_t row_tiles = (p.rows.count() + kTileRows - 1) / kTileRows;
    const std::int64_t mask_tiles = (p.subspaces + Masks - 1) / Masks;
    const int parts = warps_of_tile(p.batch * row_tiles * mask_tiles, p.dim, N, kSumSteps);
    const unsigned grid = blocks(blocks(p.batch * row_tiles, kWarps / parts) * mask_tiles, 1);
    return launch(sum_pairs<T, Values, N, Masks>, grid, kThreads, stream, p, row_tiles, mask_tiles,
                  parts, sums);
  };
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    if (!has_masks(p)) {
      return visit_packets<16 / sizeof(T)>(p, kHasVariance, [&]<int N>() {
        return p.rows.count() == 1 ? unmasked.template operator()<T, N, 1>()
                                   : unmasked.template operator()<T, N, kTileRows>();
      });
    }
    return visit_packets<4>(p, kHasVariance, [&]<int N>() {
      return p.subspaces <= 8 ? masked.template operator()<T, N, 8>()
                              : masked.template operator()<T, N, 16>();
    });
  });
}

}  // namespace mast_ext::kernels::pair_sums_cuda
