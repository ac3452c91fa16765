// The arithmetic of view_pair_cross_entropy on one image; shared by CPU and CUDA. V is a number or
// a vector of them, and Math has their exp and log1p.
//
// Where an image has no negatives, both sums are -inf. So is then their common sum: the loss is 0,
// and so are all gradients; decoupled, the loss is -inf and its gradients are finite.
#pragma once

#include "kernels/common/host_device.h"

namespace mast_ext::kernels::view_pair_math {

// Of two logits, how much larger the second is. Equal ones include infinite ones.
template <typename V>
MAST_EXT_HD V difference(V a, V b) {
  return a == b ? V{} : b - a;
}

template <typename Math, typename V>
MAST_EXT_HD V exp_of_minus_size(V x) {
  return Math::exp(x < V{} ? x : -x);
}

// The term t of an anchor: `within` its own view and `across`, the sums over rows of either view.
template <typename Math, typename V>
MAST_EXT_HD V term(bool decoupled, V within, V across, V positive) {
  const V larger = within > across ? within : across;
  const V negatives = larger + Math::log1p(exp_of_minus_size<Math>(difference(within, across)));
  const V excess = negatives - positive;
  if (decoupled) return excess;
  // log(1 + exp(excess)), without overflow and with all digits of a small one
  return (excess > V{} ? excess : V{}) + Math::log1p(exp_of_minus_size<Math>(excess));
}

// 1 / (1 + exp(-x)), with all digits of a small one.
template <typename Math, typename V>
MAST_EXT_HD V logistic(V x) {
  const V e = exp_of_minus_size<Math>(x), larger = 1 / (1 + e);
  return x < V{} ? e * larger : larger;
}

// The derivatives of t by the two sums, and by the negatives: less that by the positive.
template <typename V>
struct Slopes {
  V within, across, negatives;
};

template <typename Math, typename V>
MAST_EXT_HD Slopes<V> slopes(bool decoupled, V within, V across, V positive) {
  const V apart = difference(within, across);
  V negatives = V{} + 1;
  if (!decoupled) {
    const V larger = within > across ? within : across;
    negatives = logistic<Math>(larger + Math::log1p(exp_of_minus_size<Math>(apart)) - positive);
  }
  return {negatives * logistic<Math>(-apart), negatives * logistic<Math>(apart), negatives};
}

}  // namespace mast_ext::kernels::view_pair_math
