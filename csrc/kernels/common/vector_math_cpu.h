// The functions of a vector that formulas take as a template argument, where CUDA kernels pass
// ScalarMath (scalar_math.h) instead.
#pragma once

#include "kernels/common/simd.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

struct VectorMath {
  template <typename V>
  static V exp(V x) {
    return MAST_EXT_ISA::exp(x);
  }
  template <typename V>
  static V log1p(V u) {
    return log1p_unit(u);
  }
  template <typename V>
  static V exp_of_gap(V gap) {
    return exp(gap > 0 ? -gap : gap);
  }
  template <typename V>
  static V divide(V x, V y) {
    return x / y;
  }
};

}  // namespace mast_ext::kernels::MAST_EXT_ISA
