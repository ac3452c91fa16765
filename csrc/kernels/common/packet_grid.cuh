// The grid of CUDA kernels that visit the elements of [V, N, D]: a thread has a packet of
// neighboring columns of a view and walks some of its rows, so that it computes once what belongs
// to a column.
#pragma once

#include <cstdint>

#include "kernels/common/launch.cuh"
#include "kernels/common/packets.cuh"

namespace mast_ext::kernels {

inline constexpr int kPacketThreads = 128;  // of a thread block

struct PacketGrid {
  dim3 grid, block;                    // a block's x dimension lies along the columns
  unsigned column_blocks, row_blocks;  // of a view
  int rows;                            // of a thread
};

// `packets` is the number of packets in a row.
inline PacketGrid packet_grid(std::int64_t views, std::int64_t rows, std::int64_t packets) {
  constexpr std::int64_t kEnoughBlocks = 512;  // to fill a GPU; beyond it, threads get more rows
  unsigned lanes = kPacketThreads;
  while (lanes > 8 && lanes / 2 >= packets) lanes /= 2;
  const unsigned row_lanes = kPacketThreads / lanes;
  const unsigned column_blocks = blocks(packets, lanes);
  const std::int64_t of_one_row = views * column_blocks * blocks(rows, row_lanes);
  const std::int64_t share = of_one_row / kEnoughBlocks;
  const int rows_of_thread = share >= 16 ? 16 : share >= 4 ? static_cast<int>(share / 4) * 4 : 1;
  const unsigned row_blocks = blocks(rows, std::int64_t{row_lanes} * rows_of_thread);
  return {.grid = blocks(views * column_blocks * row_blocks, 1),
          .block = dim3(lanes, row_lanes),
          .column_blocks = column_blocks,
          .row_blocks = row_blocks,
          .rows = rows_of_thread};
}

// What the calling thread visits: from column `d` of `view`, rows `first`, first + step, ... below
// `last`.
struct PacketRows {
  std::int64_t view, d, first, last, step;

  __device__ __forceinline__ PacketRows(const PacketGrid& from, std::int64_t rows, int packet) {
    const unsigned group = blockIdx.x / from.column_blocks;
    view = group / from.row_blocks;
    d = (std::int64_t{blockIdx.x % from.column_blocks} * blockDim.x + threadIdx.x) * packet;
    step = blockDim.y;
    const std::int64_t begin = std::int64_t{group % from.row_blocks} * from.rows * step;
    first = begin + threadIdx.y;
    last = begin + from.rows * step < rows ? begin + from.rows * step : rows;
  }

  // Loads the packets of rows `row`, row + step, ... that are below `last`. `column` is that of the
  // thread in row 0, and rows are `stride` elements apart.
  template <typename T, int N, int kCount>
  __device__ __forceinline__ void load(RawPacket<T, N> (&packets)[kCount], const T* column,
                                       std::int64_t stride, std::int64_t row) const {
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const std::int64_t at = row + r * step;
      if (at < last) packets[r].load(column + at * stride);
    }
  }
};

}  // namespace mast_ext::kernels
