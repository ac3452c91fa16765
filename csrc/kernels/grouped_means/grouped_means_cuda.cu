// A thread for every dimension, which walks the groups: there are few of both. What sums over the
// dimensions, the gradient of the counts, is a thread block for every group.
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/grouped_means/grouped_means.h"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 64;  // of a block: there are few dimensions
constexpr int kCountThreads = 256;
constexpr int kParts = 4;  // sums of a thread that run side by side

__global__ void __launch_bounds__(kThreads) divide(GroupedMeans p) {
  const std::int64_t d = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, dim = p.in.dim;
  if (d >= dim) return;
  const float* w = static_cast<const float*>(p.in.weights) + d;
  const float* sums = static_cast<const float*>(p.in.sums) + d;
  const float* counts = static_cast<const float*>(p.in.counts);
  float totals[kParts] = {}, compared[kParts] = {};
  for (std::int64_t first = 0; first < p.in.groups; first += kParts) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const std::int64_t g = first + i;
      if (g >= p.in.groups) break;
      const float weight = w[g * dim];
      totals[i] += weight * sums[g * dim];
      compared[i] += weight * counts[g];
    }
  }
  const float pairs = (compared[0] + compared[1]) + (compared[2] + compared[3]);
  const float total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  static_cast<float*>(p.compared)[d] = pairs;
  static_cast<float*>(p.means)[d] = total / (pairs < 1 ? 1 : pairs);
}

__global__ void __launch_bounds__(kThreads) write_grads(GroupedMeansBackward p) {
  const std::int64_t d = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, g = blockIdx.y;
  if (d >= p.in.dim) return;
  const std::int64_t at = g * p.in.dim + d;
  const MeanSlope<float> slope(p, d);
  if (p.grad_weights != nullptr) {
    const float pairs = static_cast<const float*>(p.in.counts)[g];
    static_cast<float*>(p.grad_weights)[at] =
        slope.share * (static_cast<const float*>(p.in.sums)[at] - slope.level * pairs);
  }
  if (p.grad_sums != nullptr) {
    static_cast<float*>(p.grad_sums)[at] =
        slope.share * static_cast<const float*>(p.in.weights)[at];
  }
}

__global__ void __launch_bounds__(kCountThreads) write_grad_counts(GroupedMeansBackward p) {
  const float* w = static_cast<const float*>(p.in.weights) + blockIdx.x * p.in.dim;
  float sum = 0;
  for (std::int64_t d = threadIdx.x; d < p.in.dim; d += kCountThreads) {
    const MeanSlope<float> slope(p, d);
    sum -= slope.share * slope.level * w[d];
  }
  sum = block_sum<kCountThreads>(sum);
  if (threadIdx.x == 0) static_cast<float*>(p.grad_counts)[blockIdx.x] = sum;
}

}  // namespace

int grouped_means_cuda(const GroupedMeans& p, cudaStream_t stream) {
  if (p.in.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  return launch(divide, blocks(p.in.dim, kThreads), kThreads, stream, p);
}

int grouped_means_backward_cuda(const GroupedMeansBackward& p, cudaStream_t stream) {
  if (p.in.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  if (p.grad_weights != nullptr || p.grad_sums != nullptr) {
    const dim3 grid(blocks(p.in.dim, kThreads), blocks(p.in.groups, 1));
    const cudaError_t error = launch(write_grads, grid, kThreads, stream, p);
    if (error != cudaSuccess) return error;
  }
  if (p.grad_counts == nullptr) return cudaSuccess;
  return launch(write_grad_counts, blocks(p.in.groups, 1), kCountThreads, stream, p);
}

}  // namespace mast_ext::kernels
