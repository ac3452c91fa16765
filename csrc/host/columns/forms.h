// How variance_covariance and cross_correlation_penalty choose what to compute and what to keep for
// the backward. The shape-only kernels (mast_ext/ops) must make the same choices.
#pragma once

#include <cstdint>

namespace mast_ext {

// Whether the Gram form, with a product of rows [N, N] per subspace, is cheaper than the direct
// form, with one product of columns [D, D] for all subspaces. From D = 2 (N - 1) on it is also well
// conditioned: at most half of |P|_F^2 is subtracted again.
constexpr bool prefers_gram(std::int64_t rows, std::int64_t dim, std::int64_t subspaces) {
  return dim >= 2 * subspaces * (rows - 1);
}

// Standardized embeddings of at most this many elements are kept for the backward: reading them is
// cheaper than another pass.
inline constexpr std::int64_t kKeptElements = 1 << 18;

}  // namespace mast_ext
