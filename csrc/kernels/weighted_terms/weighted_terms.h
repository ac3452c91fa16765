// weighted_terms: the parts of a loss, each a sum of a few numbers, and their weighted sum
//
//   terms_i = scale_i * sum_j x_ij        total = sum_i weight_i * terms_i
//
// Backward. With G the gradient of the total, grad x_ij = G * scale_i * weight_i.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

inline constexpr int kMostTerms = 3;

// All tensors are of one dtype, float32 or float64, and dense.
struct WeightedTerms {
  DType dtype;
  int count;  // of terms; those beyond it have no elements
  struct Part {
    const void* x;
    std::int64_t elements;
    double scale, weight;
  } parts[kMostTerms];
  void* terms;  // [count]
  void* total;  // []
};

struct WeightedTermsBackward {
  DType dtype;
  const void* grad;  // []
  struct Part {
    void* grad_x;
    std::int64_t elements;  // 0 where no gradient is wanted
    double factor;
  } parts[kMostTerms];
};

void weighted_terms_cpu(const WeightedTerms& p);
void weighted_terms_backward_cpu(const WeightedTermsBackward& p);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int weighted_terms_cuda(const WeightedTerms& p, CUstream_st* stream);
[[gnu::weak]] int weighted_terms_backward_cuda(const WeightedTermsBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
