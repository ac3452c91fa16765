// budgeted_masks: F masks of D dimensions, each with a given mean, and for each of the 2^F subsets
// of them the product of its masks' squares. Bit f of g says whether mask f belongs to subset g.
//
//   m_fd = sigmoid(u_fd)   u_fd = sharpness * logits_fd - shift_f   so that mean_d m_fd = mean_f
//   w_gd = prod_{f in g} m_fd^2
//
// The mean falls with the shift. As a mean of sigmoids it reaches mean_f at a shift between
// (least - logit(mean_f)) and (largest - logit(mean_f)) of the scaled logits; Newton's method,
// which is kept within that interval, finds where.
//
// Backward, with H the gradient of w and the slopes s_fd = m_fd (1 - m_fd):
//
//   grad u_fd      = 2 (1 - m_fd) sum_{g with f} H_gd w_gd
//   grad logits_fd = sharpness (grad u_fd - s_fd / sum_e s_fe * sum_e grad u_fe)
//
// where the last term is the shift's own derivative, by the implicit function theorem.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

inline constexpr int kMostMasks = 8;

// All tensors are of one dtype, float32 or float64, and dense.
struct BudgetedMasks {
  DType dtype;
  std::int64_t masks;  // F
  std::int64_t dim;    // D
  const void* logits;  // [F, D]
  const void* mean;    // [F], in (0, 1)
  double sharpness;
  void* shifted;  // [F, D]  u
  void* weights;  // [2^F, D]
};

struct BudgetedMasksBackward {
  DType dtype;
  std::int64_t masks, dim;
  const void* shifted;       // [F, D]
  const void* weights;       // [2^F, D]
  const void* grad_weights;  // [2^F, D]
  double sharpness;
  void* grad_shifted;  // [F, D], work space; CPU only
  void* grad_logits;   // [F, D]
};

// At most. Halving alone would need 24, Newton's method needs about six.
inline constexpr int kShiftSteps = 24;

// The search of a mask's shift. The caller computes the means of the sigmoids and of their slopes
// at `shift`.
template <typename A>
struct ShiftSearch {
  A low, high, mean, shift;

  MAST_EXT_HD ShiftSearch(A least, A largest, A mean_) : mean(mean_) {
    const A logit = std::log(mean / (1 - mean));
    low = least - logit;
    high = largest - logit;
    shift = low + (high - low) / 2;
  }

  MAST_EXT_HD void step(A found, A slope) {
    const A excess = found - mean;
    if (excess != excess) {  // a logit is NaN, and so is the shift
      shift = excess;
      return;
    }
    (excess > 0 ? low : high) = shift;
    const A next = shift + excess / slope;
    shift = next >= low && next <= high ? next : low + (high - low) / 2;
  }
};

template <typename A>
MAST_EXT_HD A sigmoid(A u) {
  return 1 / (1 + std::exp(-u));
}

// The CPU takes this many dimensions together.
inline constexpr std::int64_t kMaskBlock = 64;

// Masks [begin, end), then blocks [begin, end) of dimensions.
void budgeted_masks_shift_cpu(const BudgetedMasks& p, std::int64_t begin, std::int64_t end);
void budgeted_masks_subsets_cpu(const BudgetedMasks& p, std::int64_t begin, std::int64_t end);
// Blocks [begin, end) of dimensions, then masks [begin, end).
void budgeted_masks_backward_subsets_cpu(const BudgetedMasksBackward& p, std::int64_t begin,
                                         std::int64_t end);
void budgeted_masks_backward_shift_cpu(const BudgetedMasksBackward& p, std::int64_t begin,
                                       std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int budgeted_masks_cuda(const BudgetedMasks& p, CUstream_st* stream);
[[gnu::weak]] int budgeted_masks_backward_cuda(const BudgetedMasksBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
