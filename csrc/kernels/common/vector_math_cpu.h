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
};

}  // namespace mast_ext::kernels::MAST_EXT_ISA
