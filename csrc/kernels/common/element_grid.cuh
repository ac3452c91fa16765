// The grid of CUDA kernels that visit the elements of a matrix before or after a matrix product: a
// thread has one column and walks some rows.
#pragma once

#include <cstdint>

#include "kernels/common/launch.cuh"

namespace mast_ext::kernels {

inline constexpr int kElementThreads = 128;  // columns of a thread block
// Rows of a thread block, which load a column's values once for all of them.
inline constexpr std::int64_t kRowsPerBlock = 8;

// A grid that covers a matrix of this size. Its y dimension is limited to 65535: for_rows() visits
// the rows beyond that in further rounds.
inline dim3 element_grid(std::int64_t rows, std::int64_t columns) {
  const std::int64_t groups = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  return dim3(blocks(columns, kElementThreads),
              static_cast<unsigned>(groups < 65535 ? groups : 65535));
}

// Calls body(row) for the rows of the calling thread in an element_grid().
template <typename Body>
__device__ __forceinline__ void for_rows(std::int64_t rows, Body&& body) {
  for (std::int64_t group = blockIdx.y; group * kRowsPerBlock < rows; group += gridDim.y) {
    const std::int64_t first = group * kRowsPerBlock;
    const std::int64_t last = first + kRowsPerBlock < rows ? first + kRowsPerBlock : rows;
    for (std::int64_t row = first; row < last; ++row) body(row);
  }
}

}  // namespace mast_ext::kernels
