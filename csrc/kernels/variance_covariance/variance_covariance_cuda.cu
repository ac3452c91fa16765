// Forward: a thread block per row of the product, then a thread block per result. Backward: a
// thread per column walks a few rows. There are no atomic additions: every result has a fixed order
// of summation.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/element_grid.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/variance_covariance/variance_covariance.h"
#include "kernels/variance_covariance/variance_covariance_math.h"

namespace mast_ext::kernels {
namespace {

namespace math = variance_covariance_math;

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

__global__ void __launch_bounds__(kThreads) finish(VarianceCovariance p) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t kv = blockIdx.x, k = kv / s.views, v = kv % s.views;
  const float* sums = static_cast<const float*>(p.row_sums) + kv * (s.gram ? s.rows : s.dim);
  double hinges = 0, pairs = 0;
  for (std::int64_t d = threadIdx.x; d < s.dim; d += kThreads) {
    const float w = math::weight<float>(s, k, d), squares = math::sum_squares<float>(s, v, d);
    hinges += math::hinge(math::deviation(s, w, squares));
    pairs += s.gram ? -static_cast<double>(w * squares) * (w * squares)
                    : static_cast<double>(w) * sums[d];
  }
  if (s.gram) {
    for (std::int64_t n = threadIdx.x; n < s.rows; n += kThreads) pairs += sums[n];
  }
  hinges = block_sum<kThreads>(hinges);
  pairs = block_sum<kThreads>(pairs);
  if (threadIdx.x != 0) return;
  static_cast<float*>(p.variance)[kv] = static_cast<float>(hinges / static_cast<double>(s.dim));
  static_cast<float*>(p.covariance)[kv] =
      static_cast<float>(pairs * math::covariance_scale<double>(s));
}

template <typename P>
__global__ void __launch_bounds__(kElementThreads) matrix(VarianceCovarianceBackward p) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t e = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (e >= s.dim) return;
  for_rows(s.views * s.dim, [&](std::int64_t i) {
    const std::int64_t v = i / s.dim, d = i % s.dim;
    float value = 0;
    if (e == d) {
      value = math::diagonal<float>(p, v, d);
    } else {
#pragma unroll 1
      for (std::int64_t k = 0; k < s.subspaces; ++k) {
        value += math::covariance_coefficient<float>(p, k * s.views + v) *
                 math::weight<float>(s, k, d) * math::weight<float>(s, k, e);
      }
      value *= static_cast<float>(static_cast<const P*>(s.product)[i * s.dim + e]);
    }
    static_cast<P*>(p.matrix)[i * s.dim + e] = static_cast<P>(value);
  });
}

template <typename T, typename P>
__global__ void __launch_bounds__(kElementThreads) combine(VarianceCovarianceBackward p) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t d = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (d >= p.dims) return;
  const std::int64_t at = p.first_dim + d, per_subspace = s.views * s.rows * p.dims;
  std::int64_t prepared = -1;  // the view of `diagonal`
  float diagonal = 0;
  for_rows(s.views * s.rows, [&](std::int64_t i) {
    const std::int64_t v = i / s.rows;
    if (v != prepared) {
      prepared = v;
      diagonal = math::diagonal<float>(p, v, at);
    }
    const std::int64_t element = i * p.dims + d;
    float sum = static_cast<float>(static_cast<const P*>(p.centered)[element]) * diagonal;
    for (std::int64_t k = 0; k < s.subspaces; ++k) {
      sum +=
          static_cast<float>(static_cast<const P*>(p.product_grad)[k * per_subspace + element]) *
          (math::covariance_coefficient<float>(p, k * s.views + v) * math::weight<float>(s, k, at));
    }
    static_cast<T*>(p.grad_z)[i * s.dim + at] = static_cast<T>(sum);
  });
}

__global__ void __launch_bounds__(kThreads) grad_masks(VarianceCovarianceBackward p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.shape.subspaces * p.shape.dim) return;
  static_cast<float*>(p.grad_masks)[i] =
      math::grad_mask<float>(p, i / p.shape.dim, i % p.shape.dim);
}

}  // namespace

int variance_covariance_cuda(const VarianceCovariance& p, cudaStream_t stream) {
  const VarianceCovarianceShape& s = p.shape;
  const std::int64_t results = s.subspaces * s.views;
  const cudaError_t error = visit_product_dtype(s.dtype, [&]<typename T, typename P>() {
    return s.gram ? launch(gram_rows<P>, blocks(results * s.rows, 1), kThreads, stream, p)
                  : launch(direct_rows<P>, blocks(s.views * s.dim, 1), kThreads, stream, p);
  });
  if (error != cudaSuccess) return error;
  return launch(finish, blocks(results, 1), kThreads, stream, p);
}

int variance_covariance_matrix_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  const dim3 grid = element_grid(p.shape.views * p.shape.dim, p.shape.dim);
  return visit_product_dtype(p.shape.dtype, [&]<typename T, typename P>() {
    return launch(matrix<P>, grid, kElementThreads, stream, p);
  });
}

int variance_covariance_combine_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  const dim3 grid = element_grid(p.shape.views * p.shape.rows, p.dims);
  return visit_product_dtype(p.grad_dtype, [&]<typename T, typename P>() {
    return launch(combine<T, P>, grid, kElementThreads, stream, p);
  });
}

int variance_covariance_masks_cuda(const VarianceCovarianceBackward& p, cudaStream_t stream) {
  return launch(grad_masks, blocks(p.shape.subspaces * p.shape.dim, kThreads), kThreads, stream, p);
}

}  // namespace mast_ext::kernels
