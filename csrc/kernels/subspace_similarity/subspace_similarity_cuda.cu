// Computes the sums of pair_sums_cuda.cuh, then the arithmetic on them with one thread per
// (subspace, image).
#include "kernels/pair_sums/pair_sums_cuda.cuh"
#include "kernels/pair_sums/pair_sums_grads_cuda.cuh"
#include "kernels/subspace_similarity/subspace_similarity.h"
#include "kernels/subspace_similarity/subspace_similarity_math.h"

namespace mast_ext::kernels {
namespace {

namespace engine = pair_sums_cuda;
namespace math = subspace_similarity_math;

__global__ void __launch_bounds__(engine::kThreads) finish(SubspaceSimilarity p) {
  const std::int64_t k = engine::own_subspace(p.pairs), b = engine::own_image(p.pairs);
  if (b >= p.pairs.batch) return;
  const auto* sums = static_cast<const float*>(p.sums);
  math::finish<float>(p, k, b, [&](std::int32_t row) {
    return sums[(row * p.pairs.subspaces + k) * p.pairs.batch + b];
  });
}

__global__ void __launch_bounds__(engine::kThreads)
    write_coefficients(SubspaceSimilarityBackward p) {
  const std::int64_t k = engine::own_subspace(p.pairs), b = engine::own_image(p.pairs);
  const std::int64_t padded_k = padded_subspaces(p.pairs.subspaces);
  if (b >= p.pairs.batch) return;
  const std::int32_t rows = p.pairs.rows.count();
  float* image = static_cast<float*>(p.work.coefficients) + b * rows * padded_k + k;
  if (k >= p.pairs.subspaces) {
    for (std::int32_t row = 0; row < rows; ++row) image[row * padded_k] = 0;
    return;
  }
  math::coefficients<float>(p, k, b, [&](std::int32_t row, float c) { image[row * padded_k] = c; });
}

}  // namespace

int subspace_similarity_cuda(const SubspaceSimilarity& p, cudaStream_t stream) {
  auto* sums = static_cast<float*>(p.sums);
  const cudaError_t error = p.metric == Metric::kCosine
                                ? engine::launch_sums<Product>(p.pairs, sums, stream)
                                : engine::launch_sums<SquaredDifference>(p.pairs, sums, stream);
  if (error != cudaSuccess) return error;
  return launch(finish, engine::subspace_grid(p.pairs, p.pairs.subspaces), engine::kThreads, stream,
                p);
}

int subspace_similarity_backward_cuda(const SubspaceSimilarityBackward& p, cudaStream_t stream) {
  const cudaError_t error = launch(
      write_coefficients, engine::subspace_grid(p.pairs, padded_subspaces(p.pairs.subspaces)),
      engine::kThreads, stream, p);
  if (error != cudaSuccess) return error;
  return p.metric == Metric::kCosine
             ? engine::launch_grads<Product>(p.pairs, p.work, p.grad, false, stream)
             : engine::launch_grads<SquaredDifference>(p.pairs, p.work, p.grad, false, stream);
}

}  // namespace mast_ext::kernels
