// Computes the sums of pair_sums_cuda.cuh, then the arithmetic on them with one thread per
// (subspace, image). Each thread block computes the W_k of its subspace itself.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/pair_sums/pair_sums_cuda.cuh"
#include "kernels/pair_sums/pair_sums_grads_cuda.cuh"
#include "kernels/subspace_nll/subspace_nll.h"
#include "kernels/subspace_nll/subspace_nll_math.h"

namespace mast_ext::kernels {
namespace {

namespace engine = pair_sums_cuda;
namespace math = subspace_nll_math;

template <typename T>
__global__ void __launch_bounds__(engine::kThreads) finish(SubspaceNll p) {
  const std::int64_t k = engine::own_subspace(p.pairs), b = engine::own_image(p.pairs);
  const float total = engine::total_weight(p.pairs, k);
  if (b >= p.pairs.batch) return;
  const auto* sums = static_cast<const float*>(p.sums);
  math::finish<T>(p, k, b, total, [&](std::int32_t row) {
    return sums[(row * p.pairs.subspaces + k) * p.pairs.batch + b];
  });
}

template <typename T>
__global__ void __launch_bounds__(engine::kThreads) write_coefficients(SubspaceNllBackward p) {
  const std::int64_t k = engine::own_subspace(p.pairs), b = engine::own_image(p.pairs);
  const std::int64_t padded_k = padded_subspaces(p.pairs.subspaces);
  const bool padding = k >= p.pairs.subspaces;  // the same for the whole thread block
  const float total = padding ? 0 : engine::total_weight(p.pairs, k);
  if (b >= p.pairs.batch) return;
  const std::int32_t rows = p.pairs.rows.count() + 1;  // the last one is of W_k
  float* image = static_cast<float*>(p.work.coefficients) + b * rows * padded_k + k;
  if (padding) {
    for (std::int32_t row = 0; row < rows; ++row) image[row * padded_k] = 0;
    return;
  }
  image[(rows - 1) * padded_k] = math::coefficients<T>(
      p, k, b, total, [&](std::int32_t row, float c) { image[row * padded_k] = c; });
}

}  // namespace

int subspace_nll_cuda(const SubspaceNll& p, cudaStream_t stream) {
  auto* sums = static_cast<float*>(p.sums);
  const cudaError_t error = p.variance == Variance::kDiagonal
                                ? engine::launch_sums<Likelihood>(p.pairs, sums, stream)
                                : engine::launch_sums<SquaredDifference>(p.pairs, sums, stream);
  if (error != cudaSuccess) return error;
  return visit_cuda_dtype(p.pairs.dtype, [&]<typename T>() {
    return launch(finish<T>, engine::subspace_grid(p.pairs, p.pairs.subspaces), engine::kThreads,
                  stream, p);
  });
}

int subspace_nll_backward_cuda(const SubspaceNllBackward& p, cudaStream_t stream) {
  const cudaError_t error = visit_cuda_dtype(p.pairs.dtype, [&]<typename T>() {
    return launch(write_coefficients<T>,
                  engine::subspace_grid(p.pairs, padded_subspaces(p.pairs.subspaces)),
                  engine::kThreads, stream, p);
  });
  if (error != cudaSuccess) return error;
  return p.variance == Variance::kDiagonal
             ? engine::launch_grads<Likelihood>(p.pairs, p.work, p.grad, true, stream)
             : engine::launch_grads<SquaredDifference>(p.pairs, p.work, p.grad, true, stream);
}

}  // namespace mast_ext::kernels
