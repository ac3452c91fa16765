// A thread block owns a tile of rows and a split (a share) of the columns. It multiplies tile by
// tile, as contrastive_logsumexp does, and turns products into losses and weights where they are,
// in registers. The sums of the splits are added up by host code, in their order.
#include <algorithm>

#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/contrastive_logsumexp/contrastive_tiles.cuh"
#include "kernels/sigmoid_contrast/sigmoid_contrast.h"

namespace mast_ext::kernels {

using namespace contrastive;

namespace {

// a / b with a relative error of at most 2^-22, for b in [1, 2^126].
__device__ __forceinline__ float divide_fast(float a, float b) {
#ifdef __CUDACC__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// log(1 + u) = 2 atanh(u / (2 + u)) for u in [0, 1], within 1e-6 of itself: the leading term keeps
// the digits of a small u. The polynomial interpolates (atanh(z) / z - 1) / z^2.
__device__ __forceinline__ float log1p_unit(float u) {
  const float z = divide_fast(u, u + 2), z2 = z * z;
  float p = fmaf(z2, 0.11612164f, 0.10853288f);
  p = fmaf(p, z2, 0.14296179f);
  p = fmaf(p, z2, 0.19999853f);
  p = fmaf(p, z2, 0.33333334f);
  return 2 * fmaf(z * z2, p, z);
}

// What an entry contributes. z is the logit, negated for a positive: loss = softplus(z).
template <bool kLoss, bool kGradient>
struct Entry {
  float loss = 0, sigmoid = 0;

  __device__ __forceinline__ explicit Entry(float z) {
    const float e = exp2_fast(-fabsf(z) * kLog2E);
    // A comparison with a NaN is false: it stays one in both.
    if (kLoss) loss = (z < 0 ? 0.0f : z) + log1p_unit(e);
    if (kGradient) sigmoid = divide_fast(z < 0 ? e : 1.0f, 1 + e);
  }
};

template <typename T, typename W, bool kLoss, bool kGradient,
          int kMostBytes = ProductTile<T>::kMostSharedBytes>
__global__ void __launch_bounds__(kTileThreads, 2)
    sigmoid_tiles(DynamicShared<kMostBytes>, SigmoidSweep f) {
  using Tile = ProductTile<T>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kThreadRows = Tile::kThreadRows;
  static_assert(kRows == kTileThreads && kColumns <= kTileThreads);
  const Contrastive& p = f.p;
  const auto row_tiles = static_cast<int>((f.count + kRows - 1) / kRows);
  const auto block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int local_row = block % row_tiles * kRows, split = block / row_tiles;
  const int first_row = static_cast<int>(f.first) + local_row;
  const int rows_left = static_cast<int>(f.count) - local_row;
  const std::int64_t column_tiles = (p.y.rows + kColumns - 1) / kColumns;
  const auto first_tile = static_cast<int>(column_tiles * split / f.splits);
  const auto last_tile = static_cast<int>(column_tiles * (split + 1) / f.splits);
  const float scale = *f.scale, bias = *f.bias;

  __shared__ float row_scale[kRows], row_grad[kRows];
  alignas(16) __shared__ float column_scale[2][kColumns];
  row_scale[thread] = thread < rows_left ? p.inv_norm_x[first_row + thread] : 0.0f;
  if (kGradient) row_grad[thread] = thread < rows_left ? f.grad[first_row + thread] : 0.0f;
  float losses[kThreadRows] = {}, sigmoids[kThreadRows] = {}, cosines[kThreadRows] = {};

  const auto begin = [&](int tile) {
    const int column = tile * kColumns + thread;
    const bool inside = column < p.y.rows;
    if (thread >= kColumns) return;
    copy_async<4>(&column_scale[tile % 2][thread], inside ? p.inv_norm_y + column : p.inv_norm_y,
                  inside);
  };
  const auto end = [&](int tile, const typename Tile::Sums& products) {
    const auto columns = static_cast<int>(p.y.rows - std::int64_t{tile} * kColumns);
    const Positives positives(p, first_row, kRows, tile * kColumns, kColumns);
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int row = Tile::row(r), partner = positives.here ? row + positives.partner : -1;
      const float inv_norm = row_scale[row];
      const float grad = kGradient ? row_grad[row] : 0.0f, factor = grad * scale * inv_norm;
      W* const to = kGradient && f.weights != nullptr
                        ? static_cast<W*>(f.weights) + (local_row + row) * f.weights_stride +
                              std::int64_t{tile} * kColumns
                        : nullptr;
      float loss = 0, sigmoid_sum = 0, cosine_sum = 0;  // of the tile, so that no sum is long
#pragma unroll
      for (int c = 0; c < Tile::kThreadColumns; ++c) {
        const int column = Tile::column(c);
        float weights[2] = {};
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          if (column + q >= columns) continue;
          const bool positive = column + q == partner;
          const float inv_norm_y = column_scale[tile % 2][column + q];
          const float cosine = Tile::pair(products, r, c)[q] * inv_norm_y * inv_norm;
          const float z = fmaf(scale, cosine, bias);
          const Entry<kLoss, kGradient> entry(positive ? -z : z);
          const float sigmoid = positive ? -entry.sigmoid : entry.sigmoid;
          loss += entry.loss;
          if (!kGradient) continue;
          sigmoid_sum += sigmoid;
          cosine_sum += sigmoid * cosine;
          weights[q] = sigmoid * inv_norm_y * factor;
        }
        if (to != nullptr && row < rows_left && column < columns) write(weights, to + column);
      }
      losses[r] += loss;
      sigmoids[r] += sigmoid_sum;
      cosines[r] += cosine_sum;
    }
  };
  multiply_tiles<T>(ViewRows<T>(p.x, 0), ViewRows<T>(p.y, 0), MaskFactors<T>(p, 0), first_row,
                    first_tile, last_tile, begin, end);

