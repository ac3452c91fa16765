// What the CUDA kernels around matrix products of embeddings share.
#pragma once

#include <cstdint>

#include "kernels/common/launch.cuh"

namespace mast_ext::kernels {

inline constexpr int kElementThreads = 128;     // neighboring elements of a row
inline constexpr std::int64_t kRowsABlock = 8;  // rows a block walks, to share what a column needs

// A grid with kElementThreads columns and kRowsABlock rows a block; rows beyond the grid's limit
// are walked in further rounds.
inline dim3 element_grid(std::int64_t rows, std::int64_t columns) {
  const std::int64_t groups = (rows + kRowsABlock - 1) / kRowsABlock;
  return dim3(blocks(columns, kElementThreads),
              static_cast<unsigned>(groups < 65535 ? groups : 65535));
}

// The calls body(row, first of a run) of one thread in such a grid; rows of a run follow each
// other.
template <typename Body>
__device__ __forceinline__ void for_rows(std::int64_t rows, Body&& body) {
  for (std::int64_t group = blockIdx.y; group * kRowsABlock < rows; group += gridDim.y) {
    const std::int64_t first = group * kRowsABlock;
    const std::int64_t last = first + kRowsABlock < rows ? first + kRowsABlock : rows;
    for (std::int64_t row = first; row < last; ++row) body(row);
  }
}

}  // namespace mast_ext::kernels
