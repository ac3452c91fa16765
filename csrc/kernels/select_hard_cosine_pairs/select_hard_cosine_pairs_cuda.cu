// One warp per image, whose lanes divide D. With up to four views, rows are read once and all
// products are accumulated in registers. With more views, pairs are taken one after the other, and
// their rows read again, from the cache.
#include "kernels/common/packets.cuh"
#include "kernels/pair_sums/pair_sums_cuda.cuh"
#include "kernels/select_hard_cosine_pairs/select_hard_cosine_pairs.h"
#include "kernels/subspace_similarity/subspace_similarity_math.h"

namespace mast_ext::kernels {
namespace {

namespace engine = pair_sums_cuda;
using subspace_similarity_math::inverse_norm;

constexpr int kThreads = engine::kThreads;

// sum += a . b
template <int N>
__device__ __forceinline__ void add_products(const float (&a)[N], const float (&b)[N], float& sum) {
#pragma unroll
  for (int n = 0; n < N; ++n) sum += a[n] * b[n];
}

// The image of the calling warp, the same for all its lanes.
__device__ __forceinline__ std::int64_t own_image() {
  return (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
}

template <typename T, int N, int V>
__global__ void __launch_bounds__(kThreads) select_of_few(SelectHardCosinePairs p) {
  const std::int64_t b = own_image();
  if (b >= p.pairs.batch) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;

  float products[V][V] = {}, squares_x[V] = {}, squares_y[V] = {};
  for (std::int64_t d = lane * N; d < p.pairs.dim; d += kWarpSize * N) {
    float x[V][N], y[V][N];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      read(row_of<T>(p.pairs.x, v, b) + d, x[v]);
      read(row_of<T>(p.pairs.y, v, b) + d, y[v]);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      add_products(x[i], x[i], squares_x[i]);
      add_products(y[i], y[i], squares_y[i]);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (i != j) add_products(x[i], y[j], products[i][j]);
      }
    }
  }
  const auto eps = static_cast<float>(p.eps);
  float inverse_x[V], inverse_y[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    inverse_x[v] = inverse_norm(group_sum<kWarpSize>(squares_x[v]), eps);
    inverse_y[v] = inverse_norm(group_sum<kWarpSize>(squares_y[v]), eps);
  }
  HardestPair<float> hardest;
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int j = i + 1; j < V; ++j) {
      const float cosine_ij = group_sum<kWarpSize>(products[i][j]) * (inverse_x[i] * inverse_y[j]);
      const float cosine_ji = group_sum<kWarpSize>(products[j][i]) * (inverse_x[j] * inverse_y[i]);
      if (p.candidates.has(i, j)) hardest.offer(i, j, (-cosine_ij - cosine_ji) / 2);
    }
  }
  if (lane == 0) hardest.write(p.index, p.score, p.pairs.batch, b);
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) select_of_many(SelectHardCosinePairs p) {
  const std::int64_t b = own_image();
  if (b >= p.pairs.batch) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const auto eps = static_cast<float>(p.eps);

  HardestPair<float> hardest;
  for (std::int32_t i = 0; i < p.candidates.views; ++i) {
    for (std::int32_t j = i + 1; j < p.candidates.views; ++j) {
      if (!p.candidates.has(i, j)) continue;
      float cosine_ij = 0, cosine_ji = 0, x_i = 0, y_i = 0, x_j = 0, y_j = 0;
      for (std::int64_t d = lane * N; d < p.pairs.dim; d += kWarpSize * N) {
        float x[2][N], y[2][N];
        read(row_of<T>(p.pairs.x, i, b) + d, x[0]);
        read(row_of<T>(p.pairs.x, j, b) + d, x[1]);
        read(row_of<T>(p.pairs.y, i, b) + d, y[0]);
        read(row_of<T>(p.pairs.y, j, b) + d, y[1]);
        add_products(x[0], y[1], cosine_ij);
        add_products(x[1], y[0], cosine_ji);
        add_products(x[0], x[0], x_i);
        add_products(y[0], y[0], y_i);
        add_products(x[1], x[1], x_j);
        add_products(y[1], y[1], y_j);
      }
      cosine_ij = group_sum<kWarpSize>(cosine_ij) * (inverse_norm(group_sum<kWarpSize>(x_i), eps) *
                                                     inverse_norm(group_sum<kWarpSize>(y_j), eps));
      cosine_ji = group_sum<kWarpSize>(cosine_ji) * (inverse_norm(group_sum<kWarpSize>(x_j), eps) *
                                                     inverse_norm(group_sum<kWarpSize>(y_i), eps));
      hardest.offer(i, j, (-cosine_ij - cosine_ji) / 2);
    }
  }
  if (lane == 0) hardest.write(p.index, p.score, p.pairs.batch, b);
}

}  // namespace

int select_hard_cosine_pairs_cuda(const SelectHardCosinePairs& p, cudaStream_t stream) {
  const unsigned grid = blocks(p.pairs.batch, kThreads / kWarpSize);
  return engine::visit_layout(p.pairs, false, [&]<typename T, int N>() {
    switch (p.candidates.views) {
      case 2:
        return launch(select_of_few<T, N, 2>, grid, kThreads, stream, p);
      case 3:
        return launch(select_of_few<T, N, 3>, grid, kThreads, stream, p);
      case 4:
        return launch(select_of_few<T, N, 4>, grid, kThreads, stream, p);
      default:
        return launch(select_of_many<T, N>, grid, kThreads, stream, p);
    }
  });
}

}  // namespace mast_ext::kernels
