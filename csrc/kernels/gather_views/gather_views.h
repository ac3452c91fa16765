// gather_views: out[s, b] = views[index[s, b], b], rows of any type and length; and its adjoint:
// grad_views[v, b] is the sum of grad[s, b] over all s with index[s, b] = v.
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/views.h"

namespace mast_ext::kernels {

struct GatherViews {
  std::int64_t views;         // V
  std::int64_t selected;      // S
  std::int64_t batch;         // B
  std::int64_t row_bytes;     // of an image; strides are in bytes, too
  Views from;                 // [V, B] rows
  const std::int64_t* index;  // [S, B]
  void* to;                   // [S, B] rows, dense
  unsigned char no_view;      // the byte that fills rows whose index is out of range; CUDA only
};

struct GatherViewsBackward {
  DType dtype;
  std::int64_t views;         // V
  std::int64_t selected;      // S
  std::int64_t batch;         // B
  std::int64_t row;           // elements of an image
  Views grad;                 // [S, B] rows, strides in elements
  const std::int64_t* index;  // [S, B]
  void* grad_views;           // [V, B] rows, dense
};

// Rows [begin, end) of the S * B that are written; all indices are in range.
void gather_views_cpu(const GatherViews& p, std::int64_t begin, std::int64_t end);
// Rows [begin, end) of the V * B that are written.
void gather_views_backward_cpu(const GatherViewsBackward& p, std::int64_t begin, std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
[[gnu::weak]] int gather_views_cuda(const GatherViews& p, CUstream_st* stream);
[[gnu::weak]] int gather_views_backward_cuda(const GatherViewsBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
