// One launch each way: of a usual batch the numbers are so few that a launch takes longer than all
// arithmetic on them.
// A thread has an image and, of a pair of views, the anchors in one (backward) or both (forward);
// the mean is taken by one thread block per subspace, in a fixed order.
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/common/scalar_math.h"
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy.h"
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy_math.h"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kMeanThreads = 512;
constexpr int kInFlight = 4;  // images whose loads a thread of the mean has in flight

// A thread for every image; the blocks of a column of the grid share the rows [K, V, ...] of them.
dim3 grid_of(std::int64_t rows, std::int64_t images) {
  return dim3(blocks(images, kThreads), static_cast<unsigned>(rows < 65535 ? rows : 65535));
}

// What the losses of one pair of views and image depend on, of its two anchors.
struct PairLogits {
  float within[2], across[2], positive[2];
};

__device__ __forceinline__ PairLogits load_pair(const ViewPairCrossEntropy& p, std::int64_t k,
                                                std::int64_t i, std::int64_t j, std::int64_t n) {
  const float* lse = static_cast<const float*>(p.lse);
  const float* positive = static_cast<const float*>(p.positive);
  const auto at = [&](std::int64_t a, std::int64_t b) {
    return ((k * p.views + a) * p.views + b) * p.images + n;
  };
  return {.within = {lse[at(i, i)], lse[at(j, j)]},
          .across = {lse[at(i, j)], lse[at(j, i)]},
          .positive = {positive[at(i, j)], positive[at(j, i)]}};
}

// The mean of the two anchors. Of a view with itself they are the same.
template <bool Decoupled>
__device__ __forceinline__ float loss_of(const PairLogits& pair) {
  float sum = 0;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    sum += view_pair_math::term<ScalarMath>(Decoupled, pair.within[side], pair.across[side],
                                            pair.positive[side]);
  }
  return sum / 2;
}

template <bool Decoupled>
__global__ void __launch_bounds__(kThreads) write_losses(ViewPairCrossEntropy p) {
  const std::int64_t n = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= p.images) return;
  const std::int64_t pairs = p.views * p.views;
  for (std::int64_t row = blockIdx.y; row < p.subspaces * pairs; row += gridDim.y) {
    const std::int64_t k = row / pairs, i = row % pairs / p.views, j = row % p.views;
    static_cast<float*>(p.loss)[row * p.images + n] = loss_of<Decoupled>(load_pair(p, k, i, j, n));
  }
}

template <bool Decoupled>
__global__ void __launch_bounds__(kMeanThreads) write_mean(ViewPairCrossEntropy p) {
  float sum = 0;
  for (std::int64_t i = 0; i < p.views; ++i) {
    for (std::int64_t j = i + 1; j < p.views; ++j) {
      for (std::int64_t first = threadIdx.x; first < p.images; first += kInFlight * kMeanThreads) {
        PairLogits pairs[kInFlight] = {};
#pragma unroll
        for (int at = 0; at < kInFlight; ++at) {
          const std::int64_t n = first + at * kMeanThreads;
          if (n < p.images) pairs[at] = load_pair(p, blockIdx.x, i, j, n);
        }
#pragma unroll
        for (int at = 0; at < kInFlight; ++at) {
          if (first + at * kMeanThreads < p.images) sum += loss_of<Decoupled>(pairs[at]);
        }
      }
    }
  }
  sum = block_sum<kMeanThreads>(sum);
  if (threadIdx.x != 0) return;
  // Of each pair, which has two ordered ones, there is one term.
  static_cast<float*>(p.loss)[blockIdx.x] =
      2 * sum / static_cast<float>(averaged(p.views, p.images));
}

// A row is a view's anchors, whose pairs all add to the gradient of its sum within.
template <bool Decoupled>
__global__ void __launch_bounds__(kThreads) write_gradients(ViewPairCrossEntropyBackward p) {
  const std::int64_t n = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= p.images) return;
  const float* lse = static_cast<const float*>(p.lse);
  const float* positive = static_cast<const float*>(p.positive);
  const float* grad = static_cast<const float*>(p.grad_loss);
  float* grad_lse = static_cast<float*>(p.grad_lse);
  float* grad_positive = static_cast<float*>(p.grad_positive);
  for (std::int64_t row = blockIdx.y; row < p.subspaces * p.views; row += gridDim.y) {
    const std::int64_t k = row / p.views, i = row % p.views;
    const auto at = [&](std::int64_t a, std::int64_t b) {
      return ((k * p.views + a) * p.views + b) * p.images + n;
    };
    const float share = p.mean ? grad[k] / static_cast<float>(averaged(p.views, p.images)) : 0.0f;
    const float own = lse[at(i, i)];
    float within = 0;
    for (std::int64_t j = 0; j < p.views; ++j) {
      if (p.mean && j == i) {
        grad_positive[at(i, i)] = 0;
        continue;
      }
      const float weight = p.mean ? share : (grad[at(i, j)] + grad[at(j, i)]) / 2;
      const auto slopes =
          view_pair_math::slopes<ScalarMath>(Decoupled, own, lse[at(i, j)], positive[at(i, j)]);
      grad_positive[at(i, j)] = -slopes.negatives * weight;
      within += slopes.within * weight;
      if (j == i) {
        within += slopes.across * weight;
      } else {
        grad_lse[at(i, j)] = slopes.across * weight;
      }
    }
    grad_lse[at(i, i)] = within;
  }
}

}  // namespace

int view_pair_cross_entropy_cuda(const ViewPairCrossEntropy& p, cudaStream_t stream) {
  if (p.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  if (p.mean) {
    return launch(p.decoupled ? write_mean<true> : write_mean<false>, blocks(p.subspaces, 1),
                  kMeanThreads, stream, p);
  }
  return launch(p.decoupled ? write_losses<true> : write_losses<false>,
                grid_of(p.subspaces * p.views * p.views, p.images), kThreads, stream, p);
}

int view_pair_cross_entropy_backward_cuda(const ViewPairCrossEntropyBackward& p,
                                          cudaStream_t stream) {
  if (p.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  return launch(p.decoupled ? write_gradients<true> : write_gradients<false>,
                grid_of(p.subspaces * p.views, p.images), kThreads, stream, p);
}

}  // namespace mast_ext::kernels
