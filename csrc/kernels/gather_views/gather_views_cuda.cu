// A thread block takes a chunk of a row, or of several rows if they are short. Rows are copied in
// the widest packets that all addresses and lengths allow. There are no atomic additions: every
// result is written by one thread.
#include <cstring>

#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/gather_views/gather_views.h"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kItems = 4;  // packets, or elements, of a thread

// How rows of `items` packets or elements are divided among thread blocks.
struct RowBlocks {
  dim3 grid, block;
  std::int64_t chunks;  // of a row

  RowBlocks(std::int64_t rows, std::int64_t items) {
    unsigned width = 1;
    while (width < items && width < kThreads) width *= 2;
    block = dim3(width, kThreads / width);
    chunks = blocks(items, std::int64_t{width} * kItems);
    grid = dim3(blocks(blocks(rows, block.y) * chunks, 1));
  }
};

__device__ __forceinline__ std::int64_t own_row(std::int64_t chunks) {
  return blockIdx.x / chunks * blockDim.y + threadIdx.y;
}

__device__ __forceinline__ std::int64_t first_item(std::int64_t chunks) {
  return blockIdx.x % chunks * kItems * blockDim.x + threadIdx.x;
}

template <typename Packet>
__global__ void __launch_bounds__(kThreads) copy_rows(GatherViews p, std::int64_t chunks) {
  const std::int64_t row = own_row(chunks), first = first_item(chunks);
  if (row >= p.selected * p.batch) return;
  const std::int64_t view = p.index[row], packets = p.row_bytes / sizeof(Packet);
  auto* to = reinterpret_cast<Packet*>(static_cast<char*>(p.to) + row * p.row_bytes);
  const bool exists = view >= 0 && view < p.views;
  const auto* from = reinterpret_cast<const Packet*>(static_cast<const char*>(p.from.data) +
                                                     (exists ? view : 0) * p.from.view_stride +
                                                     row % p.batch * p.from.batch_stride);
  Packet values[kItems];
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const std::int64_t at = first + item * blockDim.x;
    if (exists && at < packets) {
      values[item] = from[at];
    } else {
      std::memset(&values[item], p.no_view, sizeof(Packet));
    }
  }
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const std::int64_t at = first + item * blockDim.x;
    if (at < packets) to[at] = values[item];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) add_rows(GatherViewsBackward p, std::int64_t chunks) {
  const std::int64_t row = own_row(chunks), first = first_item(chunks);
  if (row >= p.views * p.batch) return;
  const std::int64_t view = row / p.batch, b = row % p.batch;
  const T* grad = static_cast<const T*>(p.grad.data) + b * p.grad.batch_stride;
  float sum[kItems] = {};
  for (std::int64_t s = 0; s < p.selected; ++s) {
    if (p.index[s * p.batch + b] != view) continue;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      const std::int64_t at = first + item * blockDim.x;
      if (at < p.row) sum[item] += static_cast<float>(grad[s * p.grad.view_stride + at]);
    }
  }
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const std::int64_t at = first + item * blockDim.x;
    if (at < p.row) static_cast<T*>(p.grad_views)[row * p.row + at] = static_cast<T>(sum[item]);
  }
}

template <typename Packet>
cudaError_t copy(const GatherViews& p, cudaStream_t stream) {
  const RowBlocks shares(p.selected * p.batch,
                         p.row_bytes / static_cast<std::int64_t>(sizeof(Packet)));
  return launch(copy_rows<Packet>, shares.grid, shares.block, stream, p, shares.chunks);
}

}  // namespace

int gather_views_cuda(const GatherViews& p, cudaStream_t stream) {
  // A power of two divides all of these if it divides their bitwise or.
  const auto bits =
      reinterpret_cast<std::uintptr_t>(p.from.data) | reinterpret_cast<std::uintptr_t>(p.to) |
      static_cast<std::uintptr_t>(p.from.view_stride | p.from.batch_stride | p.row_bytes);
  if (bits % 16 == 0) return copy<float4>(p, stream);
  if (bits % 8 == 0) return copy<float2>(p, stream);
  if (bits % 4 == 0) return copy<std::uint32_t>(p, stream);
  if (bits % 2 == 0) return copy<std::uint16_t>(p, stream);
  return copy<std::uint8_t>(p, stream);
}

int gather_views_backward_cuda(const GatherViewsBackward& p, cudaStream_t stream) {
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    const RowBlocks shares(p.views * p.batch, p.row);
    return launch(add_rows<T>, shares.grid, shares.block, stream, p, shares.chunks);
  });
}

}  // namespace mast_ext::kernels
