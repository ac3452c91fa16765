// With up to four views, rows are read once and all products are accumulated in registers; as many
// warps share an image as have a packet of every row for each lane, so that a whole image is on its
// way from memory at once. With more views, a warp takes an image's pairs one after the other, and
// their rows are read again, from the cache.
#include <bit>

#include "kernels/common/packets.cuh"
#include "kernels/pair_sums/pair_sums_cuda.cuh"
#include "kernels/select_hard_cosine_pairs/select_hard_cosine_pairs.h"
#include "kernels/subspace_similarity/subspace_similarity_math.h"

namespace mast_ext::kernels {
namespace {

namespace engine = pair_sums_cuda;
using subspace_similarity_math::inverse_norm;

constexpr int kThreads = engine::kThreads;
constexpr int kFewThreads = 256, kFewWarps = kFewThreads / kWarpSize;

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

// Where the sums of an image with V views lie: squares, then products of different views. If the
// embeddings are compared with themselves (kSelf), each is needed once.
template <int V, bool kSelf>
struct FewSums {
  static constexpr int kSquares = kSelf ? V : 2 * V;
  static constexpr int kCount = kSquares + V * (V - 1) / (kSelf ? 2 : 1);
  static constexpr int kPadded = static_cast<int>(std::bit_ceil(unsigned{kCount}));

  static constexpr __device__ int x(int v) { return v; }
  static constexpr __device__ int y(int v) { return kSelf ? v : V + v; }
  // x_i . y_j
  static constexpr __device__ int product(int i, int j) {
    if constexpr (!kSelf) return kSquares + i * (V - 1) + (j < i ? j : j - 1);
    return kSquares + (i < j ? j * (j - 1) / 2 + i : i * (i - 1) / 2 + j);
  }
};

// The sums over the lane's share of image b, whose rows `parts` warps divide.
template <typename T, int N, int V, bool kSelf, int Count>
__device__ __forceinline__ void add_image(const SelectHardCosinePairs& p, std::int64_t b, int part,
                                          int parts, float (&sums)[Count]) {
  using At = FewSums<V, kSelf>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (std::int64_t d = (part * kWarpSize + lane) * N; d < p.pairs.dim;
       d += parts * kWarpSize * N) {
    RawPacket<T, N> x[V], y[kSelf ? 1 : V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      x[v].load(row_of<T>(p.pairs.x, v, b) + d);
      if constexpr (!kSelf) y[v].load(row_of<T>(p.pairs.y, v, b) + d);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sums[At::x(i)] += x[i][n] * x[i][n];
        if constexpr (!kSelf) sums[At::y(i)] += y[i][n] * y[i][n];
#pragma unroll
        for (int j = kSelf ? i + 1 : 0; j < V; ++j) {
          if (j == i) continue;
          sums[At::product(i, j)] += x[i][n] * (kSelf ? x : y)[j][n];
        }
      }
    }
  }
}

template <typename T, int N, int V, bool kSelf>
__global__ void __launch_bounds__(kFewThreads, kSelf ? 4 : 3)
    select_of_few(SelectHardCosinePairs p, int parts) {
  using At = FewSums<V, kSelf>;
  __shared__ float shared[kFewWarps][At::kPadded];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int part = warp % parts;
  const std::int64_t b = std::int64_t{blockIdx.x} * (kFewWarps / parts) + warp / parts;
  const bool exists = b < p.pairs.batch;

  float sums[At::kPadded] = {};
  if (exists) add_image<T, N, V, kSelf>(p, b, part, parts, sums);
  engine::sum_over_lanes(sums);
  constexpr int kLanesPerSum = kWarpSize / At::kPadded;
  if (lane % kLanesPerSum == 0) shared[warp][lane / kLanesPerSum] = sums[0];
  __syncthreads();
  if (!exists || part != 0) return;
  float total[At::kCount] = {};
  for (int i = 0; i < parts; ++i) {
#pragma unroll
    for (int k = 0; k < At::kCount; ++k) total[k] += shared[warp + i][k];
  }

  const auto eps = static_cast<float>(p.eps);
  float inverse_x[V], inverse_y[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    inverse_x[v] = inverse_norm(total[At::x(v)], eps);
    inverse_y[v] = kSelf ? inverse_x[v] : inverse_norm(total[At::y(v)], eps);
  }
  HardestPair<float> hardest;
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int j = i + 1; j < V; ++j) {
      const float cosine_ij = total[At::product(i, j)] * (inverse_x[i] * inverse_y[j]);
      const float cosine_ji = total[At::product(j, i)] * (inverse_x[j] * inverse_y[i]);
      if (p.candidates.has(i, j)) hardest.offer(i, j, (-cosine_ij - cosine_ji) / 2);
    }
  }
  if (lane == 0) hardest.write(p.index, p.score, p.pairs.batch, b);
}

// Warps per image: as many as have something to read, and a power of two, so that images fill
// thread blocks.
int warps_per_image(std::int64_t dim, int packet) {
  int warps = 1;
  while (warps < kFewWarps && std::int64_t{warps} * kWarpSize * packet < dim) warps *= 2;
  return warps;
}

template <typename T, int N, int V>
cudaError_t launch_few(const SelectHardCosinePairs& p, cudaStream_t stream) {
  const Views &x = p.pairs.x, &y = p.pairs.y;
  const bool self =
      x.data == y.data && x.view_stride == y.view_stride && x.batch_stride == y.batch_stride;
  const int parts = warps_per_image(p.pairs.dim, N);
  const unsigned grid = blocks(p.pairs.batch, kFewWarps / parts);
  return self ? launch(select_of_few<T, N, V, true>, grid, kFewThreads, stream, p, parts)
              : launch(select_of_few<T, N, V, false>, grid, kFewThreads, stream, p, parts);
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
  return visit_cuda_dtype(p.pairs.dtype, [&]<typename T>() {
    return engine::visit_packets<16 / sizeof(T)>(p.pairs, false, [&]<int N>() {
      switch (p.candidates.views) {
        case 2:
          return launch_few<T, N, 2>(p, stream);
        case 3:
          return launch_few<T, N, 3>(p, stream);
        case 4:
          return launch_few<T, N, 4>(p, stream);
        default: {
          const unsigned grid = blocks(p.pairs.batch, kThreads / kWarpSize);
          return launch(select_of_many<T, N>, grid, kThreads, stream, p);
        }
      }
    });
  });
}

}  // namespace mast_ext::kernels
