// The arithmetic of subspace_similarity on the sums over D, for one (k, b); shared by CPU and CUDA.
// A is the accumulation type.
#pragma once

#include <cmath>

#include "kernels/common/host_device.h"
#include "kernels/pair_sums/pair_rows.h"
#include "kernels/subspace_similarity/subspace_similarity.h"

namespace mast_ext::kernels::subspace_similarity_math {

// 1 / max(sqrt(square), eps); NaN stays NaN.
template <typename A>
MAST_EXT_HD A inverse_norm(A square, A eps) {
  const A norm = std::sqrt(square);
  return 1 / (norm < eps ? eps : norm);
}

// -2 d(inv_norm) / d(square) / inv_norm: 0 if the norm was below eps.
template <typename A>
MAST_EXT_HD A slope(A inv_norm, A eps) {
  return inv_norm * eps >= 1 ? A{0} : inv_norm * inv_norm;
}

// Writes the results. sum(row) returns the sum of a row over D.
template <typename A, typename Sum>
MAST_EXT_HD void finish(const SubspaceSimilarity& p, std::int64_t k, std::int64_t b, Sum&& sum) {
  const PairRows& rows = p.pairs.rows;
  const std::int64_t batch = p.pairs.batch;
  auto* out = static_cast<A*>(p.similarity) + k * rows.x_views * rows.y_views * batch + b;
  auto* inv_x = static_cast<A*>(p.inv_norm_x) + k * rows.x_views * batch + b;
  auto* inv_y = rows.self ? inv_x : static_cast<A*>(p.inv_norm_y) + k * rows.y_views * batch + b;
  const bool cosine = p.metric == Metric::kCosine;
  if (cosine) {
    const A eps = static_cast<A>(p.eps);
    for (int i = 0; i < rows.x_views; ++i) inv_x[i * batch] = inverse_norm(sum(rows.norm(i)), eps);
    if (!rows.self) {
      for (int j = 0; j < rows.y_views; ++j) {
        inv_y[j * batch] = inverse_norm(sum(rows.norm(rows.x_views + j)), eps);
      }
    }
  }
  for (int i = 0; i < rows.x_views; ++i) {
    for (int j = 0; j < rows.y_views; ++j) {
      const A total = sum(rows.pair(i, j));
      out[(i * rows.y_views + j) * batch] =
          cosine ? total * (inv_x[i * batch] * inv_y[j * batch]) : total;
    }
  }
}

// Calls set(row, c) once for every row, where c is the gradient of the row's sum.
template <typename A, typename Set>
MAST_EXT_HD void coefficients(const SubspaceSimilarityBackward& p, std::int64_t k, std::int64_t b,
                              Set&& set) {
  const PairRows& rows = p.pairs.rows;
  const std::int64_t batch = p.pairs.batch;
  const std::int64_t offset = k * rows.x_views * rows.y_views * batch + b;
  const auto* grads = static_cast<const A*>(p.grad_similarity) + offset;
  const auto* similarities = static_cast<const A*>(p.similarity) + offset;
  const auto* inv_x = static_cast<const A*>(p.inv_norm_x) + k * rows.x_views * batch + b;
  const auto* inv_y =
      rows.self ? inv_x : static_cast<const A*>(p.inv_norm_y) + k * rows.y_views * batch + b;
  const A eps = static_cast<A>(p.eps);
  const bool cosine = p.metric == Metric::kCosine;
  const auto at = [&](int i, int j) { return (i * rows.y_views + j) * batch; };

  // The pairs. In self comparison (i, j) and (j, i) are one row, and (i, i) is done below.
  for (int i = 0; i < rows.x_views; ++i) {
    for (int j = rows.self ? i : 0; j < rows.y_views; ++j) {
      if (rows.self && cosine && i == j) continue;
      A g = grads[at(i, j)];
      if (rows.self && i != j) g += grads[at(j, i)];
      set(rows.pair(i, j), cosine ? g * (inv_x[i * batch] * inv_y[j * batch]) : g);
    }
  }
  if (!cosine) return;

  // The norms: every similarity is inversely proportional to the norms of both its views.
  for (int i = 0; i < rows.x_views; ++i) {
    const A norm_slope = slope(inv_x[i * batch], eps);
    A total = 0, own = 0;
    for (int j = 0; j < rows.y_views; ++j) {
      const A pair = grads[at(i, j)] * similarities[at(i, j)];
      if (rows.self) {
        // S_ii contains the norm twice, and is also proportional to the row's sum itself (`own`).
        total += pair + grads[at(j, i)] * similarities[at(j, i)];
        if (i == j) own = grads[at(i, i)] * (inv_x[i * batch] * inv_x[i * batch]);
      } else {
        total += pair;
      }
    }
    set(rows.norm(i), own - total * norm_slope / 2);
  }
  if (rows.self) return;
  for (int j = 0; j < rows.y_views; ++j) {
    const A norm_slope = slope(inv_y[j * batch], eps);
    A total = 0;
    for (int i = 0; i < rows.x_views; ++i) total += grads[at(i, j)] * similarities[at(i, j)];
    set(rows.norm(rows.x_views + j), -total * norm_slope / 2);
  }
}

}  // namespace mast_ext::kernels::subspace_similarity_math
