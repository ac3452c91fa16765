// Formulas of one element of G, or of a vector of them. V is a number, or a vector of the CPU's.
#pragma once

#include "kernels/common/host_device.h"
#include "kernels/gram_difference/gram_difference.h"

namespace mast_ext::kernels::gram_math {

// An element of G, and what it is to the gradients of s and of t.
template <typename V>
struct Element {
  V difference, student, teacher;
};

// From x - y and y, which is not read if nothing is removed. A NaN is not negative, and stays.
template <RemoveNegative remove, typename V>
MAST_EXT_HD Element<V> element(V difference, V y) {
  if constexpr (remove == RemoveNegative::kNone) {
    return {difference, difference, difference};
  } else {
    const V zero{}, x = y + difference;
    const V over_nothing = x < zero ? zero : x;  // where y is removed
    if constexpr (remove == RemoveNegative::kBoth) {
      const V left = y < zero ? over_nothing : (x < zero ? -y : difference);
      return {left, x < zero ? zero : left, y < zero ? zero : left};
    } else {
      const V left = y < zero ? over_nothing : difference;
      return {left, left, y < zero ? zero : left};
    }
  }
}

}  // namespace mast_ext::kernels::gram_math
