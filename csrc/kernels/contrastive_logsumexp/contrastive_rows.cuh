// Kernels that go over the embeddings row by row: inverse norms, and the last step of the backward,
// from G to the gradients.
#pragma once

#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"

namespace mast_ext::kernels::contrastive {

inline constexpr int kRowThreads = 256, kRowWarps = kRowThreads / kWarpSize;

// Where row `at` of V * N begins, in elements. A 64-bit division takes a hundred instructions:
// call this once a row, not once a packet.
__device__ __forceinline__ std::int64_t start_of(const EmbeddingRows& z, std::int64_t at) {
  const std::int64_t view = at / z.rows;
  return view * z.view_stride + (at - view * z.rows) * z.row_stride;
}

template <typename T>
__device__ __forceinline__ const T* row_at(const EmbeddingRows& z, std::int64_t at) {
  return static_cast<const T*>(z.data) + start_of(z, at);
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

// One warp per row of a subspace.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) mask_rows(MaskedRows p) {
  const std::int64_t count = p.z.views * p.z.rows;
  const std::int64_t at = std::int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarpSize;
  if (at >= p.subspaces * count) return;
  constexpr int kPacket = static_cast<int>(kMaskedPacket);
  const T* const z = row_at<T>(p.z, at % count);
  const float* const mask = p.masks + at / count * p.z.dim;
  const std::int64_t dim = (p.z.dim + kPacket - 1) / kPacket * kPacket;
  T* const to = static_cast<T*>(p.to) + at * dim;
  const bool aligned = is_aligned(z, 0, p.z.dim), aligned_mask = is_aligned(mask, 0, p.z.dim);
#pragma unroll 4
  for (std::int64_t d = threadIdx.x % kWarpSize * kPacket; d < dim; d += kWarpSize * kPacket) {
    float values[kPacket], factors[kPacket];
    read_packet(z + d, static_cast<int>(p.z.dim - d), aligned, values);
    read_packet(mask + d, static_cast<int>(p.z.dim - d), aligned_mask, factors);
#pragma unroll
    for (int e = 0; e < kPacket; ++e) values[e] *= factors[e];
    write_packet(values, kPacket, true, to + d);
  }
}

// One thread block per slice of the rows. It takes kRows rows at a time: first each warp computes
// the dots of some of them, then each thread handles four neighboring elements of all of them.
template <typename T, typename G, typename P>
__global__ void __launch_bounds__(kRowThreads) rows_of_slice(ContrastiveRows p) {
  constexpr int kRows = 2 * kRowWarps;
  constexpr int kTogether = 4;  // packets that are loaded before the first of them is used
  __shared__ float projection[kRows];
  __shared__ std::int64_t start[kRows];  // of the rows
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const auto* const embeddings = static_cast<const T*>(p.z.data);
  const auto* const mask = static_cast<const float*>(p.mask);
  const MaskFactor weight(mask);
  const auto* inv_norm = static_cast<const float*>(p.inv_norm);
  const auto* products = static_cast<const P*>(p.products);
  const auto dim = static_cast<int>(p.z.dim);
  const bool aligned = is_aligned(embeddings, p.z.row_stride, dim) && p.z.view_stride % 8 == 0;
  const bool aligned_dense = dim % 8 == 0;  // rows of the products and of grad
  const float factor = factor_of(p.factor);
  const std::int64_t begin = p.count * blockIdx.x / p.slices;
  const std::int64_t end = p.count * (blockIdx.x + std::int64_t{1}) / p.slices;
  float dots = 0;
  for (std::int64_t first = begin; first < end; first += kRows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(end - first, kRows));
    for (int row = warp; row < rows; row += kRowWarps) {
      const std::int64_t own_start = start_of(p.z, p.first + first + row);
      const T* const z = embeddings + own_start;
      const P* const of_row = products + (first + row) * dim;
      float dot = 0;
      for (int first_dim = lane * 4; first_dim < dim; first_dim += kTogether * kWarpSize * 4) {
        float values[kTogether][4], sums[kTogether][4];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int d = first_dim + i * kWarpSize * 4;
          read_packet(z + d, dim - d, aligned, values[i]);
          read_packet(of_row + d, dim - d, aligned_dense, sums[i]);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int d = first_dim + i * kWarpSize * 4;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (d + e < dim) dot += values[i][e] * weight(d + e) * sums[i][e];
          }
        }
      }
      dot = group_sum<kWarpSize>(dot) * factor;
      if (lane != 0) continue;
      start[row] = own_start;
      projection[row] = row_projection(inv_norm[p.first + first + row], dot);
      dots += dot;
    }
    __syncthreads();
    for (int d = thread * 4; d < dim; d += kRowThreads * 4) {
      float w[4], grad_weight[4] = {};  // twice the gradient of w; times m, the gradient of m
#pragma unroll
      for (int e = 0; e < 4; ++e) w[e] = d + e < dim ? weight(d + e) : 0.0f;
      for (int first_of_some = 0; first_of_some < rows; first_of_some += kTogether) {
        float z[kTogether][4], value[kTogether][4], sums[kTogether][4] = {};
        const auto grad_at = [&](int row) {
          return static_cast<G*>(p.grad) + (p.first + first + row) * dim + d;
        };
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int row = std::min(first_of_some + i, rows - 1);
          read_packet(embeddings + start[row] + d, dim - d, aligned, z[i]);
          read_packet(products + (first + row) * dim + d, dim - d, aligned_dense, value[i]);
          if (p.add && p.grad != nullptr) {
            read_packet(grad_at(row), dim - d, aligned_dense, sums[i]);
          }
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int row = first_of_some + i;
          if (row >= rows) break;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            value[i][e] = value[i][e] * factor - projection[row] * z[i][e];
            grad_weight[e] += z[i][e] * value[i][e];
            sums[i][e] += w[e] * value[i][e];
          }
          if (p.grad != nullptr) write_packet(sums[i], dim - d, aligned_dense, grad_at(row));
        }
      }
      if (p.grad_mask == nullptr) continue;
      float* const to = static_cast<float*>(p.grad_mask) + std::int64_t{blockIdx.x} * dim + d;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (d + e < dim) to[e] += grad_weight[e] * mask[d + e];
      }
    }
    __syncthreads();
  }
  dots = block_sum<kRowThreads>(dots);
  if (thread == 0) static_cast<float*>(p.dots)[blockIdx.x] += dots;
}

}  // namespace mast_ext::kernels::contrastive
