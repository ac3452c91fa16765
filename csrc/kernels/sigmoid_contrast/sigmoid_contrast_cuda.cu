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

// Adds up each of four values over the four lanes of a group. A lane gets one of the four sums,
// that of its own index in the group. All threads of the warp must call it.
__device__ __forceinline__ float sum_of_lane(const float (&values)[4]) {
  const auto halve = [](bool second, float a, float b, int distance) {
    return (second ? b : a) + __shfl_xor_sync(0xffffffffu, second ? a : b, distance);
  };
  const bool odd = threadIdx.x % 2 != 0;
  const float low = halve(odd, values[0], values[1], 1);
  const float high = halve(odd, values[2], values[3], 1);
  return halve(threadIdx.x % 4 >= 2, low, high, 2);
}

template <typename T, typename W, bool kLoss, bool kGradient,
          int kMostBytes = ProductTile<T>::kMostSharedBytes>
__global__ void __launch_bounds__(kTileThreads, 2)
    sigmoid_tiles(DynamicShared<kMostBytes>, SigmoidSweep f) {
  using Tile = ProductTile<T>;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kThreadRows = Tile::kThreadRows;
  static_assert(kRows == kTileThreads && kColumns <= kTileThreads && kThreadRows % 4 == 0);
  const Contrastive& p = f.p;
  const auto thread = static_cast<int>(threadIdx.x), split = static_cast<int>(blockIdx.y);
  const int local_row = static_cast<int>(blockIdx.x) * kRows;
  const int first_row = static_cast<int>(f.first) + local_row;
  const int rows_left = static_cast<int>(f.count) - local_row;
  const std::int64_t column_tiles = (p.y.rows + kColumns - 1) / kColumns;
  const auto first_tile = static_cast<int>(column_tiles * split / f.splits);
  const auto last_tile = static_cast<int>(column_tiles * (split + 1) / f.splits);

  __shared__ float row_scale[kRows], row_grad[kRows];
  alignas(16) __shared__ float column_scale[2][kColumns];
  row_scale[thread] = thread < rows_left ? p.inv_norm_x[first_row + thread] : 0.0f;
  if (kGradient) row_grad[thread] = thread < rows_left ? f.grad[first_row + thread] : 0.0f;
  // Of one in four of the thread's rows, over the columns of the four lanes that share the rows.
  // Sums of all rows over the thread's own columns would not fit into registers beside the
  // products.
  constexpr int kSums = kThreadRows / 4;
  float losses[kSums] = {}, sigmoids[kSums] = {}, cosines[kSums] = {};

  const auto begin = [&](int tile) {
    const int column = tile * kColumns + thread;
    const bool inside = column < p.y.rows;
    if (thread >= kColumns) return;
    copy_async<4>(&column_scale[tile % 2][thread], inside ? p.inv_norm_y + column : p.inv_norm_y,
                  inside);
  };
  const auto end = [&](int tile, const typename Tile::Sums& products) {
    const float scale = *f.scale, bias = *f.bias;  // from the cache, for every tile
    const Positives positives(p, first_row, kRows, tile * kColumns, kColumns);
    // Rows and columns are counted from the thread's first ones, so that comparisons are with
    // constants. Its positives, if any, are `diagonal` columns to the right of its rows.
    const int row_0 = Tile::row(0), column_0 = Tile::column(0);
    const int rows = rows_left - row_0;
    const auto columns = static_cast<int>(p.y.rows - std::int64_t{tile} * kColumns) - column_0;
    const int diagonal = positives.here ? row_0 + positives.partner - column_0 : kColumns;
    W* to = nullptr;  // in the current row of weights
    if (kGradient && f.weights != nullptr) {
      to = static_cast<W*>(f.weights) + (local_row + row_0) * f.weights_stride +
           std::int64_t{tile} * kColumns + column_0;
    }
    float tile_losses[4], tile_sigmoids[4], tile_cosines[4];  // of four rows
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int row = 8 * r;  // Tile::row(r) - row_0
      const float inv_norm = row_scale[row_0 + row];
      const float grad = kGradient ? row_grad[row_0 + row] : 0.0f, factor = grad * scale * inv_norm;
      float loss = 0, sigmoid_sum = 0, cosine_sum = 0;  // of the tile, so that no sum is long
#pragma unroll
      for (int c = 0; c < Tile::kThreadColumns; ++c) {
        const int column = 8 * c;  // likewise
        float weights[2] = {};
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          // Without branches, so that the threads compute several entries at once: behind the last
          // column the scale is 0, and what comes of it is left out.
          const bool inside = column + q < columns, positive = column + q - row == diagonal;
          const float inv_norm_y = column_scale[tile % 2][column_0 + column + q];
          const float cosine = Tile::pair(products, r, c)[q] * inv_norm_y * inv_norm;
          const float z = fmaf(scale, cosine, bias);
          const Entry<kLoss, kGradient> entry(positive ? -z : z);
          loss += inside ? entry.loss : 0;
          if (!kGradient) continue;
          const float sigmoid = !inside ? 0 : positive ? -entry.sigmoid : entry.sigmoid;
          sigmoid_sum += sigmoid;
          cosine_sum += sigmoid * cosine;
          weights[q] = sigmoid * inv_norm_y * factor;
        }
        if (to != nullptr && row < rows && column < columns) write(weights, to + column);
      }
      if (to != nullptr) to += 8 * f.weights_stride;
      tile_losses[r % 4] = loss, tile_sigmoids[r % 4] = sigmoid_sum;
      tile_cosines[r % 4] = cosine_sum;
      if (r % 4 != 3) continue;
      if (kLoss) losses[r / 4] += sum_of_lane(tile_losses);
      if (!kGradient) continue;
      sigmoids[r / 4] += sum_of_lane(tile_sigmoids);
      cosines[r / 4] += sum_of_lane(tile_cosines);
    }
  };
  const MaskFactor no_masks;  // known to the compiler, it saves registers
  multiply_tiles<T>(ViewRows<T>(p.x, 0), ViewRows<T>(p.y, 0), no_masks, first_row, first_tile,
                    last_tile, begin, end);

  // The columns of a row are spread over two warps.
  __syncthreads();  // no thread still reads the operands, whose memory is used again
  auto* const halves = reinterpret_cast<float*>(dynamic_shared_memory());
  const auto write_sums = [&](const float (&sums)[kSums], float factor, float* results) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      halves[thread / 32 % 2 * kRows + Tile::row(4 * i + thread % 4)] = sums[i];
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
    const dim3 grid(blocks(f.count, Tile::kRows), static_cast<unsigned>(f.splits));
    const auto launch_tiles = [&](auto kernel) {
      return launch_shared(kernel, grid, kTileThreads, Tile::shared_bytes(f.p.x.dim), stream, f);
    };
    if (f.grad == nullptr) return launch_tiles(sigmoid_tiles<T, W, true, false>);
    if (f.loss == nullptr) return launch_tiles(sigmoid_tiles<T, W, false, true>);
    return launch_tiles(sigmoid_tiles<T, W, true, true>);
  });
}

}  // namespace mast_ext::kernels
