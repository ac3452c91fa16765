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
    return engine::read_only(sums + (row * p.pairs.subspaces + k) * p.pairs.batch + b);
  });
}

// One row of coefficients more than there are rows: of W_k.
template <typename T>
__global__ void __launch_bounds__(engine::kThreads)
    write_coefficients(DynamicShared<kMostShared>, SubspaceNllBackward p, bool staged) {
  const std::int32_t rows = p.pairs.rows.count();
  auto* to = static_cast<float*>(p.work.coefficients);
  engine::write_all(p.pairs, to, rows + 1, staged, [&](auto k, auto b, bool exists, auto&& set) {
    const float total = engine::total_weight_of(p.pairs, k);
    if (!exists) return;
    if (k < p.pairs.subspaces) {
      set(rows, math::coefficients<T>(p, k, b, total, set));
    } else {
      for (std::int32_t row = 0; row <= rows; ++row) set(row, 0);
    }
  });
}

}  // namespace

int subspace_nll_cuda(const SubspaceNll& p, cudaStream_t stream) {
  auto* sums = static_cast<float*>(p.sums);
  const cudaError_t error = p.variance == Variance::kDiagonal
                                ? engine::launch_sums<Likelihood>(p.pairs, sums, stream)
                                : engine::launch_sums<SquaredDifference>(p.pairs, sums, stream);
  if (error != cudaSuccess) return error;
  return visit_cuda_dtype(p.pairs.dtype, [&]<typename T>() {
    return launch(finish<T>, engine::subspace_grid(p.pairs), engine::kThreads, stream, p);
  });
}

int subspace_nll_backward_cuda(const SubspaceNllBackward& p, cudaStream_t stream) {
  const cudaError_t error = visit_cuda_dtype(p.pairs.dtype, [&]<typename T>() {
    return engine::launch_coefficients(write_coefficients<T>, p, p.pairs.rows.count() + 1, stream);
  });
  if (error != cudaSuccess) return error;
  return p.variance == Variance::kDiagonal
             ? engine::launch_grads<Likelihood>(p.pairs, p.work, p.grad, true, stream)
             : engine::launch_grads<SquaredDifference>(p.pairs, p.work, p.grad, true, stream);
}

}  // namespace mast_ext::kernels
