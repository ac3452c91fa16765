// The arithmetic of subspace_nll on the sums over D, for one (k, b); shared by CPU and CUDA. T is
// the type of the log-variances, A = accum_t<T>.
#pragma once

#include <limits>

#include "kernels/common/host_device.h"
#include "kernels/common/scalar_math.h"
#include "kernels/pair_sums/pair_rows.h"
#include "kernels/subspace_nll/subspace_nll.h"

namespace mast_ext::kernels::subspace_nll_math {

// 1 / W_k, or 0 for a mask of zeros; NaN stays NaN.
template <typename A>
MAST_EXT_HD A inverse_total(A total) {
  return total == 0 ? A{0} : 1 / total;
}

// A product of finite factors, of which `factor` is one, as large as a number may be that is
// multiplied by 2 and by the square of a mask: times a difference of 0 it has to be 0.
template <typename A>
MAST_EXT_HD A bounded(A product, A factor) {
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  constexpr A kMost = std::numeric_limits<A>::max() / (1 << 20);
  if (product > kMost && factor < kInfinity) return kMost;
  return product < -kMost && factor > -kInfinity ? -kMost : product;
}

// x / exp(log_s), also where 1 / exp(log_s) itself overflows.
template <typename A>
MAST_EXT_HD A quotient(A x, A log_s) {
  constexpr A kLargest = std::numeric_limits<A>::max();
  A root = ScalarMath::exp(-log_s / 2);
  root = root > kLargest ? kLargest : root;
  return x * root * root;
}

// The log-variance of x's view i, or y's view j, in subspace k (subspace form).
template <typename T>
MAST_EXT_HD accum_t<T> log_var_at(const Views& from, std::int64_t view, std::int64_t b,
                                  std::int64_t k) {
  return static_cast<accum_t<T>>(
      static_cast<const T*>(from.data)[view * from.view_stride + b * from.batch_stride + k]);
}

template <typename T>
struct LogVariances {
  const PairSums& pairs;
  std::int64_t k, b;

  MAST_EXT_HD accum_t<T> x(int i) const { return log_var_at<T>(pairs.log_var_x, i, b, k); }
  MAST_EXT_HD accum_t<T> y(int j) const {
    return log_var_at<T>(pairs.rows.self ? pairs.log_var_x : pairs.log_var_y, j, b, k);
  }
};

// Writes the results. sum(row) returns the sum of a row over D; `total` is W_k.
template <typename T, typename Sum>
MAST_EXT_HD void finish(const SubspaceNll& p, std::int64_t k, std::int64_t b, accum_t<T> total,
                        Sum&& sum) {
  using A = accum_t<T>;
  const PairRows& rows = p.pairs.rows;
  const std::int64_t batch = p.pairs.batch;
  const std::int64_t offset = k * rows.x_views * rows.y_views * batch + b;
  const A scale = inverse_total(total);
  const LogVariances<T> log_var{p.pairs, k, b};
  for (int i = 0; i < rows.x_views; ++i) {
    for (int j = 0; j < rows.y_views; ++j) {
      const std::int64_t at = offset + (i * rows.y_views + j) * batch;
      A mean = sum(rows.pair(i, j)) * scale;
      if (p.variance == Variance::kSubspace) {
        static_cast<A*>(p.distance)[at] = mean;
        const A log_s = ScalarMath::log_add_exp(log_var.x(i), log_var.y(j));
        mean = quotient(mean, log_s) + log_s;
      }
      static_cast<A*>(p.nll)[at] = mean / 2;
    }
  }
}

// Calls set(row, c) once for every row, where c is the gradient of the row's sum. Returns the
// gradient of W_k, and in the subspace form writes those of the log-variances.
template <typename T, typename Set>
MAST_EXT_HD accum_t<T> coefficients(const SubspaceNllBackward& p, std::int64_t k, std::int64_t b,
                                    accum_t<T> total, Set&& set) {
  using A = accum_t<T>;
  const PairRows& rows = p.pairs.rows;
  const std::int64_t batch = p.pairs.batch;
  const std::int64_t offset = k * rows.x_views * rows.y_views * batch + b;
  const auto* grads = static_cast<const A*>(p.grad_nll) + offset;
  const auto at = [&](int i, int j) { return (i * rows.y_views + j) * batch; };
  const bool subspace = p.variance == Variance::kSubspace;
  const A scale = inverse_total(total);
  const LogVariances<T> log_var{p.pairs, k, b};
  A grad_total = 0;

  for (int i = 0; i < rows.x_views; ++i) {
    // In self comparison (i, j) and (j, i) are one row.
    for (int j = rows.self ? i : 0; j < rows.y_views; ++j) {
      A half = grads[at(i, j)] / 2;
      if (rows.self && i != j) half += grads[at(j, i)] / 2;
      if (subspace) {
        const A log_s = ScalarMath::log_add_exp(log_var.x(i), log_var.y(j));
        const A distance = static_cast<const A*>(p.distance)[offset + at(i, j)];
        grad_total -= half * quotient(distance, log_s) * scale;
        set(rows.pair(i, j), bounded(quotient(half * scale, log_s), half));
      } else {
        grad_total -= half * 2 * static_cast<const A*>(p.nll)[offset + at(i, j)] * scale;
        set(rows.pair(i, j), half * scale);
      }
    }
  }
  if (!subspace) return grad_total;

  // d L / d log_var_x = (1 - q / s) exp(log_var_x) / s / 2, summed over the partners.
  const auto derivative = [&](int i, int j, A own) {
    const A log_s = ScalarMath::log_add_exp(log_var.x(i), log_var.y(j));
    const A distance = static_cast<const A*>(p.distance)[offset + at(i, j)];
    return (1 - quotient(distance, log_s)) * ScalarMath::exp(own - log_s) / 2;
  };
  if (p.grad.log_var_x != nullptr) {
    for (int i = 0; i < rows.x_views; ++i) {
      A grad = 0;
      for (int j = 0; j < rows.y_views; ++j) {
        const A g = rows.self ? grads[at(i, j)] + grads[at(j, i)] : grads[at(i, j)];
        grad += g * derivative(i, j, log_var.x(i));
      }
      static_cast<T*>(p.grad.log_var_x)[(i * batch + b) * p.pairs.subspaces + k] =
          static_cast<T>(grad);
    }
  }
  if (!rows.self && p.grad.log_var_y != nullptr) {
    for (int j = 0; j < rows.y_views; ++j) {
      A grad = 0;
      for (int i = 0; i < rows.x_views; ++i) {
        grad += grads[at(i, j)] * derivative(i, j, log_var.y(j));
      }
      static_cast<T*>(p.grad.log_var_y)[(j * batch + b) * p.pairs.subspaces + k] =
          static_cast<T>(grad);
    }
  }
  return grad_total;
}

}  // namespace mast_ext::kernels::subspace_nll_math
