// The backward of the CUDA engine of pair_sums.h.
//
// A thread owns a few elements of D and walks the images of a slice of the batch. It keeps the
// squared masks and their gradients in registers, and an image's embeddings and their gradients in
// its own columns of shared memory, so that every pair of an image is visited once for all. The
// coefficients are the same for all threads of a block, which copies those of the next image while
// it computes.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/pair_sums/pair_sums_coefficients_cuda.cuh"
#include "kernels/pair_sums/pair_sums_many_views_cuda.cuh"

namespace mast_ext::kernels::pair_sums_cuda {

// Shared memory of grads(), for kMasks subspaces, or one without masks.
template <typename Values, int N, int kMasks>
struct GradsMemory {
  static constexpr int kStaged = kMasks == 0 ? 4 : kMasks;  // coefficients of a row
  static constexpr int kArrays = Values::kHasVariance ? 4 : 2;

  static std::int64_t bytes(const PairSums& p, const Coefficients& coefficients) {
    const std::int64_t columns = std::int64_t{kArrays} * p.rows.views() * N * kThreads;
    return 4 * (columns + 2 * std::int64_t{coefficients.count()} * kStaged);
  }
};

// A thread's column of an array [views][N][kThreads] in shared memory.
template <int N>
struct Column {
  float* own;

  __device__ __forceinline__ float& at(std::int32_t view, int n) const {
    return own[(view * N + n) * kThreads];
  }
  __device__ __forceinline__ void read(std::int32_t view, float (&to)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) to[n] = at(view, n);
  }
  __device__ __forceinline__ void write(std::int32_t view, const float (&from)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) at(view, n) = from[n];
  }
};

