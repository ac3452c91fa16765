// Element types the kernels speak, and the one place where a runtime dtype becomes a C++ type.
// No libtorch here: torch/headeronly is a set of plain headers (Half and BFloat16 arithmetic for
// host and device) that links nothing.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace mast_ext {

enum class DType { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Sums are carried in float; double stays double so that gradcheck can see 1e-6.
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

// visit_dtype(p.dtype, [&]<typename T>() { ... });
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

// The same for what only comes in an accumulation type.
template <typename Body>
auto visit_accumulation(DType dtype, Body&& body) {
  if (dtype == DType::kFloat64) return body.template operator()<double>();
  return body.template operator()<float>();
}

}  // namespace mast_ext
