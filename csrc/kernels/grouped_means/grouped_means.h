// grouped_means: the weighted mean of every dimension, of sums over groups of pairs and the counts
// of those pairs. With a weight w_gd of each group in each dimension
//
//   compared_d = sum_g w_gd counts_g        means_d = sum_g w_gd sums_gd / max(compared_d, 1)
//
// Backward. With G the gradient of the means, r_d = G_d / max(compared_d, 1), and l_d = means_d, or
// 0 where compared_d is below 1:
//
//   grad w_gd = r_d (sums_gd - l_d counts_g)    grad sums_gd = r_d w_gd
//   grad counts_g = -sum_d r_d l_d w_gd
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// All tensors are of one dtype, float32 or float64, and dense.
struct GroupedMeansInputs {
  DType dtype;
  std::int64_t groups, dim;  // G, D
  const void* weights;       // [G, D]
  const void* sums;          // [G, D]
  const void* counts;        // [G]
};

struct GroupedMeans {
  GroupedMeansInputs in;
  void* means;     // [D]
  void* compared;  // [D]
};

struct GroupedMeansBackward {
  GroupedMeansInputs in;
  const void* means;     // [D]
  const void* compared;  // [D]
  const void* grad;      // [D], or [] with a stride of 0
  std::int64_t grad_stride;
  double factor;       // of the gradient
  void* grad_weights;  // [G, D], or null
  void* grad_sums;     // [G, D], or null
  void* grad_counts;   // [G], or null
};

// What the gradients of a dimension have in common: r_d and l_d.
template <typename A>
struct MeanSlope {
  A share, level;

  MAST_EXT_HD MeanSlope(const GroupedMeansBackward& p, std::int64_t d) {
    const A compared = static_cast<const A*>(p.compared)[d];
    const A grad = static_cast<const A*>(p.grad)[d * p.grad_stride] * static_cast<A>(p.factor);
    share = grad / (compared < 1 ? A{1} : compared);
    level = compared >= 1 ? static_cast<const A*>(p.means)[d] : A{0};
  }

  // The gradient of element `at` of the weights, of a group of `counts` pairs.
  MAST_EXT_HD A of_weight(const GroupedMeansBackward& p, std::int64_t at, A counts) const {
    return share * (static_cast<const A*>(p.in.sums)[at] - level * counts);
  }
};

// The CPU takes this many dimensions together.
inline constexpr std::int64_t kMeanBlock = 256;

// Blocks [begin, end) of dimensions.
void grouped_means_cpu(const GroupedMeans& p, std::int64_t begin, std::int64_t end);
// Groups [begin, end).
void grouped_means_backward_cpu(const GroupedMeansBackward& p, std::int64_t begin,
                                std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int grouped_means_cuda(const GroupedMeans& p, CUstream_st* stream);
[[gnu::weak]] int grouped_means_backward_cuda(const GroupedMeansBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
