// One thread block makes all sums: there are few numbers, and a second launch would take longer.
#include "kernels/common/launch.cuh"
#include "kernels/weighted_terms/weighted_terms.h"
#include "kernels/weighted_terms/weighted_terms_cuda.cuh"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kFillThreads = 256;

__global__ void __launch_bounds__(kThreads) sum_terms(WeightedTerms p) {
  double total = 0;
#pragma unroll  // with an index that is not known at compile time the parameters would be copied
  for (int i = 0; i < kMostTerms; ++i) {
    if (i >= p.count) break;
    const WeightedTerms::Part& part = p.parts[i];
    const double term =
        part.scale * sum_of_all<kThreads>(static_cast<const float*>(part.x), part.elements);
    if (threadIdx.x == 0) static_cast<float*>(p.terms)[i] = static_cast<float>(term);
    total += part.weight * term;
  }
  if (threadIdx.x == 0) *static_cast<float*>(p.total) = static_cast<float>(total);
}

__global__ void __launch_bounds__(kFillThreads) fill(WeightedTermsBackward p) {
  const double grad = *static_cast<const float*>(p.grad);
  const std::int64_t own = std::int64_t{blockIdx.x} * kFillThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kFillThreads;
#pragma unroll
  for (int part = 0; part < kMostTerms; ++part) {
    const float value = static_cast<float>(grad * p.parts[part].factor);
    float* const to = static_cast<float*>(p.parts[part].grad_x);
    for (std::int64_t i = own; i < p.parts[part].elements; i += step) to[i] = value;
  }
}

}  // namespace

int weighted_terms_cuda(const WeightedTerms& p, cudaStream_t stream) {
  if (p.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  return launch(sum_terms, 1, kThreads, stream, p);
}

int weighted_terms_backward_cuda(const WeightedTermsBackward& p, cudaStream_t stream) {
  if (p.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  std::int64_t most = 0;
  for (const auto& part : p.parts) most = part.elements > most ? part.elements : most;
  constexpr unsigned kMostBlocks = 1024;
  const unsigned wide = blocks(most, kFillThreads);
  return launch(fill, wide < kMostBlocks ? wide : kMostBlocks, kFillThreads, stream, p);
}

}  // namespace mast_ext::kernels
