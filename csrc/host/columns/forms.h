// How variance_covariance and cross_correlation_penalty choose what they compute and keep. The
// shape-only kernels (mast_ext/ops) have to choose the same.
#pragma once

#include <cstdint>

namespace mast_ext {

// Whether products of rows, [N, N] for each subspace, are cheaper than one of columns, [D, D],
// which serves all subspaces. At D = 2 (N - 1) they also begin to be well conditioned: at most half
// of |G|^2 is then taken off again.
constexpr bool prefers_gram(std::int64_t rows, std::int64_t dim, std::int64_t subspaces) {
  return dim >= 2 * subspaces * (rows - 1);
}

// Standardized embeddings of at most so many elements are kept for the backward: to read them is
// cheaper than another pass.
inline constexpr std::int64_t kKeptElements = 1 << 18;

}  // namespace mast_ext
