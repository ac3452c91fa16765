// sigmoid_shift: for every row of logits [K, D] the shift with which their sigmoids have a given
// mean:   mean_d sigmoid(logits_kd - shift_k) = mean_k
//
// The mean falls with the shift. As a sigmoid of numbers from the row's least to its largest, it
// reaches mean_k between (least - logit(mean_k)) and (largest - logit(mean_k)). Newton's method,
// which this interval keeps from leaving, finds where.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace mast_ext::kernels {

struct SigmoidShift {
  DType dtype;         // float32 or float64, of all tensors
  std::int64_t rows;   // K
  std::int64_t dim;    // D
  const void* logits;  // [K, D]
  const void* mean;    // [K], in (0, 1)
  void* shift;         // [K]
};

// At most. Halving alone would need 24, Newton's method needs about six.
inline constexpr int kShiftSteps = 24;

// The search of a row. The caller computes the mean of the sigmoids at `shift`, and of their
// slopes.
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
    (excess > 0 ? low : high) = shift;
    const A next = shift + excess / slope;
    shift = next >= low && next <= high ? next : low + (high - low) / 2;
  }
};

// Rows [begin, end).
void sigmoid_shift_cpu(const SigmoidShift& p, std::int64_t begin, std::int64_t end);
// Queues on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
int sigmoid_shift_cuda(const SigmoidShift& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
