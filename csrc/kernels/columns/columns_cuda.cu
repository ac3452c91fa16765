// Reductions over the batch: a thread block has 32 neighboring columns, whose rows are divided
// among 16 warps. The warps' partial results are merged in a fixed order, so that equal inputs give
// equal bits.
#include "kernels/columns/columns.h"
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/element_grid.cuh"
#include "kernels/common/reductions.cuh"

namespace mast_ext::kernels {
namespace {

constexpr int kWarps = 16;

// Welford's running moments, and Chan's rule for merging two of them.
struct Moments {
  float count, mean, squares;

  __device__ __forceinline__ void add(float x) {
    count += 1;
    const float delta = x - mean;
    mean += delta / count;
    squares += delta * (x - mean);
  }

  __device__ __forceinline__ void merge(const Moments& other) {
    if (other.count == 0) return;
    const float total = count + other.count, delta = other.mean - mean;
    mean += delta * (other.count / total);
    squares += other.squares + delta * delta * (count * other.count / total);
    count = total;
  }
};

template <typename T, typename P>
__global__ void __launch_bounds__(kWarps* kWarpSize) moments(ColumnMoments p, unsigned per_view) {
  __shared__ Moments partial[kWarps][kWarpSize];
  __shared__ float means[kWarpSize], scales[kWarpSize];
  const Columns& z = p.z;
  const std::int64_t v = blockIdx.x / per_view;
  const std::int64_t d = std::int64_t{blockIdx.x % per_view} * kWarpSize + threadIdx.x;
  const bool inside = d < z.dim;

  Moments own{0, 0, 0};
  if (inside) {
#pragma unroll 4
    for (std::int64_t n = threadIdx.y; n < z.rows; n += kWarps) {
      own.add(static_cast<float>(row_of<T>(z, v, n)[d]));
    }
  }
  partial[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.y == 0 && inside) {
    for (int warp = 1; warp < kWarps; ++warp) own.merge(partial[warp][threadIdx.x]);
    static_cast<float*>(p.mean)[v * z.dim + d] = own.mean;
    static_cast<float*>(p.sum_squares)[v * z.dim + d] = own.squares;
    float scale = 1;
    if (p.scale != nullptr) {
      scale = 1 / sqrtf(own.squares / static_cast<float>(p.divisor) + static_cast<float>(p.eps));
      static_cast<float*>(p.scale)[v * z.dim + d] = scale;
    }
    means[threadIdx.x] = own.mean;
    scales[threadIdx.x] = scale;
  }
  if (p.tile == nullptr) return;  // the same for the whole block
  __syncthreads();
  if (!inside) return;
  const float mean = means[threadIdx.x], scale = scales[threadIdx.x];
  auto* tile = static_cast<P*>(p.tile) + v * z.rows * z.dim + d;
#pragma unroll 4
  for (std::int64_t n = threadIdx.y; n < z.rows; n += kWarps) {
    tile[n * z.dim] = static_cast<P>((static_cast<float>(row_of<T>(z, v, n)[d]) - mean) * scale);
  }
}

template <typename T, typename P>
__global__ void __launch_bounds__(kElementThreads) tile(ColumnTile p) {
  const std::int64_t d = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (d >= p.dims) return;
  const std::int64_t at = p.first_dim + d, per_subspace = p.z.views * p.rows * p.dims;
  for_rows(p.z.views * p.rows, [&](std::int64_t i) {
    const std::int64_t v = i / p.rows, n = p.first_row + i % p.rows;
    const float x = static_cast<float>(row_of<T>(p.z, v, n)[at]) -
                    static_cast<const float*>(p.mean)[v * p.z.dim + at];
    P* out = static_cast<P*>(p.tile) + i * p.dims + d;
    if (p.scale == nullptr) {
      *out = static_cast<P>(x);
      return;
    }
    const float* scale = static_cast<const float*>(p.scale) + v * p.view_stride + at;
    for (std::int64_t k = 0; k < p.subspaces; ++k) {
      out[k * per_subspace] = static_cast<P>(x * scale[k * p.subspace_stride]);
    }
  });
}

template <typename P>
__global__ void __launch_bounds__(kWarps* kWarpSize) dots(ColumnDots p, unsigned per_view) {
  __shared__ float partial[kWarps][kWarpSize];
  const std::int64_t kv = blockIdx.x / per_view;
  const std::int64_t d = std::int64_t{blockIdx.x % per_view} * kWarpSize + threadIdx.x;
  float sum = 0;
  if (d < p.dims) {
    const P* x = static_cast<const P*>(p.x) + kv % p.views * p.rows * p.dims + d;
    const P* y = static_cast<const P*>(p.y) + kv * p.rows * p.dims + d;
#pragma unroll 4
    for (std::int64_t n = threadIdx.y; n < p.rows; n += kWarps) {
      sum += static_cast<float>(x[n * p.dims]) * static_cast<float>(y[n * p.dims]);
    }
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || d >= p.dims) return;
  for (int warp = 1; warp < kWarps; ++warp) sum += partial[warp][threadIdx.x];
  float& dot = static_cast<float*>(p.dots)[kv * p.stride + d];
  dot = p.add ? dot + sum : sum;
}

}  // namespace

int column_moments_cuda(const ColumnMoments& p, cudaStream_t stream) {
  const unsigned per_view = blocks(p.z.dim, kWarpSize);
  const unsigned grid = blocks(p.z.views * per_view, 1);
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename P>() {
    return launch(moments<T, P>, grid, dim3(kWarpSize, kWarps), stream, p, per_view);
  });
}

int column_tile_cuda(const ColumnTile& p, cudaStream_t stream) {
  const dim3 grid = element_grid(p.z.views * p.rows, p.dims);
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename P>() {
    return launch(tile<T, P>, grid, kElementThreads, stream, p);
  });
}

int column_dots_cuda(const ColumnDots& p, cudaStream_t stream) {
  const unsigned per_view = blocks(p.dims, kWarpSize);
  const unsigned grid = blocks(p.subspaces * p.views * per_view, 1);
  return visit_product_dtype(p.dtype, [&]<typename T, typename P>() {
    return launch(dots<P>, grid, dim3(kWarpSize, kWarps), stream, p, per_view);
  });
}

}  // namespace mast_ext::kernels