// Gradients of embeddings, log-variances and weights. blockIdx.y is the slice; blockIdx.x counts
// the thread blocks of the first tile of masks, then those of the next. Those of the first tile
// write the gradients of the embeddings, unless `wants_views` is false, those of all tiles
// grad_weights[slice, k, d], unless it is null. Without masks, kMasks is 0; kMoreMasks, if there is
// more than one tile.
template <typename T, typename Values, int N, int kMasks, bool kMoreMasks>
__global__ void __launch_bounds__(kThreads, Values::kHasVariance&& N == 4 ? 3 : 4)
    grads(DynamicShared<kMostShared>, PairSums p, Coefficients coefficients, std::int64_t slices,
          bool wants_views, PairSumsGrad grad, float* grad_weights) {
  constexpr int kStaged = GradsMemory<Values, N, kMasks>::kStaged;
  constexpr int kOwnMasks = kMasks == 0 ? 1 : kMasks;
  const PairRows& rows = p.rows;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const std::int64_t blocks_of_tile = (p.dim / N + threads - 1) / threads;
  const std::int64_t k0 = blockIdx.x / blocks_of_tile * kStaged;
  const std::int64_t own_d = (blockIdx.x % blocks_of_tile * threads + thread) * N;
  const bool exists = own_d < p.dim;
  const std::int64_t d = exists ? own_d : 0;
  const std::int64_t padded_k = padded_subspaces(p.subspaces);
  wants_views = wants_views && k0 == 0;

  auto* const staged = reinterpret_cast<float*>(dynamic_shared_memory());
  const int staged_size = coefficients.count() * kStaged;
  const int array = rows.views() * N * kThreads;
  const Column<N> column_z{staged + 2 * staged_size + thread}, column_grad_z{column_z.own + array};
  const Column<N> column_log_var{column_grad_z.own + array};  // these two if Values::kHasVariance
  const Column<N> column_grad_log_var{column_log_var.own + array};

  const auto stage = [&](std::int64_t b, int buffer) {
    const float* image = coefficients.data + b * coefficients.count() * padded_k;
    for (int i = thread; i < staged_size / 4; i += threads) {
      const int row = i / (kStaged / 4);
      const std::int64_t k = k0 + i % (kStaged / 4) * 4;
      const bool inside = k < padded_k;
      copy_async<16>(staged + buffer * staged_size + 4 * i,
                     image + row * padded_k + (inside ? k : 0), inside);
    }
  };

  float w[kOwnMasks][N], grad_w[kOwnMasks][N] = {};
  if constexpr (kMasks > 0) {
#pragma unroll
    for (int k = 0; k < kMasks; ++k) {
#pragma unroll
      for (int n = 0; n < N; ++n) w[k][n] = 0;
      if (k0 + k < p.subspaces) read_weights(p, k0 + k, d, w[k]);
    }
  }

  std::int64_t b = p.batch * blockIdx.y / slices;
  const std::int64_t end = p.batch * (blockIdx.y + std::int64_t{1}) / slices;
  if (b < end) stage(b, 0);
  for (int buffer = 0; b < end; ++b, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // also, nobody reads the other buffer any more
    if (b + 1 < end) stage(b + 1, buffer ^ 1);
    if (!exists) continue;

    const float none[N] = {};
#pragma unroll 4
    for (std::int32_t view = 0; view < rows.views(); ++view) {
      Elements<T, Values, N> e;
      e.read_at(p, view, b, d);
      column_z.write(view, e.z);
      column_grad_z.write(view, none);
      if constexpr (Values::kHasVariance) {
        column_log_var.write(view, e.log_var);
        column_grad_log_var.write(view, none);
      }
    }

    const float* of_row = staged + buffer * staged_size;
    const float* image = coefficients.data + b * coefficients.count() * padded_k;
    // Adds the gradients of the next row, of a view `a` and view `other`: to grad_a, and for
    // `other` in its column, unless it is the same view.
    const auto visit = [&](const Elements<T, Values, N>& a, Element<float>(&grad_a)[N],
                           std::int32_t other, bool same) {
      float c[N] = {}, coefficient[kStaged];
#pragma unroll
      for (int k = 0; k < kStaged; k += 4) {
        const float4 four = *reinterpret_cast<const float4*>(of_row + k);
        coefficient[k] = four.x;
        coefficient[k + 1] = four.y;
        coefficient[k + 2] = four.z;
        coefficient[k + 3] = four.w;
      }
      if constexpr (kMasks == 0) {
#pragma unroll
        for (int n = 0; n < N; ++n) c[n] = coefficient[0];
      } else {
#pragma unroll
        for (int k = 0; k < kMasks; ++k) {
#pragma unroll
          for (int n = 0; n < N; ++n) c[n] += coefficient[k] * w[k][n];
        }
        if (kMoreMasks && wants_views) {  // the masks of the other tiles
          for (std::int64_t k = kMasks; k < p.subspaces; ++k) {
            float more[N];
            read_weights(p, k, d, more);
#pragma unroll
            for (int n = 0; n < N; ++n) c[n] += image[k] * more[n];
          }
        }
      }
      Elements<T, Values, N> o;
      Element<float> grad_o[N] = {};
      column_z.read(other, o.z);
      if constexpr (Values::kHasVariance) column_log_var.read(other, o.log_var);
      if (!same) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          grad_o[n].z = column_grad_z.at(other, n);
          if constexpr (Values::kHasVariance) grad_o[n].log_var = column_grad_log_var.at(other, n);
        }
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        Values::template add_grads<CudaMath>(c[n], a.at(n), o.at(n), grad_a[n], grad_o[n]);
        if constexpr (kMasks > 0) {
          const float value = Values::template value<CudaMath>(a.at(n), o.at(n));
#pragma unroll
          for (int k = 0; k < kMasks; ++k) grad_w[k][n] += coefficient[k] * value;
        }
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (same) {
          grad_a[n].z += grad_o[n].z;
          grad_a[n].log_var += grad_o[n].log_var;
        } else {
          column_grad_z.at(other, n) = grad_o[n].z;
          if constexpr (Values::kHasVariance) column_grad_log_var.at(other, n) = grad_o[n].log_var;
        }
      }
      of_row += kStaged;
      image += padded_k;
    };
    // Visits the rows of view i and views [first, last).
    const auto visit_rows = [&](std::int32_t i, std::int32_t first, std::int32_t last) {
      Elements<T, Values, N> a;
      Element<float> grad_a[N] = {};
      column_z.read(i, a.z);
      if constexpr (Values::kHasVariance) column_log_var.read(i, a.log_var);
      for (std::int32_t other = first; other < last; ++other) visit(a, grad_a, other, other == i);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        column_grad_z.at(i, n) += grad_a[n].z;
        if constexpr (Values::kHasVariance) column_grad_log_var.at(i, n) += grad_a[n].log_var;
      }
    };
    const bool norms = !rows.self && rows.norms;
    for (std::int32_t i = 0; i < rows.x_views; ++i) {  // in the order of PairRows
      visit_rows(i, rows.self ? i : rows.x_views, rows.views());
    }
    for (std::int32_t view = 0; norms && view < rows.views(); ++view) {
      visit_rows(view, view, view + 1);
    }
    if (kMasks > 0 && coefficients.totals) {
#pragma unroll
      for (int k = 0; k < kMasks; ++k) {
        const float term = of_row[k];
#pragma unroll
        for (int n = 0; n < N; ++n) grad_w[k][n] += term;
      }
    }
    if (!wants_views) continue;
    for (std::int32_t view = 0; view < rows.views(); ++view) {
      const bool is_x = view < rows.x_views;
      void* to_z = is_x ? grad.x : grad.y;
      void* to_log_var = is_x ? grad.log_var_x : grad.log_var_y;
      const std::int64_t to = ((is_x ? view : view - rows.x_views) * p.batch + b) * p.dim + d;
      float out[N];
      if (to_z != nullptr) {
        column_grad_z.read(view, out);
        write(out, static_cast<T*>(to_z) + to);
      }
      if (Values::kHasVariance && to_log_var != nullptr) {
        column_grad_log_var.read(view, out);
        write(out, static_cast<T*>(to_log_var) + to);
      }
    }
  }
  if constexpr (kMasks > 0) {
    if (grad_weights == nullptr || !exists) return;
#pragma unroll
    for (int k = 0; k < kMasks; ++k) {
      if (k0 + k >= p.subspaces) break;
      write(grad_w[k], grad_weights + (blockIdx.y * p.subspaces + k0 + k) * p.dim + d);
    }
  }
}

