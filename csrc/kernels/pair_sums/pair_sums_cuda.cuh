// The CUDA engine of pair_sums.h, in plain float32 arithmetic.
//
// Forward: a group of eight neighboring threads owns a tile of 4 rows x 8 masks of one image. They
// divide D, so that together they load whole 128-byte lines, and sum across the group by three
// shuffles. Backward: one thread owns a few elements of D, of one image for the embeddings'
// gradients and of a slice of the batch for the masks'. There are no atomic additions: every result
// is written by one thread, with a fixed order of summation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/common/scalar_math.h"
#include "kernels/pair_sums/pair_math.h"
#include "kernels/pair_sums/pair_sums.h"

namespace mast_ext::kernels::pair_sums_cuda {

inline constexpr int kThreads = 128;
inline constexpr int kGroup = 8;     // threads of a tile
inline constexpr int kTileRows = 4;  // rows of a tile
inline constexpr int kTileMasks = 8;

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

// The first element of a view's row of image b; `view` counts the views of x, then those of y.
template <typename T>
__device__ __forceinline__ const T* row_of(const PairRows& rows, const Views& x, const Views& y,
                                           std::int32_t view, std::int64_t b) {
  const bool is_x = view < rows.x_views;
  const Views& from = is_x ? x : y;
  return static_cast<const T*>(from.data) + (is_x ? view : view - rows.x_views) * from.view_stride +
         b * from.batch_stride;
}

// N elements of a view and, if the values need them, of its log-variances.
template <typename T, typename Values, int N>
struct Elements {
  float z[N], log_var[N];

  __device__ __forceinline__ void read_at(const PairSums& p, std::int32_t view, std::int64_t b,
                                          std::int64_t d) {
    read(row_of<T>(p.rows, p.x, p.y, view, b) + d, z);
    if constexpr (Values::kHasVariance) {
      read(row_of<T>(p.rows, p.log_var_x, p.log_var_y, view, b) + d, log_var);
    }
  }

