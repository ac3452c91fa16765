// vicreg_terms: the three terms of VICReg of two views x and y [N, D], and their weighted sum.
//
//   terms_0 = scale_0 * sum (x - y)^2, or scale_0 times the sum of given numbers; with groups of
//             rows scale_0 * sum_d of the means of grouped_means, of the sums and counts of
//             grouped_squared_difference
//   terms_1 = scale_1 * (variance(x) + variance(y))        both as in variance_covariance
//   terms_2 = scale_2 * (covariance(x) + covariance(y))
//   total   = sum_i weight_i * terms_i
//
// Backward. With G the gradient of the total and f_i = scale_i * weight_i:
//
//   grad x = 2 G f_0 (x - y) + that of variance_covariance for G f_1 and G f_2
//   grad y = 2 G f_0 (y - x) + the same of y
//
// With groups, row n of x - y is multiplied by w_gd / max(compared_d, 1) of its group, too, and
// grad w_gd is that of grouped_means for a gradient G f_0 of every mean.
//
// The passes over columns and the matrix products are those of variance_covariance.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/grouped_means/grouped_means.h"
#include "kernels/variance_covariance/variance_covariance.h"

namespace mast_ext::kernels {

// On a GPU, neither products nor weights of groups of at most this many elements have a launch of
// their own, to sum rows and to take means: the one thread block that finishes reads them in less
// time than a launch takes.
inline constexpr std::int64_t kSmallProduct = 1 << 15;

struct VicregTerms {
  VarianceCovariance batch;  // of both views, without results; its rows are computed, or null
  // [numbers], in the accumulation type; null (CUDA only): the means of the groups, made here
  const void* invariance;
  std::int64_t numbers;
  GroupedMeans groups;
  double scales[3], weights[3];
  void* terms;  // [3]
  void* total;  // []
};

struct VicregTermsBackward {
  VarianceCovarianceBackward batch;  // both gradients are that of the total
  Columns z;                         // x, y
  const void* grad;                  // []
  double difference_factor;          // 2 f_0, or 0 where the numbers were given
  void* grad_invariance;             // [numbers], or null
  std::int64_t numbers;
  double invariance_factor;    // f_0
  const std::int64_t* group;   // [N], of every row; or null
  GroupedMeansBackward means;  // of the groups; its grad_sums are work space of the CPU alone
};

// Adds to rows [begin, end) of the gradient of x what their differences pull, and subtracts it of
// that of y.
void vicreg_terms_differences_cpu(const VicregTermsBackward& p, std::int64_t begin,
                                  std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted. The
// last two are those of variance_covariance, and write the gradient of the numbers, or of the
// groups' weights. Of the differences, the first writes what the product is to be added to, the
// second adds them.
[[gnu::weak]] int vicreg_terms_finish_cuda(const VicregTerms& p, CUstream_st* stream);
[[gnu::weak]] int vicreg_terms_matrix_cuda(const VicregTermsBackward& p, CUstream_st* stream);
[[gnu::weak]] int vicreg_terms_combine_cuda(const VicregTermsBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
