// A thread for every dimension, which walks the groups: there are few of both. What sums over the
// dimensions, the gradient of the counts, is a thread block for every group.
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/grouped_means/grouped_means_cuda.cuh"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 64;  // of a block: there are few dimensions
constexpr int kCountThreads = 256;

__global__ void __launch_bounds__(kThreads) divide(GroupedMeans p) {
  const std::int64_t d = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (d < p.in.dim) write_mean(p, d);
}

__global__ void __launch_bounds__(kThreads) write_grads(GroupedMeansBackward p) {
  const std::int64_t d = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, g = blockIdx.y;
  if (d >= p.in.dim) return;
  const std::int64_t at = g * p.in.dim + d;
  const MeanSlope<float> slope(p, d);
  if (p.grad_weights != nullptr) {
    const float pairs = static_cast<const float*>(p.in.counts)[g];
    static_cast<float*>(p.grad_weights)[at] = slope.of_weight(p, at, pairs);
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
