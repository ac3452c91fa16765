// What the backward of pair sums multiplies: a coefficient for every image, row and subspace, which
// the operators compute by write_all().
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/pair_sums/pair_sums_cuda.cuh"

namespace mast_ext::kernels::pair_sums_cuda {

// The coefficients of an image: for every row, then for the sums of the weights if `totals`, those
// of all subspaces, with zeros up to padded_subspaces().
struct Coefficients {
  const float* data;
  std::int32_t rows;
  bool totals;

  MAST_EXT_HD std::int32_t count() const { return rows + (totals ? 1 : 0); }
};

// A thread computes the coefficients of an image and a subspace. A thread block has 16
// images of 8 subspaces and passes them through shared memory, unless there are too many rows, to
// write whole sectors.

inline constexpr int kBlockImages = 16, kBlockSubspaces = kThreads / kBlockImages;

MAST_EXT_HD std::int64_t coefficient_tiles(const PairSums& p) {
  return (padded_subspaces(p.subspaces) + kBlockSubspaces - 1) / kBlockSubspaces;
}

// Calls compute(k, b, set), which calls set(row, c) for all `count` rows, and writes the
// coefficients. set() may be called with zeros for k beyond the last subspace. All threads of a
// thread block of launch_coefficients() must call it.
template <typename Compute>
__device__ __forceinline__ void write_all(const PairSums& p, float* coefficients,
                                          std::int32_t count, bool staged, Compute&& compute) {
  const std::int64_t tiles = coefficient_tiles(p), padded_k = padded_subspaces(p.subspaces);
  const std::int64_t first_b = blockIdx.x / tiles * kBlockImages;
  const std::int64_t first_k = blockIdx.x % tiles * kBlockSubspaces;
  const int thread = static_cast<int>(threadIdx.x);
  const int own_b = thread % kBlockImages, own_k = thread / kBlockImages;
  const std::int64_t b = first_b + own_b, k = first_k + own_k;
  const bool exists = b < p.batch && k < padded_k;
  if (!staged) {
    float* image = coefficients + b * count * padded_k + k;
    compute(k, b, exists, [&](std::int32_t row, float c) { image[row * padded_k] = c; });
    return;
  }
  auto* const rows = reinterpret_cast<float*>(dynamic_shared_memory());
  float* const own = rows + own_b * kBlockSubspaces + own_k;
  compute(k, b, exists, [&](std::int32_t row, float c) { own[row * kThreads] = c; });
  __syncthreads();
  constexpr int kPackets = kBlockSubspaces / 4;
  for (int i = thread; i < count * kThreads / 4; i += kThreads) {
    const std::int32_t row = i / (kThreads / 4);
    const std::int64_t to_b = first_b + i % (kThreads / 4) / kPackets;
    const std::int64_t to_k = first_k + i % kPackets * 4;
    if (to_b >= p.batch || to_k >= padded_k) continue;
    *reinterpret_cast<float4*>(coefficients + (to_b * count + row) * padded_k + to_k) =
        *reinterpret_cast<const float4*>(rows + 4 * i);
  }
}

// sum_d w_kd in write_all(), whose kBlockImages neighboring threads have the same subspace k.
__device__ __forceinline__ float total_weight_of(const PairSums& p, std::int64_t k) {
  if (p.masks == nullptr) return static_cast<float>(p.dim);
  float sum = 0;
  const float* mask = static_cast<const float*>(p.masks) + (k < p.subspaces ? k : 0) * p.dim;
#pragma unroll 8
  for (std::int64_t d = threadIdx.x % kBlockImages; d < p.dim; d += kBlockImages) {
    sum += mask[d] * mask[d];
  }
  return group_sum<kBlockImages>(sum);
}

// Launches a kernel that calls write_all() for `count` rows.
template <typename Params>
cudaError_t launch_coefficients(void (*kernel)(DynamicShared<kMostShared>, Params, bool),
                                const Params& params, std::int32_t count, cudaStream_t stream) {
  const PairSums& p = params.pairs;
  const std::int64_t bytes = std::int64_t{4} * kThreads * count;
  const bool staged = bytes <= kMostShared;
  const unsigned grid = blocks(blocks(p.batch, kBlockImages) * coefficient_tiles(p), 1);
  return launch_shared(kernel, grid, kThreads, staged ? static_cast<int>(bytes) : 0, stream, params,
                       staged);
}

}  // namespace mast_ext::kernels::pair_sums_cuda
