// prototype_column_logsumexp: the logarithm of the probability that every prototype c gets from all
// rows n of the logits [N, C].
//
//   z_nc     = (x_nc - center_c) / temperature
//   column_c = log sum_n softmax(z_n)_c      if rows are normalized, else
//   column_c = log sum_n exp(z_nc)
//
// The result is finite even for a column whose probabilities all underflow.
//
// This is the contract between the host code, which fills in the struct, and the kernels, which
// read it.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

struct PrototypeColumns {
  DType dtype;                    // of the logits; everything else is in accum_t
  std::int64_t rows, prototypes;  // N, C
  const void* logits;             // [N, C], C dense
  std::int64_t row_stride;
  const void* center;  // [C], or null: zeros
  double temperature;
  bool normalize_rows;
  // Work space. Rows are divided into slices, whose partial sums are merged in a fixed order.
  std::int64_t slices;  // at least 1
  void* partial_sum;    // [slices, C]
  void* partial_max;    // [slices, C], the maxima that the sums are relative to; CUDA only
  void* row_max;        // [N], the largest x - center, if rows are normalized
  void* row_log_sum;    // [N], log sum_c exp(z_nc - max), if rows are normalized
  void* column;         // [C]
};

// Columns of a chunk, by which threads share the CPU's last step.
inline constexpr std::int64_t kPrototypeChunk = 256;

// First, only if rows are normalized: slices [begin, end).
void prototype_column_slices_cpu(const PrototypeColumns& p, std::int64_t begin, std::int64_t end);
// Then chunks [begin, end) of the columns.
void prototype_column_chunks_cpu(const PrototypeColumns& p, std::int64_t begin, std::int64_t end);

// Queues on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int prototype_column_logsumexp_cuda(const PrototypeColumns& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
