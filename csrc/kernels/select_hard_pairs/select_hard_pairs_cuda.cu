// One thread per image, so that neighboring threads read neighboring losses.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/select_hard_pairs/select_hard_pairs.h"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads) select(SelectHardPairs p) {
  const std::int64_t b = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (b >= p.batch) return;
  const auto* losses = static_cast<const T*>(p.pair_losses) + b;
  const std::int32_t views = p.candidates.views;
  HardestPair<float> hardest;
  for (std::int32_t i = 0; i < views; ++i) {
#pragma unroll 4
    for (std::int32_t j = i + 1; j < views; ++j) {
      const auto loss_ij = static_cast<float>(losses[i * p.row_stride + j * p.pair_stride]);
      const auto loss_ji = static_cast<float>(losses[j * p.row_stride + i * p.pair_stride]);
      if (p.candidates.has(i, j)) hardest.offer(i, j, (loss_ij + loss_ji) / 2);
    }
  }
  hardest.write(p.index, p.score, p.batch, b);
}

}  // namespace

int select_hard_pairs_cuda(const SelectHardPairs& p, cudaStream_t stream) {
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    return launch(select<T>, blocks(p.batch, kThreads), kThreads, stream, p);
  });
}

}  // namespace mast_ext::kernels
