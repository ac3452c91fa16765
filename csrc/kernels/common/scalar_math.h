// The functions of one number that formulas take as a template argument, where CPU kernels pass
// VectorMath (vector_math_cpu.h) instead.
#pragma once

#include <cmath>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

struct ScalarMath {
  template <typename A>
  MAST_EXT_HD static A exp(A x) {
    return std::exp(x);
  }

  template <typename A>
  MAST_EXT_HD static A log1p(A x) {
    return std::log1p(x);
  }

  // log(exp(a) + exp(b)) without overflow.
  template <typename A>
  MAST_EXT_HD static A log_add_exp(A a, A b) {
    const A high = a > b ? a : b, difference = a - b;
    return high + std::log1p(std::exp(difference < 0 ? difference : -difference));
  }
};

}  // namespace mast_ext::kernels
