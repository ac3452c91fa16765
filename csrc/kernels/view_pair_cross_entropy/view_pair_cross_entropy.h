// view_pair_cross_entropy: the contrastive loss of every pair of views of an image, from the sums
// of contrastive_logsumexp over other images' rows (those without the positive).
//
//   r_ijn    = log(exp(lse_iin) + exp(lse_ijn))                  the negatives, of both views
//   t_ijn    = log(exp(r_ijn) + exp(positive_ijn)) - positive_ijn    or, decoupled, r - positive
//   loss_ijn = (t_ijn + t_jin) / 2                               the mean of the pair's two anchors
//
// or the mean of the losses over the pairs of different views and the images. Backward, with
// G_ijn = (grad_ijn + grad_jin) / 2 and s the derivative of t by r:
//
//   grad positive_ijn = -s_ijn G_ijn
//   grad lse_ijn      = s_ijn G_ijn exp(lse_ijn - r_ijn), to lse_ii of all j: exp(lse_iin - r_ijn)
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// All tensors are of one dtype, float32 or float64, and dense.
struct ViewPairCrossEntropy {
  DType dtype;
  bool decoupled, mean;
  std::int64_t subspaces, views, images;  // K, V, N
  const void* lse;                        // [K, V, V, N]
  const void* positive;                   // [K, V, V, N]
  void* sums;  // [K, blocks of images], work space; on the CPU for the mean only
  void* loss;  // [K, V, V, N], or [K] for the mean
};

struct ViewPairCrossEntropyBackward {
  DType dtype;
  bool decoupled, mean;
  std::int64_t subspaces, views, images;
  const void* grad_loss;  // like `loss`
  const void* lse;
  const void* positive;
  void* grad_lse;       // [K, V, V, N]
  void* grad_positive;  // [K, V, V, N]
};

// The number of losses that a mean is taken of.
MAST_EXT_HD std::int64_t averaged(std::int64_t views, std::int64_t images) {
  return views * (views - 1) * images;
}

// The CPU takes this many images together.
inline constexpr std::int64_t kPairBlock = 512;
inline std::int64_t pair_blocks(std::int64_t images) {
  return (images + kPairBlock - 1) / kPairBlock;
}

// Blocks [begin, end) of images, K times as many as there are; then, for the mean, its end.
void view_pair_cross_entropy_cpu(const ViewPairCrossEntropy& p, std::int64_t begin,
                                 std::int64_t end);
void view_pair_cross_entropy_mean_cpu(const ViewPairCrossEntropy& p);
void view_pair_cross_entropy_backward_cpu(const ViewPairCrossEntropyBackward& p, std::int64_t begin,
                                          std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
[[gnu::weak]] int view_pair_cross_entropy_cuda(const ViewPairCrossEntropy& p, CUstream_st* stream);
[[gnu::weak]] int view_pair_cross_entropy_backward_cuda(const ViewPairCrossEntropyBackward& p,
                                                        CUstream_st* stream);

}  // namespace mast_ext::kernels
