// The element types that kernels support, and the visitors that turn a runtime DType into a C++
// type. Of PyTorch, kernels include torch/headeronly alone: plain headers (Half and BFloat16
// arithmetic for host and device) that need nothing of libtorch at link time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace mast_ext {

enum class DType { kFloat32, kFloat64, kFloat16, kBFloat16 };

// The type in which kernels accumulate elements of type T: double for double, so that gradcheck's
// finite differences are precise enough, and float for all others.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accum_t = typename Accumulate<T>::type;

// Calls body.operator()<T>(), where T is the C++ type of `dtype`.
template <typename Body>
auto visit_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat64:
      return body.template operator()<double>();
    case DType::kFloat16:
      return body.template operator()<c10::Half>();
    case DType::kBFloat16:
      return body.template operator()<c10::BFloat16>();
    case DType::kFloat32:
      break;
  }
  return body.template operator()<float>();
}

// The same for data that are always of an accumulation type.
template <typename Body>
auto visit_accumulation(DType dtype, Body&& body) {
  if (dtype == DType::kFloat64) return body.template operator()<double>();
  return body.template operator()<float>();
}

}  // namespace mast_ext
