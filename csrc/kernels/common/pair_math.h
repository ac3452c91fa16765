// What the subspace operators sum over the embedding: a value for every pair of elements, and its
// derivatives. Written once for scalars (CUDA) and for vectors (CPU): V is either.
//
// Every operator is  sums[row, k] = sum_d w_kd * value(a_d, b_d)  followed by arithmetic on the
// sums; its backward turns the gradient of the sums into a coefficient per (row, k), and `add_grad`
// receives  c_d = sum_k coefficient_k * w_kd.
#pragma once

#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

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
  template <typename Math, typename V>
  MAST_EXT_HD static void add_grad(V c, const Element<V>&, const Element<V>& b,
                                   Element<V>& grad_a) {
    grad_a.z += c * b.z;
  }
};

struct SquaredDifference {
  static constexpr bool kHasVariance = false;

  template <typename Math, typename V>
  MAST_EXT_HD static V value(const Element<V>& a, const Element<V>& b) {
    const V difference = a.z - b.z;
    return difference * difference;
  }
  template <typename Math, typename V>
  MAST_EXT_HD static void add_grad(V c, const Element<V>& a, const Element<V>& b,
                                   Element<V>& grad_a) {
    grad_a.z += c * (a.z - b.z) * 2;
  }
};

// (a - b)^2 / s + log s  with  s = exp(log_var_a) + exp(log_var_b), never formed itself.
struct Likelihood {
  static constexpr bool kHasVariance = true;

  template <typename Math, typename V>
  MAST_EXT_HD static V value(const Element<V>& a, const Element<V>& b) {
    const V difference = a.z - b.z;
    const V log_s = Math::log_add_exp(a.log_var, b.log_var);
    return difference * difference * Math::exp(-log_s) + log_s;
  }
  template <typename Math, typename V>
  MAST_EXT_HD static void add_grad(V c, const Element<V>& a, const Element<V>& b,
                                   Element<V>& grad_a) {
    const V difference = a.z - b.z;
    const V log_s = Math::log_add_exp(a.log_var, b.log_var);
    const V scaled = difference * Math::exp(-log_s);
    grad_a.z += c * scaled * 2;
    grad_a.log_var += c * (1 - difference * scaled) * Math::exp(a.log_var - log_s);
  }
};

}  // namespace mast_ext::kernels
