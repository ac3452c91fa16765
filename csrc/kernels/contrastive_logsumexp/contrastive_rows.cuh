// Kernels that go over the embeddings row by row: inverse norms, and the last step of the backward,
// from G to the gradients.
#pragma once

#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

inline constexpr int kRowThreads = 256, kRowWarps = kRowThreads / kWarpSize;

// The first element of row `at` of V * N.
template <typename T>
__device__ __forceinline__ const T* row_at(const EmbeddingRows& z, std::int64_t at) {
  return static_cast<const T*>(z.data) + at / z.rows * z.view_stride + at % z.rows * z.row_stride;
}

// One warp per row, which reads the row once for every kMasks subspaces.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) inverse_norms(InverseNorms p) {
  constexpr int kMasks = 4;
  const std::int64_t count = p.z.views * p.z.rows;
  const std::int64_t at = std::int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (at >= count) return;  // the same for all lanes of a warp
  const T* z = row_at<T>(p.z, at);
  const auto* masks = static_cast<const float*>(p.masks);
  const bool aligned = is_aligned(z, 0, p.z.dim), aligned_masks = is_aligned(masks, 0, p.z.dim);
  for (std::int64_t first = 0; first < p.subspaces; first += kMasks) {
    float sums[kMasks] = {};
    for (std::int64_t d = lane * 8; d < p.z.dim; d += kWarpSize * 8) {
      float values[8];
      read_packet(z + d, static_cast<int>(p.z.dim - d), aligned, values);
#pragma unroll
      for (int m = 0; m < kMasks; ++m) {
        if (first + m >= p.subspaces) continue;
        float mask[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        if (masks != nullptr) {
          read_packet(masks + (first + m) * p.z.dim + d, static_cast<int>(p.z.dim - d),
                      aligned_masks, mask);
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[m] += values[e] * mask[e] * (values[e] * mask[e]);
      }
    }
#pragma unroll
    for (int m = 0; m < kMasks; ++m) {
      const float norm = sqrtf(group_sum<kWarpSize>(sums[m]));
      if (lane != 0 || first + m >= p.subspaces) continue;
      static_cast<float*>(p.inv_norm)[(first + m) * count + at] =
          norm < static_cast<float>(kSmallestNorm) ? static_cast<float>(1 / kSmallestNorm)
                                                   : 1 / norm;
    }
  }
}

// One thread block per slice of the rows. It takes kRows rows at a time: first each warp computes
// the dots of some of them, then each thread handles some elements of all of them.
template <typename T, typename G, typename P>
__global__ void __launch_bounds__(kRowThreads) rows_of_slice(ContrastiveRows p) {
  constexpr int kRows = 4 * kRowWarps;
  __shared__ float projection[kRows];
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const auto* const mask = static_cast<const float*>(p.mask);
  const MaskFactor weight{mask, true};
  const auto* inv_norm = static_cast<const float*>(p.inv_norm);
  const auto* products = static_cast<const P*>(p.products);
  const std::int64_t begin = p.count * blockIdx.x / p.slices;
  const std::int64_t end = p.count * (blockIdx.x + std::int64_t{1}) / p.slices;
  float dots = 0;
  for (std::int64_t first = begin; first < end; first += kRows) {
    const std::int64_t last = first + kRows < end ? first + kRows : end;
    for (std::int64_t row = first + warp; row < last; row += kRowWarps) {
      const T* z = row_at<T>(p.z, p.first + row);
      float dot = 0;
      for (std::int64_t d = lane; d < p.z.dim; d += kWarpSize) {
        dot +=
            static_cast<float>(z[d]) * weight(d) * static_cast<float>(products[row * p.z.dim + d]);
      }
      dot = group_sum<kWarpSize>(dot);
      if (lane != 0) continue;
      projection[row - first] = row_projection(inv_norm[p.first + row], dot);
      dots += dot;
    }
    __syncthreads();
    for (std::int64_t d = thread; d < p.z.dim; d += kRowThreads) {
      const float w = weight(d);
      float grad_weight = 0;  // twice the gradient of w; times m, the gradient of m
      for (std::int64_t row = first; row < last; ++row) {
        const float z = static_cast<float>(row_at<T>(p.z, p.first + row)[d]);
        const float value =
            static_cast<float>(products[row * p.z.dim + d]) - projection[row - first] * z;
        grad_weight += z * value;
        if (p.grad == nullptr) continue;
        G& grad = static_cast<G*>(p.grad)[(p.first + row) * p.z.dim + d];
        grad = static_cast<G>((p.add ? static_cast<float>(grad) : 0.0f) + w * value);
      }
      if (p.grad_mask != nullptr) {
        static_cast<float*>(p.grad_mask)[blockIdx.x * p.z.dim + d] += grad_weight * mask[d];
      }
    }
    __syncthreads();
  }
  dots = block_sum<kRowThreads>(dots);
  if (thread == 0) static_cast<float*>(p.dots)[blockIdx.x] += dots;
}

}  // namespace mast_ext::kernels::contrastive
