// Computes the sums of pair_sums_cuda.cuh, then the arithmetic on them with one thread per
// (subspace, image). A pair of views without masks, which many losses have, takes a single launch.
#include <type_traits>

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

// `parts` neighboring warps share an image.
template <typename T, typename Values, int N>
__global__ void __launch_bounds__(engine::kThreads) compare_two(SubspaceSimilarity p, int parts) {
  constexpr int kWarps = engine::kThreads / kWarpSize;
  enum { kPair, kNormX, kNormY, kSums };  // in the order of PairRows
  __shared__ float partial[kWarps][kSums];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t b = std::int64_t{blockIdx.x} * (kWarps / parts) + warp / parts;
  const bool exists = b < p.pairs.batch;
  float sums[kSums] = {};
  const std::int64_t end = exists ? p.pairs.dim : 0;
#pragma unroll 4
  for (std::int64_t d = (warp % parts * kWarpSize + lane) * N; d < end;
       d += parts * kWarpSize * N) {
    engine::Elements<T, Values, N> x, y;
    x.read_at(p.pairs, 0, b, d);
    y.read_at(p.pairs, 1, b, d);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      sums[kPair] += Values::template value<engine::CudaMath>(x.at(n), y.at(n));
      if constexpr (std::is_same_v<Values, Product>) {
        sums[kNormX] += Values::self_value(x.at(n));
        sums[kNormY] += Values::self_value(y.at(n));
      }
    }
  }
#pragma unroll
  for (float& sum : sums) sum = group_sum<kWarpSize>(sum);
  if (parts > 1) {
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) partial[warp][i] = sums[i];
    }
    __syncthreads();
    if (warp % parts != 0) return;
    for (int part = 1; part < parts; ++part) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += partial[warp + part][i];
    }
  }
  if (lane != 0 || !exists) return;
  math::finish<float>(p, 0, b, [&](std::int32_t row) {
    return row == kPair ? sums[kPair] : row == kNormX ? sums[kNormX] : sums[kNormY];
  });
}

template <typename Values>
cudaError_t launch_two(const SubspaceSimilarity& p, cudaStream_t stream) {
  constexpr int kWarps = engine::kThreads / kWarpSize;
  return visit_cuda_dtype(p.pairs.dtype, [&]<typename T>() {
    return engine::visit_packets<16 / sizeof(T)>(p.pairs, false, [&]<int N>() {
      const int parts = engine::warps_of_tile(p.pairs.batch, p.pairs.dim, N, kWarps);
      return launch(compare_two<T, Values, N>, blocks(p.pairs.batch, kWarps / parts),
                    engine::kThreads, stream, p, parts);
    });
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
  if (compares_two(p.pairs)) {
    return p.metric == Metric::kCosine ? launch_two<Product>(p, stream)
                                       : launch_two<SquaredDifference>(p, stream);
  }
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
