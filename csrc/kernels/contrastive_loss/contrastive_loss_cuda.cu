#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/common/scalar_math.h"
#include "kernels/contrastive_logsumexp/contrastive_sums.cuh"
#include "kernels/contrastive_loss/contrastive_loss.h"
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy_math.h"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = static_cast<int>(kLossThreads);

__device__ __forceinline__ float mean_of(float sum, const ContrastiveLossOfSplits& p) {
  return sum / static_cast<float>(terms_of(p.f.p.x.views, p.f.p.x.rows, p.one_sided));
}

// The sum of an anchor's terms: that of view i and image n.
template <bool Decoupled>
__device__ __forceinline__ float anchor(const ContrastiveLossOfSplits& p,
                                        const contrastive::Temperature& t, std::int64_t i,
                                        std::int64_t n) {
  const std::int64_t views = p.f.p.x.views, images = p.f.p.x.rows, count = views * views * images;
  const std::int64_t row = i * views * images + n;  // of block (i, 0)
  if (p.one_sided && i > 0) {                       // no anchor: as if its sums were over nothing
    for (std::int64_t j = 0; j < views; ++j) {
      const std::int64_t at = row + j * images;
      p.f.lse[at] = -INFINITY;
      if (p.slopes != nullptr) p.slopes[at] = p.slopes[count + at] = 0;
    }
    return 0;
  }
  const float own = contrastive::merge(p.f, t, count, row + i * images);
  float* const of_lse = p.slopes;
  float* const of_positive = p.slopes == nullptr ? nullptr : p.slopes + count;
  const float share = mean_of(1, p);
  float sum = 0, within = 0;
  for (std::int64_t j = 0; j < views; ++j) {
    if (j == i) continue;
    const std::int64_t at = row + j * images;
    const float across = contrastive::merge(p.f, t, count, at), positive = p.f.positive[at];
    sum += view_pair_math::term<ScalarMath>(Decoupled, own, across, positive);
    if (p.slopes == nullptr) continue;
    const auto slopes = view_pair_math::slopes<ScalarMath>(Decoupled, own, across, positive);
    within += slopes.within * share;
    of_lse[at] = slopes.across * share;
    of_positive[at] = -slopes.negatives * share;
  }
  if (p.slopes != nullptr) {
    of_lse[row + i * images] = within;
    of_positive[row + i * images] = 0;
  }
  return sum;
}

template <bool Decoupled>
__global__ void __launch_bounds__(kThreads) anchors(ContrastiveLossOfSplits p) {
  const std::int64_t images = p.f.p.x.rows, count = p.f.p.x.views * images;
  const contrastive::Temperature t(p.f.p);
  float sum = 0;
  for (std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; at < count;
       at += std::int64_t{gridDim.x} * kThreads) {
    sum += anchor<Decoupled>(p, t, at / images, at % images);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    *p.loss = mean_of(sum, p);
  } else {
    p.sums[blockIdx.x] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    mean_of_blocks(ContrastiveLossOfSplits p, std::int64_t count) {
  float sum = 0;
  for (std::int64_t at = threadIdx.x; at < count; at += kThreads) sum += p.sums[at];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *p.loss = mean_of(sum, p);
}

}  // namespace

int contrastive_loss_cuda(const ContrastiveLossOfSplits& p, cudaStream_t stream) {
  const std::int64_t count = loss_blocks(p.f.p.x.views * p.f.p.x.rows);
  const cudaError_t error =
      launch(p.decoupled ? anchors<true> : anchors<false>, blocks(count, 1), kThreads, stream, p);
  if (error != cudaSuccess || count == 1) return error;
  return launch(mean_of_blocks, 1, kThreads, stream, p, count);
}

}  // namespace mast_ext::kernels