  // The columns of a row are spread over two warps, and over four lanes of each.
  __syncthreads();  // no thread still reads the operands, whose memory is used again
  auto* const halves = reinterpret_cast<float*>(dynamic_shared_memory());
  const auto write_sums = [&](const float (&sums)[kThreadRows], float factor, float* results) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const float sum = group_sum<4>(sums[r]);
      if (thread % 4 == 0) halves[thread / 32 % 2 * kRows + Tile::row(r)] = sum;
    }
    __syncthreads();
    if (thread < rows_left) {
      results[split * f.count + local_row + thread] =
          (halves[thread] + halves[kRows + thread]) * factor;
    }
    __syncthreads();  // the next sums overwrite these
  };
  if (kLoss) write_sums(losses, 1, f.loss);
  if (kGradient) {
    write_sums(sigmoids, row_grad[thread], f.grad_bias);
    write_sums(cosines, row_grad[thread], f.grad_scale);
  }
}

}  // namespace

int sigmoid_sweep_cuda(const SigmoidSweep& f, cudaStream_t stream) {
  if (f.loss == nullptr && f.grad == nullptr) return cudaErrorInvalidValue;
  return visit_product_dtype(f.p.x.dtype, [&]<typename T, typename W>() {
    using Tile = ProductTile<T>;
    const unsigned grid = blocks(blocks(f.count, Tile::kRows) * f.splits, 1);
    const auto launch_tiles = [&](auto kernel) {
      return launch_shared(kernel, grid, kTileThreads, Tile::shared_bytes(f.p.x.dim), stream, f);
    };
    if (f.grad == nullptr) return launch_tiles(sigmoid_tiles<T, W, true, false>);
    if (f.loss == nullptr) return launch_tiles(sigmoid_tiles<T, W, false, true>);
    return launch_tiles(sigmoid_tiles<T, W, true, true>);
  });
}

}  // namespace mast_ext::kernels
