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
    return engine::read_only(sums + (row * p.pairs.subspaces + k) * p.pairs.batch + b);
  });
}

__global__ void __launch_bounds__(engine::kThreads)
    write_coefficients(DynamicShared<kMostShared>, SubspaceSimilarityBackward p, bool staged) {
  const std::int32_t rows = p.pairs.rows.count();
  auto* to = static_cast<float*>(p.work.coefficients);
  engine::write_all(p.pairs, to, rows, staged, [&](auto k, auto b, bool exists, auto&& set) {
    if (!exists) return;
    if (k < p.pairs.subspaces) {
      math::coefficients<float>(p, k, b, set);
    } else {
      for (std::int32_t row = 0; row < rows; ++row) set(row, 0);
    }
  });
}

}  // namespace

int subspace_similarity_cuda(const SubspaceSimilarity& p, cudaStream_t stream) {
  auto* sums = static_cast<float*>(p.sums);
  const cudaError_t error = p.metric == Metric::kCosine
                                ? engine::launch_sums<Product>(p.pairs, sums, stream)
                                : engine::launch_sums<SquaredDifference>(p.pairs, sums, stream);
  if (error != cudaSuccess) return error;
  return launch(finish, engine::subspace_grid(p.pairs), engine::kThreads, stream, p);
}

int subspace_similarity_backward_cuda(const SubspaceSimilarityBackward& p, cudaStream_t stream) {
  const cudaError_t error =
      engine::launch_coefficients(write_coefficients, p, p.pairs.rows.count(), stream);
  if (error != cudaSuccess) return error;
  return p.metric == Metric::kCosine
             ? engine::launch_grads<Product>(p.pairs, p.work, p.grad, false, stream)
             : engine::launch_grads<SquaredDifference>(p.pairs, p.work, p.grad, false, stream);
}

}  // namespace mast_ext::kernels
