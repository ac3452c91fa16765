// Forward: a thread block per row of the product, then a thread block per result. Backward: a
// thread per packet of columns walks a few rows. There are no atomic additions: every result has a
// fixed order of summation.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/variance_covariance/variance_covariance_cuda.cuh"

namespace mast_ext::kernels {
namespace {

using namespace variance_covariance_cuda;

constexpr int kThreads = 128;
constexpr int kMasks = 4;  // subspaces that one pass over a row computes

template <typename P>
__global__ void __launch_bounds__(kThreads) gram_rows(VarianceCovariance p) {
  const std::int64_t rows = p.shape.rows;
  const P* row = static_cast<const P*>(p.shape.product) + blockIdx.x * rows;
  float sum = 0;
#pragma unroll 4
  for (std::int64_t m = threadIdx.x; m < rows; m += kThreads) {
    const float x = static_cast<float>(row[m]);
    sum += x * x;
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) static_cast<float*>(p.row_sums)[blockIdx.x] = sum;
}

template <typename P>
__global__ void __launch_bounds__(kThreads) direct_rows(VarianceCovariance p) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t vd = blockIdx.x, d = vd % s.dim;
  const P* row = static_cast<const P*>(s.product) + vd * s.dim;
  for (std::int64_t k0 = 0; k0 < s.subspaces; k0 += kMasks) {
    float sum[kMasks] = {};
#pragma unroll 2
    for (std::int64_t e = threadIdx.x; e < s.dim; e += kThreads) {
      if (e == d) continue;
      const float x = static_cast<float>(row[e]);
#pragma unroll
      for (int j = 0; j < kMasks; ++j) {
        if (k0 + j < s.subspaces) sum[j] += x * x * math::weight<float>(s, k0 + j, e);
      }
    }
#pragma unroll
    for (int j = 0; j < kMasks; ++j) {
      if (k0 + j >= s.subspaces) break;  // the same for the whole thread block
      const float total = block_sum<kThreads>(sum[j]);
      if (threadIdx.x == 0) {
        static_cast<float*>(p.row_sums)[(k0 + j) * s.views * s.dim + vd] = total;
      }
    }
  }
}

__global__ void __launch_bounds__(kFinishThreads) finish(VarianceCovariance p) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t kv = blockIdx.x;
  const ViewSums sums = view_sums(p, kv / s.views, kv % s.views);
  if (threadIdx.x != 0) return;
  static_cast<float*>(p.variance)[kv] =
      static_cast<float>(sums.hinges / static_cast<double>(s.dim));
  static_cast<float*>(p.covariance)[kv] =
      static_cast<float>(sums.pairs * math::covariance_scale<double>(s));
}

template <typename P, int N>
__global__ void __launch_bounds__(kPacketThreads)
    matrix(VarianceCovarianceBackward p, PacketGrid grid) {
  write_matrix<P, N>(p, grid);
}

template <typename T, typename P, int N>
__global__ void __launch_bounds__(kPacketThreads)
    combine(VarianceCovarianceBackward p, PacketGrid grid) {
  combine_rows<T, P, N>(
      p, grid, [](std::int64_t, std::int64_t) { return [](std::int64_t, float (&)[N]) {}; });
}

__global__ void __launch_bounds__(kThreads) grad_masks(VarianceCovarianceBackward p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.shape.subspaces * p.shape.dim) return;
  static_cast<float*>(p.grad_masks)[i] =
      math::grad_mask<float>(p, i / p.shape.dim, i % p.shape.dim);
}

}  // namespace

int variance_covariance_rows_cuda(const VarianceCovariance& p, cudaStream_t stream) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t gram_grid = s.subspaces * s.views * s.rows;
  return visit_product_dtype(s.dtype, [&]<typename T, typename P>() {
    return s.gram ? launch(gram_rows<P>, blocks(gram_grid, 1), kThreads, stream, p)
                  : launch(direct_rows<P>, blocks(s.views * s.dim, 1), kThreads, stream, p);
  });
}

int variance_covariance_finish_cuda(const VarianceCovariance& p, cudaStream_t stream) {
  return launch(finish, blocks(p.shape.subspaces * p.shape.views, 1), kFinishThreads, stream, p);
}

int variance_covariance_matrix_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  const VarianceCovarianceShape& s = p.shape;
  return visit_product_dtype(s.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = s.dim % N == 0 && aligned(s.product, 16) && aligned(p.matrix, 16);
    const PacketGrid grid = packet_grid(s.views, s.dim, packets ? s.dim / N : s.dim);
    return packets ? launch(matrix<P, N>, grid.grid, grid.block, stream, p, grid)
                   : launch(matrix<P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

int variance_covariance_combine_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  return visit_product_dtype(p.grad_dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = combines_in_packets<T, P>(p);
    const PacketGrid grid = combine_grid(p, packets ? N : 1);
    return packets ? launch(combine<T, P, N>, grid.grid, grid.block, stream, p, grid)
                   : launch(combine<T, P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

int variance_covariance_masks_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  return launch(grad_masks, blocks(p.shape.subspaces * p.shape.dim, kThreads), kThreads, stream, p);
}

}  // namespace mast_ext::kernels
