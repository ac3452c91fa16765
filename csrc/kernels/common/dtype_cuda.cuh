// A runtime dtype becomes a C++ type, for CUDA: without float64, which the host refuses.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

// body.operator()<T>()
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

// body.operator()<T, P>() with T the embeddings' type and P that of matrix products of them.
template <typename Body>
cudaError_t visit_product_dtype(DType dtype, Body&& body) {
  return visit_cuda_dtype(dtype, [&]<typename T>() {
    constexpr bool bfloat16 = std::is_same_v<T, c10::BFloat16>;
    return body.template operator()<T, std::conditional_t<bfloat16, T, float>>();
  });
}

}  // namespace mast_ext::kernels
