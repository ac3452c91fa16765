// contrastive_loss: the mean contrastive loss of V views of N images, over all pairs of different
// views or, one-sided, over those whose anchor is in view 0. A term is that of
// view_pair_cross_entropy, made from the sums of contrastive_logsumexp, without the positive, and
// the positive's logit. The slopes are the derivatives of the mean by these two.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"
#include "kernels/contrastive_logsumexp/contrastive_logsumexp.h"

namespace mast_ext::kernels {

// The number of terms that the mean is taken of.
MAST_EXT_HD std::int64_t terms_of(std::int64_t views, std::int64_t images, bool one_sided) {
  return (one_sided ? 1 : views) * (views - 1) * images;
}

// ---- CPU: a block of images at a time; tensors are dense and of one dtype, float32 or float64

struct ContrastiveLoss {
  DType dtype;
  bool decoupled, one_sided;
  std::int64_t views, images;  // V, N
  const void* lse;             // [V, V, N]
  const void* positive;        // [V, V, N]
  void* sums;                  // [blocks of images], work space
  void* loss;                  // scalar
  void* slopes;                // [2, V, V, N], of lse and of positive; or null
};

// Blocks [begin, end) of images, of which there are pair_blocks(images); then the mean.
void contrastive_loss_cpu(const ContrastiveLoss& p, std::int64_t begin, std::int64_t end);
void contrastive_loss_mean_cpu(const ContrastiveLoss& p);

// ---- CUDA

struct ContrastiveLossOfSplits {
  ContrastiveForward f;  // after contrastive_forward_cuda(); the splits' sums are merged here
  bool decoupled, one_sided;
  float* sums;    // [loss_blocks(V * N)], work space
  float* loss;    // scalar
  float* slopes;  // [2, V, V, N], or null
};

// A thread takes the anchor of one view and image. All of a small batch are in one thread block,
// which takes the mean as well: to launch another kernel takes longer.
inline constexpr std::int64_t kLossThreads = 512, kOneBlock = 2 * kLossThreads;
inline std::int64_t loss_blocks(std::int64_t anchors) {
  return anchors <= kOneBlock ? 1 : (anchors + kLossThreads - 1) / kLossThreads;
}

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int contrastive_loss_cuda(const ContrastiveLossOfSplits& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
