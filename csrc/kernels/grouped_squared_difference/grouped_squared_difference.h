// grouped_squared_difference: the squared differences of the rows of x and y [N, D], added up over
// each of G groups of rows, in every dimension. With the weight p_n of a row (1 if not given)
//
//   sums[g, d]  = sum_{n in g} p_n (x_nd - y_nd)^2        counts[g] = sum_{n in g} p_n
//   residual[n] = sum_d w[group_n, d] (x_nd - y_nd)^2     only if w is given; 0 without a group
//
// Backward. With G and c the gradients of sums and counts
//
//   grad x_nd = -grad y_nd = 2 p_n G[group_n, d] (x_nd - y_nd)
//   grad p_n  = sum_d G[group_n, d] (x_nd - y_nd)^2 + c[group_n]
//
// A row whose group is not in [0, G) is in none.
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them. x and y have dense rows, everything else is dense.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// The arguments of forward and backward.
struct RowPairs {
  DType dtype;                     // of x and y; all other numbers are in accum_t
  std::int64_t rows, dim, groups;  // N, D, G
  const void* x;                   // [N, D]
  const void* y;                   // [N, D]
  std::int64_t x_stride, y_stride;
  const std::int64_t* group;  // [N]
  const void* weight;         // [N], or null

  MAST_EXT_HD bool has_group(std::int64_t n) const { return group[n] >= 0 && group[n] < groups; }

  template <typename A>
  MAST_EXT_HD A weight_of(std::int64_t n) const {
    return weight == nullptr ? A{1} : static_cast<const A*>(weight)[n];
  }
};

// The rows are divided into slices, whose sums are added up in order: the result does not depend
// on the number of threads, and sums over many rows stay precise. If there is a single slice,
// slice_sums and slice_counts are sums and counts themselves.
struct GroupedSquaredDifference {
  RowPairs pairs;
  const void* dimension_weights;  // [G, D], w; or null
  std::int64_t slices;
  void* slice_sums;      // [slices, G, D]
  void* slice_counts;    // [slices, G]
  void* block_residual;  // [row_blocks(D), N]; CPU only, null without w
  void* sums;            // [G, D]
  void* counts;          // [G]
  void* residual;        // [N], null without w

  // The rows [first, last) of a slice.
  MAST_EXT_HD std::int64_t first_row(std::int64_t slice) const {
    return pairs.rows * slice / slices;
  }
};

// The CPU takes this many columns at a time, so that the sums of a few groups stay in the
// first-level cache.
inline constexpr std::int64_t kRowBlock = 256;
inline std::int64_t row_blocks(std::int64_t dim) { return (dim + kRowBlock - 1) / kRowBlock; }

// With at most this many groups, a GPU sorts the rows of a slice, at most so many, by group.
inline constexpr int kSortedGroups = 64, kSortedRows = 256;

// With twice as many rows in a slice as there are groups, the slices' sums take at most half of the
// memory of x. On a GPU the slices are the z dimension of a grid, which is limited to 65535, if
// there are many groups.
inline std::int64_t difference_slices(std::int64_t rows, std::int64_t groups, bool cuda) {
  static_assert(2 * kSortedGroups <= kSortedRows);
  const std::int64_t length =
      cuda && groups <= kSortedGroups
          ? kSortedRows
          : std::max({std::int64_t{cuda ? 512 : 64}, 2 * groups, rows / 65535 + 1});
  return std::max<std::int64_t>((rows + length - 1) / length, 1);
}

struct GroupedSquaredDifferenceBackward {
  RowPairs pairs;
  const void* grad_sums;    // [G, D]
  const void* grad_counts;  // [G], or null: zeros
  void* grad_x;             // [N, D] in dtype, or null
  void* grad_y;             // [N, D] in dtype, or null
  void* grad_weight;        // [N], or null
};

// Parts [begin, end) of slices * row_blocks(dim).
void grouped_squared_difference_cpu(const GroupedSquaredDifference& p, std::int64_t begin,
                                    std::int64_t end);
// Adds up the slices, and the blocks of the residual.
void grouped_squared_difference_finish_cpu(const GroupedSquaredDifference& p);
// Rows [begin, end).
void grouped_squared_difference_backward_cpu(const GroupedSquaredDifferenceBackward& p,
                                             std::int64_t begin, std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int grouped_squared_difference_cuda(const GroupedSquaredDifference& p,
                                                  CUstream_st* stream);
[[gnu::weak]] int grouped_squared_difference_backward_cuda(
    const GroupedSquaredDifferenceBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
