// Forward: a thread block per row of the product, then a single one for the scalar. Backward: a
// thread per column walks a few rows. There are no atomic additions: every result has a fixed order
// of summation.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/element_grid.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/cross_correlation_penalty/cross_correlation_penalty.h"
#include "kernels/cross_correlation_penalty/cross_correlation_penalty_math.h"

namespace mast_ext::kernels {
namespace {

namespace math = cross_correlation_math;

constexpr int kThreads = 128;
constexpr int kFinishThreads = 1024;

template <typename P>
__global__ void __launch_bounds__(kThreads) rows(CrossCorrelationPenalty p) {
  const CrossCorrelationShape& s = p.shape;
  const std::int64_t i = blockIdx.x, count = s.gram ? s.rows : s.dim;
  P* x = static_cast<P*>(p.product) + i * count;
  const P* y = s.gram ? x + s.rows * s.rows : x;
  if (!s.gram) {
    if (threadIdx.x == 0) x[i] = static_cast<P>(0.0f);  // the diagonal
    __syncthreads();
  }
  float sum = 0;
#pragma unroll 4
  for (std::int64_t j = threadIdx.x; j < count; j += kThreads) {
    sum += static_cast<float>(x[j]) * static_cast<float>(y[j]);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) static_cast<float*>(p.row_sums)[i] = sum;
}

__global__ void __launch_bounds__(kFinishThreads) finish(CrossCorrelationPenalty p) {
  const CrossCorrelationShape& s = p.shape;
  const double squared_rows = static_cast<double>(s.rows) * static_cast<double>(s.rows);
  const auto* sums = static_cast<const float*>(p.row_sums);
  double diagonal = 0, pairs = 0;
  for (std::int64_t d = threadIdx.x; d < s.dim; d += kFinishThreads) {
    const double c = math::correlation<float>(s, d);
    diagonal += (c - 1) * (c - 1);
    pairs += s.gram ? -c * c : sums[d] / squared_rows;
  }
  if (s.gram) {
    for (std::int64_t n = threadIdx.x; n < s.rows; n += kFinishThreads) {
      pairs += sums[n] / squared_rows;
    }
  }
  diagonal = block_sum<kFinishThreads>(diagonal);
  pairs = block_sum<kFinishThreads>(pairs);
  if (threadIdx.x == 0) {
    *static_cast<float*>(p.penalty) = static_cast<float>(diagonal + s.lambda * pairs);
  }
}

template <typename P>
__global__ void __launch_bounds__(kElementThreads) matrix(CrossCorrelationPenaltyBackward p) {
  const CrossCorrelationShape& s = p.shape;
  const std::int64_t e = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (e >= s.dim) return;
  const float grad = *static_cast<const float*>(p.grad_penalty);
  const float factor = math::matrix_factor(s, grad);
  for_rows(s.dim, [&](std::int64_t d) {
    const float value =
        e == d ? math::matrix_diagonal(s, grad, d)
               : static_cast<float>(static_cast<const P*>(s.product)[d * s.dim + e]) * factor;
    static_cast<P*>(p.matrix)[d * s.dim + e] = static_cast<P>(value);
  });
}

template <typename T, typename P>
__global__ void __launch_bounds__(kElementThreads) combine(CrossCorrelationPenaltyBackward p) {
  const CrossCorrelationShape& s = p.shape;
  const std::int64_t d = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (d >= p.dims) return;
  const std::int64_t at = p.first_dim + d;
  const float grad = *static_cast<const float*>(p.grad_penalty);
  const auto* tile = static_cast<const P*>(p.tile);
  std::int64_t prepared = -1;  // the view of the factors
  float product_grad_factor = 0, other_factor = 0, own_factor = 0;
  for_rows(2 * p.tile_rows, [&](std::int64_t i) {
    const std::int64_t v = i / p.tile_rows, n = i % p.tile_rows;
    T* to = static_cast<T*>(v == 0 ? p.grad_a : p.grad_b);
    if (to == nullptr) return;
    if (v != prepared) {
      prepared = v;
      const float scale = static_cast<const float*>(p.scale)[v * s.dim + at];
      product_grad_factor = scale * math::product_grad_scale(p, grad);
      other_factor = scale * math::other_factor(p, grad, at);
      own_factor = scale * math::projection(p, grad, v, at);
    }
    const std::int64_t element = i * p.dims + d;
    const float own = static_cast<float>(tile[element]);
    const float other = static_cast<float>(tile[((1 - v) * p.tile_rows + n) * p.dims + d]);
    const float product_grad = static_cast<float>(static_cast<const P*>(p.product_grad)[element]);
    to[(p.first_row + n) * s.dim + at] = static_cast<T>(product_grad * product_grad_factor +
                                                        other * other_factor - own * own_factor);
  });
}

}  // namespace

int cross_correlation_penalty_cuda(const CrossCorrelationPenalty& p, cudaStream_t stream) {
  const unsigned product_rows = blocks(p.shape.gram ? p.shape.rows : p.shape.dim, 1);
  const cudaError_t error = visit_product_dtype(p.shape.dtype, [&]<typename T, typename P>() {
    return launch(rows<P>, product_rows, kThreads, stream, p);
  });
  if (error != cudaSuccess) return error;
  return launch(finish, 1, kFinishThreads, stream, p);
}

int cross_correlation_matrix_cuda(const CrossCorrelationPenaltyBackward& p, cudaStream_t stream) {
  const dim3 grid = element_grid(p.shape.dim, p.shape.dim);
  return visit_product_dtype(p.shape.dtype, [&]<typename T, typename P>() {
    return launch(matrix<P>, grid, kElementThreads, stream, p);
  });
}

int cross_correlation_combine_cuda(const CrossCorrelationPenaltyBackward& p, cudaStream_t stream) {
  const dim3 grid = element_grid(2 * p.tile_rows, p.dims);
  return visit_product_dtype(p.grad_dtype, [&]<typename T, typename P>() {
    return launch(combine<T, P>, grid, kElementThreads, stream, p);
  });
}

}  // namespace mast_ext::kernels
