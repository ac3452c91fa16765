// What sums over a mask is one thread block for each; what is by dimension, one thread for each.
#include "kernels/budgeted_masks/budgeted_masks.h"
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kDimThreads = 64;  // of a block: there are few dimensions
constexpr int kGradThreads = 512;

// Returns to every thread the largest value of its block of `Threads` threads.
template <int Threads>
__device__ __forceinline__ float block_max(float value) {
  __shared__ float partial[Threads / kWarpSize];
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = value;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Threads / kWarpSize; ++i) value = fmaxf(value, partial[i]);
  __syncthreads();  // the next call writes `partial` again
  return value;
}

// All threads of a block make the same search, of sums that all of them get. A thread keeps its
// first kKept logits in registers, since every step of the search reads all of them.
template <int Threads, int kKept>
__global__ void __launch_bounds__(Threads) write_shifted(BudgetedMasks p) {
  const float* logits = static_cast<const float*>(p.logits) + blockIdx.x * p.dim;
  float* shifted = static_cast<float*>(p.shifted) + blockIdx.x * p.dim;
  const float sharpness = static_cast<float>(p.sharpness);
  const std::int64_t thread = threadIdx.x, first_read = thread + kKept * Threads;
  float kept[kKept], least = INFINITY, largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const std::int64_t d = thread + i * Threads;
    const bool inside = d < p.dim;
    const float scaled = inside ? sharpness * logits[d] : 0;
    least = fminf(least, inside ? scaled : INFINITY);
    largest = fmaxf(largest, inside ? scaled : -INFINITY);
    kept[i] = inside ? scaled : -INFINITY;  // whose sigmoid is 0
  }
  for (std::int64_t d = first_read; d < p.dim; d += Threads) {
    const float scaled = sharpness * logits[d];
    shifted[d] = scaled;  // read again by this thread alone
    least = fminf(least, scaled);
    largest = fmaxf(largest, scaled);
  }
  least = -block_max<Threads>(-least);
  largest = block_max<Threads>(largest);
  ShiftSearch<float> search(least, largest, static_cast<const float*>(p.mean)[blockIdx.x]);
  const float count = static_cast<float>(p.dim);
  for (int i = 0; i < kShiftSteps; ++i) {
    const float before = search.shift;
    float sums[2] = {};  // of the sigmoids and of their slopes
    const auto add = [&](float scaled) {
      const float value = sigmoid(scaled - before);
      sums[0] += value;
      sums[1] += value * (1 - value);
    };
#pragma unroll
    for (const float scaled : kept) add(scaled);
    for (std::int64_t d = first_read; d < p.dim; d += Threads) add(shifted[d]);
    block_sums<Threads>(sums);
    search.step(sums[0] / count, sums[1] / count);
    if (search.shift == before) break;  // the same for the whole block
  }
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const std::int64_t d = thread + i * Threads;
    if (d < p.dim) shifted[d] = kept[i] - search.shift;
  }
  for (std::int64_t d = first_read; d < p.dim; d += Threads) shifted[d] -= search.shift;
}

// log(sigmoid(u)) without overflow.
__device__ __forceinline__ float log_sigmoid(float u) {
  return fminf(u, 0) - log1pf(expf(-fabsf(u)));
}

__global__ void __launch_bounds__(kDimThreads) write_subsets(BudgetedMasks p) {
  const std::int64_t d = std::int64_t{blockIdx.x} * kDimThreads + threadIdx.x;
  if (d >= p.dim) return;
  const float* u = static_cast<const float*>(p.shifted) + d;
  float* w = static_cast<float*>(p.weights) + d;
  w[0] = 1;
  for (std::int64_t f = 0, subsets = 1; f < p.masks; ++f, subsets *= 2) {
    const float square = expf(2 * log_sigmoid(u[f * p.dim]));
    for (std::int64_t g = 0; g < subsets; ++g) w[(subsets + g) * p.dim] = w[g * p.dim] * square;
  }
}

// A thread block has a mask: they are few, but so are the numbers of each.
__global__ void __launch_bounds__(kGradThreads) write_logit_grads(BudgetedMasksBackward p) {
  const int f = static_cast<int>(blockIdx.x), subsets = 1 << (p.masks - 1);
  const float* u = static_cast<const float*>(p.shifted) + f * p.dim;
  const float* w = static_cast<const float*>(p.weights);
  const float* grad = static_cast<const float*>(p.grad_weights);
  float* out = static_cast<float*>(p.grad_logits) + f * p.dim;
  float sums[2] = {};  // of the slopes and of the gradients of u
  for (std::int64_t d = threadIdx.x; d < p.dim; d += kGradThreads) {
    float sum = 0;
#pragma unroll 4
    for (int i = 0; i < subsets; ++i) {  // of those with mask f: g is i with a 1 put in at bit f
      const int low = i & ((1 << f) - 1), g = (i - low) * 2 + (1 << f) + low;
      sum += grad[g * p.dim + d] * w[g * p.dim + d];
    }
    const float rest = sigmoid(-u[d]);  // 1 - sigmoid(u) would be 0 for a large u
    out[d] = 2 * rest * sum;            // read again by this thread alone
    sums[0] += sigmoid(u[d]) * rest;
    sums[1] += out[d];
  }
  block_sums<kGradThreads>(sums);
  const float sharpness = static_cast<float>(p.sharpness);
  const float share = sums[0] > 0 ? sums[1] / sums[0] : 0;
  for (std::int64_t d = threadIdx.x; d < p.dim; d += kGradThreads) {
    out[d] = sharpness * (out[d] - sigmoid(u[d]) * sigmoid(-u[d]) * share);
  }
}

}  // namespace

int budgeted_masks_cuda(const BudgetedMasks& p, cudaStream_t stream) {
  if (p.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  const unsigned grid = blocks(p.masks, 1);
  const cudaError_t error =
      p.dim <= kThreads       ? launch(write_shifted<kThreads, 1>, grid, kThreads, stream, p)
      : p.dim <= 8 * kThreads ? launch(write_shifted<kThreads, 8>, grid, kThreads, stream, p)
                              : launch(write_shifted<1024, 8>, grid, 1024, stream, p);
  if (error != cudaSuccess) return error;
  return launch(write_subsets, blocks(p.dim, kDimThreads), kDimThreads, stream, p);
}

int budgeted_masks_backward_cuda(const BudgetedMasksBackward& p, cudaStream_t stream) {
  if (p.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  return launch(write_logit_grads, blocks(p.masks, 1), kGradThreads, stream, p);
}

}  // namespace mast_ext::kernels