inline constexpr int kSliceGroups = 8;  // threads that share the slices of a weight

// grad_masks = 2 masks * sum over slices of grad_weights
static __global__ void __launch_bounds__(kWarpSize* kSliceGroups)
    grad_masks_from_slices(const float* masks, const float* grad_weights, std::int64_t slices,
                           std::int64_t count, float* grad_masks) {
  __shared__ float partial[kSliceGroups][kWarpSize];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int group = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t i = std::int64_t{blockIdx.x} * kWarpSize + lane;
  float sum = 0;
  if (i < count) {
#pragma unroll 4
    for (std::int64_t slice = group; slice < slices; slice += kSliceGroups) {
      sum += grad_weights[slice * count + i];
    }
  }
  partial[group][lane] = sum;
  __syncthreads();
  if (group > 0 || i >= count) return;
  for (int other = 1; other < kSliceGroups; ++other) sum += partial[other][lane];
  grad_masks[i] = 2 * masks[i] * sum;
}

// Queues the backward; work.coefficients have been written by the same stream, with those of the
// sums of weights if `totals`.
template <typename Values>
cudaError_t launch_grads(const PairSums& p, const PairSumsWork& work, const PairSumsGrad& grad,
                         bool totals, cudaStream_t stream) {
  const Coefficients coefficients{static_cast<const float*>(work.coefficients), p.rows.count(),
                                  totals};
  const bool wants_views =
      grad.x != nullptr || grad.y != nullptr ||
      (Values::kHasVariance && (grad.log_var_x != nullptr || grad.log_var_y != nullptr));
  const bool wants_masks = grad.masks != nullptr;
  auto* grad_weights = static_cast<float*>(wants_masks ? work.grad_weights : nullptr);

  // With kMasks masks in registers, or none.
  const auto fits = [&]<int N, int kMasks>() {
    return packs(p, Values::kHasVariance, N) &&
           GradsMemory<Values, N, kMasks>::bytes(p, coefficients) <= kMostShared;
  };
  const auto fused = [&]<typename T, int N, int kMasks, bool kMoreMasks>() {
    using Memory = GradsMemory<Values, N, kMasks>;
    const std::int64_t packets = p.dim / N;
    const int threads = packets < kThreads ? static_cast<int>((packets + 31) / 32 * 32) : kThreads;
    const std::int64_t blocks_of_tile = packets > 0 ? blocks(packets, threads) : 0;
    const std::int64_t tiles = wants_masks && kMasks > 0 ? blocks(p.subspaces, Memory::kStaged) : 1;
    // Without gradients of masks, one slice is as good as another.
    constexpr std::int64_t kManyBlocks = 2048;
    const std::int64_t enough = blocks_of_tile > 0 ? kManyBlocks / blocks_of_tile + 1 : 1;
    const std::int64_t slices = wants_masks ? work.slices : p.batch < enough ? p.batch : enough;
    const dim3 grid(blocks(blocks_of_tile * tiles, 1), static_cast<unsigned>(slices));
    return launch_shared(grads<T, Values, N, kMasks, kMoreMasks>, grid, threads,
                         static_cast<int>(Memory::bytes(p, coefficients)), stream, p, coefficients,
                         slices, wants_views, grad, grad_weights);
  };
  const auto one_by_one = [&]<typename T>() {
    if (wants_views) {
      const cudaError_t error = launch(grad_views<T, Values>, blocks(p.batch * p.dim, kThreads),
                                       kThreads, stream, p, coefficients, grad);
      if (error != cudaSuccess) return error;
    }
    if (!wants_masks) return cudaSuccess;
    const std::int64_t tiles = blocks(p.subspaces, kTileMasks);
    const dim3 grid(blocks(blocks(p.dim, kThreads) * tiles, 1), static_cast<unsigned>(work.slices));
    return launch(grad_weights_of_slice<T, Values>, grid, kThreads, stream, p, coefficients,
                  work.slices, grad_weights);
  };
  if (!wants_views && !wants_masks) return cudaSuccess;
  const cudaError_t error = visit_cuda_dtype(p.dtype, [&]<typename T>() {
    constexpr int kWide = 16 / sizeof(T);
    if (!has_masks(p)) {
      if (fits.template operator()<kWide, 0>()) {
        return fused.template operator()<T, kWide, 0, false>();
      }
      if (fits.template operator()<1, 0>()) return fused.template operator()<T, 1, 0, false>();
      return one_by_one.template operator()<T>();
    }
    if (p.subspaces <= 8 && fits.template operator()<4, 8>()) {
      return fused.template operator()<T, 4, 8, false>();
    }
    if (p.subspaces <= 16 && fits.template operator()<2, 16>()) {
      return fused.template operator()<T, 2, 16, false>();
    }
    if (fits.template operator()<1, 16>()) return fused.template operator()<T, 1, 16, true>();
    return one_by_one.template operator()<T>();
  });
  if (error != cudaSuccess || !wants_masks) return error;
  const std::int64_t count = p.subspaces * p.dim;
  return launch(grad_masks_from_slices, blocks(count, kWarpSize), kWarpSize * kSliceGroups, stream,
                static_cast<const float*>(p.masks), grad_weights, work.slices, count,
                static_cast<float*>(grad.masks));
}

}  // namespace mast_ext::kernels::pair_sums_cuda
