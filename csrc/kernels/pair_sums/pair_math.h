// What the subspace operators sum over the embedding: a value for every pair of elements, and its
// derivatives. The type V is a number (CUDA) or a vector (CPU).
//
// Every operator computes  sums[row, k] = sum_d w_kd * value(a_d, b_d)  and then only arithmetic on
// the sums. Its backward turns the gradient of the sums into a coefficient per (row, k), and
// `add_grads` receives  c_d = sum_k coefficient_k * w_kd. A pair of a view with itself has simpler
// formulas of its own, in which terms like z - z are 0 but keep NaN and infinity visible.
#pragma once

#include <type_traits>
#include <utility>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// The element type of a vector, or the type of a number itself.
template <typename V>
struct ScalarOf {
  using type = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;
};
template <>
struct ScalarOf<float> {
  using type = float;
};
template <>
struct ScalarOf<double> {
  using type = double;
};
template <typename V>
using scalar_of = typename ScalarOf<V>::type;

// An element of one view: its embedding and, for the likelihood, its log-variance.
template <typename V>
struct Element {
  V z, log_var;
};

struct Product {
  static constexpr bool kHasVariance = false;

  template <typename Math, typename V>
  MAST_EXT_HD static V value(const Element<V>& a, const Element<V>& b) {
    return a.z * b.z;
  }
  template <typename V>
  MAST_EXT_HD static V self_value(const Element<V>& a) {
    return a.z * a.z;
  }
  // The derivative of the value with respect to a. For a view with itself it counts twice.
  template <typename V>
  MAST_EXT_HD static V derivative(V, V b) {
    return b;
  }
  template <typename Math, typename V>
  MAST_EXT_HD static void add_grads(V c, const Element<V>& a, const Element<V>& b,
                                    Element<V>& grad_a, Element<V>& grad_b) {
    grad_a.z += c * b.z;
    grad_b.z += c * a.z;
  }
  template <typename V>
  MAST_EXT_HD static void add_self_grad(V c, const Element<V>& a, Element<V>& grad_a) {
    grad_a.z += c * a.z * 2;
  }
};

struct SquaredDifference {
  static constexpr bool kHasVariance = false;

  template <typename Math, typename V>
  MAST_EXT_HD static V value(const Element<V>& a, const Element<V>& b) {
    const V difference = a.z - b.z;
    return difference * difference;
  }
  template <typename V>
  MAST_EXT_HD static V self_value(const Element<V>& a) {
    return a.z - a.z;
  }
  template <typename V>
  MAST_EXT_HD static V derivative(V a, V b) {
    return (a - b) * 2;
  }
  template <typename Math, typename V>
  MAST_EXT_HD static void add_grads(V c, const Element<V>& a, const Element<V>& b,
                                    Element<V>& grad_a, Element<V>& grad_b) {
    const V grad_difference = c * (a.z - b.z) * 2;
    grad_a.z += grad_difference;
    grad_b.z -= grad_difference;
  }
  template <typename V>
  MAST_EXT_HD static void add_self_grad(V c, const Element<V>& a, Element<V>& grad_a) {
    grad_a.z += c * (a.z - a.z);
  }
};

// (a - b)^2 / s + log s  with  s = exp(log_var_a) + exp(log_var_b) = exp(high) (1 + u). Neither s
// nor 1 / s is computed itself, because they overflow where the result does not.
struct Likelihood {
  static constexpr bool kHasVariance = true;

  // exp(-high / 2), finite: times a difference of 0 it is 0.
  template <typename Math, typename V>
  MAST_EXT_HD static V root_precision(V high) {
    using A = scalar_of<V>;
    constexpr A kLowest = sizeof(A) == sizeof(double) ? -1400 : -170;
    const V lowest = kLowest - V{};  // as a V
    return Math::exp((high > kLowest ? high : lowest) * static_cast<A>(-0.5));
  }

  template <typename Math, typename V>
  MAST_EXT_HD static V value(const Element<V>& a, const Element<V>& b) {
    const V difference = a.z - b.z, gap = a.log_var - b.log_var;
    const V high = gap > 0 ? a.log_var : b.log_var;
    const V u = Math::exp_of_gap(gap);
    const V scaled = difference * root_precision<Math>(high);
    return Math::divide(scaled * scaled, 1 + u) + (high + Math::log1p(u));
  }
  template <typename V>
  MAST_EXT_HD static V self_value(const Element<V>& a) {
    constexpr double kLog2 = 0.693147180559945309417;
    return (a.z - a.z) + (a.log_var + static_cast<scalar_of<V>>(kLog2));
  }
  template <typename Math, typename V>
  MAST_EXT_HD static void add_grads(V c, const Element<V>& a, const Element<V>& b,
                                    Element<V>& grad_a, Element<V>& grad_b) {
    const V difference = a.z - b.z, gap = a.log_var - b.log_var;
    const V high = gap > 0 ? a.log_var : b.log_var;
    const V u = Math::exp_of_gap(gap);
    // exp(log_var) / s of the two views
    const V larger = Math::divide(V{} + 1, 1 + u), smaller = u * larger;
    const V root = root_precision<Math>(high), scaled = difference * root;
    const V grad_difference = c * scaled * (root * larger) * 2;
    const V grad_log_s = c * (1 - scaled * scaled * larger);
    grad_a.z += grad_difference;
    grad_b.z -= grad_difference;
    grad_a.log_var += grad_log_s * (gap > 0 ? larger : smaller);
    grad_b.log_var += grad_log_s * (gap > 0 ? smaller : larger);
  }
  template <typename V>
  MAST_EXT_HD static void add_self_grad(V c, const Element<V>& a, Element<V>& grad_a) {
    const V nothing = c * (a.z - a.z);
    grad_a.z += nothing;
    grad_a.log_var += c + nothing;
  }
};

}  // namespace mast_ext::kernels
