// Turns a runtime DType into a C++ type for CUDA kernels. They do not support float64, which the
// host code rejects.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

// Calls body.operator()<T>(), where T is the C++ type of `dtype`.
template <typename Body>
cudaError_t visit_cuda_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat16:
      return body.template operator()<c10::Half>();
    case DType::kBFloat16:
      return body.template operator()<c10::BFloat16>();
    case DType::kFloat32:
      return body.template operator()<float>();
    case DType::kFloat64:
      break;
  }
  return cudaErrorInvalidValue;
}

// Calls body.operator()<T, P>(), where T is the type of the embeddings and P that of their matrix
// products in memory: bfloat16 for bfloat16 embeddings, else float.
template <typename Body>
cudaError_t visit_product_dtype(DType dtype, Body&& body) {
  return visit_cuda_dtype(dtype, [&]<typename T>() {
    constexpr bool bfloat16 = std::is_same_v<T, c10::BFloat16>;
    return body.template operator()<T, std::conditional_t<bfloat16, T, float>>();
  });
}

}  // namespace mast_ext::kernels