  __device__ __forceinline__ Element<float> at(int n) const {
    if constexpr (Values::kHasVariance) return {z[n], log_var[n]};
    return {z[n], 0.0f};
  }
};

// sums[row, k, b]. One group of kGroup threads per (image, tile of masks, tile of rows).
template <typename T, typename Values, int N, int Masks>
__global__ void __launch_bounds__(kThreads)
    sum_pairs(PairSums p, std::int64_t row_tiles, std::int64_t mask_tiles, float* sums) {
  const std::int64_t groups = p.batch * mask_tiles * row_tiles;
  const std::int64_t own = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kGroup;
  // Threads without work repeat the last group's, since all lanes must take part in the shuffles.
  const std::int64_t group = own < groups ? own : groups - 1;
  const std::int64_t b = group / (row_tiles * mask_tiles);
  const std::int64_t k0 = group / row_tiles % mask_tiles * Masks;
  const auto r0 = static_cast<std::int32_t>(group % row_tiles * kTileRows);
  const std::int32_t rows = p.rows.count();
  const int lane = static_cast<int>(threadIdx.x) % kGroup;

  std::int32_t left[kTileRows], right[kTileRows];
#pragma unroll
  for (int q = 0; q < kTileRows; ++q) {
    p.rows.views_of(r0 + q < rows ? r0 + q : rows - 1, left[q], right[q]);
  }
  float sum[kTileRows][Masks] = {};
  for (std::int64_t d = lane * N; d < p.dim; d += kGroup * N) {
    float w[Masks][N];
#pragma unroll
    for (int k = 0; k < Masks; ++k) {
      read_weights(p, k0 + k < p.subspaces ? k0 + k : p.subspaces - 1, d, w[k]);
    }
#pragma unroll
    for (int q = 0; q < kTileRows; ++q) {
      Elements<T, Values, N> a, c;
      a.read_at(p, left[q], b, d);
      c.read_at(p, right[q], b, d);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float value = Values::template value<ScalarMath>(a.at(n), c.at(n));
#pragma unroll
        for (int k = 0; k < Masks; ++k) sum[q][k] += w[k][n] * value;
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kTileRows; ++q) {
#pragma unroll
    for (int k = 0; k < Masks; ++k) {
      const float total = group_sum<kGroup>(sum[q][k]);
      const bool mine = lane == (q * Masks + k) % kGroup;
      if (mine && own < groups && r0 + q < rows && k0 + k < p.subspaces) {
        sums[((r0 + q) * p.subspaces + k0 + k) * p.batch + b] = total;
      }
    }
  }
}

// Finds `other`, the partner-th view that `view` is paired with, and the row of this pair.
__device__ __forceinline__ void partner_of(const PairRows& rows, std::int32_t view,
                                           std::int32_t partner, std::int32_t& other,
                                           std::int32_t& row) {
  if (rows.self) {
    other = partner;
    row = rows.pair(view, partner);
    return;
  }
  const bool is_x = view < rows.x_views;
  if (partner == (is_x ? rows.y_views : rows.x_views)) {  // the last one: the view with itself
    other = view;
    row = rows.norm(view);
  } else if (is_x) {
    other = rows.x_views + partner;
    row = rows.pair(view, partner);
  } else {
    other = partner;
    row = rows.pair(partner, view - rows.x_views);
  }
}

// Gradients of embeddings and log-variances. One thread per (image, N elements of D) has all views.
template <typename T, typename Values, int N>
__global__ void __launch_bounds__(kThreads)
    grad_views(PairSums p, const float* coefficients, PairSumsGrad grad) {
  constexpr int kPartners = 4;
  const std::int64_t packets = p.dim / N;
  const std::int64_t own = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (own >= p.batch * packets) return;
  const std::int64_t b = own / packets, d = own % packets * N;
  const std::int64_t padded_k = padded_subspaces(p.subspaces);
  const float* image = coefficients + b * p.rows.count() * padded_k;

  for (std::int32_t view = 0; view < p.rows.views(); ++view) {
    const bool is_x = view < p.rows.x_views;
    void* to_z = is_x ? grad.x : grad.y;
    void* to_log_var = is_x ? grad.log_var_x : grad.log_var_y;
    if (!Values::kHasVariance) to_log_var = nullptr;
    if (to_z == nullptr && to_log_var == nullptr) continue;
    const std::int32_t others = p.rows.self ? p.rows.x_views
                                : is_x      ? p.rows.y_views
                                            : p.rows.x_views;
    const std::int32_t partners = others + (!p.rows.self && p.rows.norms ? 1 : 0);
    Elements<T, Values, N> a;
    a.read_at(p, view, b, d);
    Element<float> total[N] = {};
    for (std::int32_t first = 0; first < partners; first += kPartners) {
      std::int32_t other[kPartners];
      const float* row_coefficients[kPartners];
#pragma unroll
      for (int q = 0; q < kPartners; ++q) {
        std::int32_t row;
        partner_of(p.rows, view, first + q < partners ? first + q : first, other[q], row);
        row_coefficients[q] = image + row * padded_k;
      }
      float c[kPartners][N] = {};
      for (std::int64_t k0 = 0; k0 < p.subspaces; k0 += 4) {
        float4 four[kPartners];
#pragma unroll
        for (int q = 0; q < kPartners; ++q) {
          four[q] = *reinterpret_cast<const float4*>(row_coefficients[q] + k0);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (k0 + k >= p.subspaces) break;
          float w[N];
          read_weights(p, k0 + k, d, w);
#pragma unroll
          for (int q = 0; q < kPartners; ++q) {
            const float coefficient = k == 0   ? four[q].x
                                      : k == 1 ? four[q].y
                                      : k == 2 ? four[q].z
                                               : four[q].w;
#pragma unroll
            for (int n = 0; n < N; ++n) c[q][n] += coefficient * w[n];
          }
        }
      }
#pragma unroll
      for (int q = 0; q < kPartners; ++q) {
        if (first + q >= partners) break;
        Elements<T, Values, N> o;
        o.read_at(p, other[q], b, d);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          Element<float> back{0, 0};
          Values::template add_grads<ScalarMath>(c[q][n], a.at(n), o.at(n), total[n], back);
          if (other[q] == view) {  // both views of the row are this one
            total[n].z += back.z;
            total[n].log_var += back.log_var;
          }
        }
      }
    }
    const std::int64_t to = ((is_x ? view : view - p.rows.x_views) * p.batch + b) * p.dim + d;
    float out[N];
    if (to_z != nullptr) {
#pragma unroll
      for (int n = 0; n < N; ++n) out[n] = total[n].z;
      write(out, static_cast<T*>(to_z) + to);
    }
    if (to_log_var != nullptr) {
#pragma unroll
      for (int n = 0; n < N; ++n) out[n] = total[n].log_var;
      write(out, static_cast<T*>(to_log_var) + to);
    }
  }
}

// Writes grad_weights[slice, k, d]: one thread per (slice, tile of masks, N elements of D).
// blockIdx.y is the slice; blockIdx.x counts the thread blocks of the first tile, then those of the
// next. `grad_totals` [B, K], if not null, is the gradient of sum_d w_kd per image.
template <typename T, typename Values, int N>
__global__ void __launch_bounds__(kThreads)
    grad_weights_of_slice(PairSums p, const float* coefficients, const float* grad_totals,
                          std::int64_t slices, float* grad_weights) {
  const std::int64_t blocks_of_tile = (p.dim / N + blockDim.x - 1) / blockDim.x;
  const std::int64_t d = (blockIdx.x % blocks_of_tile * blockDim.x + threadIdx.x) * N;
  if (d >= p.dim) return;
  const std::int64_t k0 = blockIdx.x / blocks_of_tile * kTileMasks, slice = blockIdx.y;
  const std::int64_t padded_k = padded_subspaces(p.subspaces);
  const PairRows& rows = p.rows;

  float sum[kTileMasks][N] = {};
  const auto add_row = [&](const float* c, const Elements<T, Values, N>& a,
                           const Elements<T, Values, N>& o) {
    const float4 low = *reinterpret_cast<const float4*>(c);
    const float4 high =
        k0 + 4 < padded_k ? *reinterpret_cast<const float4*>(c + 4) : make_float4(0, 0, 0, 0);
    const float eight[kTileMasks] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float value = Values::template value<ScalarMath>(a.at(n), o.at(n));
#pragma unroll
      for (int k = 0; k < kTileMasks; ++k) sum[k][n] += eight[k] * value;
    }
  };
  for (std::int64_t b = p.batch * slice / slices; b < p.batch * (slice + 1) / slices; ++b) {
    const float* c = coefficients + b * rows.count() * padded_k + k0;
    Elements<T, Values, N> a, o;
    for (std::int32_t i = 0; i < rows.x_views; ++i) {  // in the order of PairRows
      a.read_at(p, i, b, d);
      for (std::int32_t j = rows.self ? i : 0; j < rows.y_views; ++j, c += padded_k) {
        o.read_at(p, rows.self ? j : rows.x_views + j, b, d);
        add_row(c, a, o);
      }
    }
    if (!rows.self && rows.norms) {
      for (std::int32_t view = 0; view < rows.views(); ++view, c += padded_k) {
        a.read_at(p, view, b, d);
        add_row(c, a, a);
      }
    }
    if (grad_totals != nullptr) {
#pragma unroll
      for (int k = 0; k < kTileMasks; ++k) {
        if (k0 + k >= p.subspaces) break;
        const float term = grad_totals[b * p.subspaces + k0 + k];
#pragma unroll
        for (int n = 0; n < N; ++n) sum[k][n] += term;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kTileMasks; ++k) {
    if (k0 + k >= p.subspaces) break;
    write(sum[k], grad_weights + (slice * p.subspaces + k0 + k) * p.dim + d);
  }
}

// grad_masks = 2 masks * sum over slices of grad_weights
static __global__ void __launch_bounds__(kThreads)
    grad_masks_from_slices(const float* masks, const float* grad_weights, std::int64_t slices,
                           std::int64_t count, float* grad_masks) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (std::int64_t slice = 0; slice < slices; ++slice) sum += grad_weights[slice * count + i];
  grad_masks[i] = 2 * masks[i] * sum;
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
inline unsigned subspace_grid(const PairSums& p, std::int64_t subspaces) {
  return blocks(blocks(p.batch, kThreads) * subspaces, 1);
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

// body.operator()<T, N>() for the tensors' type and the widest packet they allow.
template <typename Body>
cudaError_t visit_layout(const PairSums& p, bool has_variance, Body&& body) {
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    return packs(p, has_variance, 4) ? body.template operator()<T, 4>()
                                     : body.template operator()<T, 1>();
  });
}

template <typename Values>
cudaError_t launch_sums(const PairSums& p, float* sums, cudaStream_t stream) {
  const std::int64_t row_tiles = (p.rows.count() + kTileRows - 1) / kTileRows;
  return visit_layout(p, Values::kHasVariance, [&]<typename T, int N>() {
    const auto with_masks = [&]<int Masks>() {
      const std::int64_t mask_tiles = (p.subspaces + Masks - 1) / Masks;
      const std::int64_t threads = p.batch * row_tiles * mask_tiles * kGroup;
      return launch(sum_pairs<T, Values, N, Masks>, blocks(threads, kThreads), kThreads, stream, p,
                    row_tiles, mask_tiles, sums);
    };
    return p.subspaces == 1 ? with_masks.template operator()<1>()
                            : with_masks.template operator()<kTileMasks>();
  });
}

// Queues the backward; work.coefficients have been written by the same stream.
template <typename Values>
cudaError_t launch_grads(const PairSums& p, const PairSumsWork& work, const PairSumsGrad& grad,
                         const float* grad_totals, cudaStream_t stream) {
  const auto* coefficients = static_cast<const float*>(work.coefficients);
  const bool wants_views =
      grad.x != nullptr || grad.y != nullptr ||
      (Values::kHasVariance && (grad.log_var_x != nullptr || grad.log_var_y != nullptr));
  return visit_layout(p, Values::kHasVariance, [&]<typename T, int N>() {
    const std::int64_t packets = p.dim / N;
    if (wants_views) {
      const cudaError_t error =
          launch(grad_views<T, Values, N>, blocks(p.batch * packets, kThreads), kThreads, stream, p,
                 coefficients, grad);
      if (error != cudaSuccess) return error;
    }
    if (grad.masks == nullptr) return cudaSuccess;
    const int threads = packets < kThreads ? static_cast<int>((packets + 31) / 32 * 32) : kThreads;
    const std::int64_t blocks_of_tile = packets > 0 ? blocks(packets, threads) : 0;
    const dim3 grid(blocks(blocks_of_tile * blocks(p.subspaces, kTileMasks), 1),
                    static_cast<unsigned>(work.slices));
    auto* grad_weights = static_cast<float*>(work.grad_weights);
    const cudaError_t error = launch(grad_weights_of_slice<T, Values, N>, grid, threads, stream, p,
                                     coefficients, grad_totals, work.slices, grad_weights);
    if (error != cudaSuccess) return error;
    const std::int64_t count = p.subspaces * p.dim;
    return launch(grad_masks_from_slices, blocks(count, kThreads), kThreads, stream,
                  static_cast<const float*>(p.masks), grad_weights, work.slices, count,
                  static_cast<float*>(grad.masks));
  });
}

}  // namespace mast_ext::kernels::pair_sums_cuda
