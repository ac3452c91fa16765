// A thread block has a row. All its threads make the same search, of sums that all of them get.
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/sigmoid_shift/sigmoid_shift.h"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 256;

// Returns to every thread the largest value of its block.
__device__ __forceinline__ float block_max(float value) {
  __shared__ float partial[kThreads / kWarpSize];
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = value;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kThreads / kWarpSize; ++i) value = fmaxf(value, partial[i]);
  __syncthreads();  // the next call writes `partial` again
  return value;
}

__global__ void __launch_bounds__(kThreads) search(SigmoidShift p) {
  const float* logits = static_cast<const float*>(p.logits) + blockIdx.x * p.dim;
  float least = logits[0], largest = logits[0];
  for (std::int64_t d = threadIdx.x; d < p.dim; d += kThreads) {
    least = fminf(least, logits[d]);
    largest = fmaxf(largest, logits[d]);
  }
  least = -block_max(-least);
  largest = block_max(largest);
  ShiftSearch<float> search(least, largest, static_cast<const float*>(p.mean)[blockIdx.x]);
  const float count = static_cast<float>(p.dim);
  for (int i = 0; i < kShiftSteps; ++i) {
    const float before = search.shift;
    float values = 0, slopes = 0;
    for (std::int64_t d = threadIdx.x; d < p.dim; d += kThreads) {
      const float value = 1 / (1 + expf(search.shift - logits[d]));
      values += value;
      slopes += value * (1 - value);
    }
    values = block_sum<kThreads>(values);
    slopes = block_sum<kThreads>(slopes);
    search.step(values / count, slopes / count);
    if (search.shift == before) break;  // the same for the whole block
  }
  if (threadIdx.x == 0) static_cast<float*>(p.shift)[blockIdx.x] = search.shift;
}

}  // namespace

int sigmoid_shift_cuda(const SigmoidShift& p, cudaStream_t stream) {
  return launch(search, blocks(p.rows, 1), kThreads, stream, p);
}

}  // namespace mast_ext::kernels
