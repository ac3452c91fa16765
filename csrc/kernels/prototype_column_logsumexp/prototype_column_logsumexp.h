// prototype_column_logsumexp: how much probability every prototype c gets from all rows n of the
// logits [N, C], in the log domain throughout.
//
//   z_nc     = (x_nc - center_c) / temperature
//   column_c = log sum_n softmax_c(z_n)_c      or, of rows that are not normalized,
//   column_c = log sum_n exp(z_nc)
//
// A column's logarithm is finite where every one of its probabilities underflows.
//
// The contract between the host code, which fills in the struct, and the kernels, which read it.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace mast_ext::kernels {

struct PrototypeColumns {
  DType dtype;                    // of the logits; everything else is in accum_t
  std::int64_t rows, prototypes;  // N, C
  const void* logits;             // [N, C], C dense
  std::int64_t row_stride;
  const void* center;  // [C], or null: zeros
  double temperature;
  bool normalize_rows;
  // Work space. Rows are shared out in slices, whose partial sums are merged in their order.
  std::int64_t slices;  // at least 1
  void* partial_sum;    // [slices, C]
  void* partial_max;    // [slices, C], what the sums are shifted by; CUDA only
  void* row_max;        // [N], the largest x - center, where rows are normalized
  void* row_log_sum;    // [N], of their exponentials
  void* column;         // [C]
};

// The CPU's chunk of columns, a share of its last step.
inline constexpr std::int64_t kPrototypeChunk = 256;

// Slices [begin, end) of rows that are normalized, then, in any case, chunks [begin, end).
void prototype_column_slices_cpu(const PrototypeColumns& p, std::int64_t begin, std::int64_t end);
void prototype_column_chunks_cpu(const PrototypeColumns& p, std::int64_t begin, std::int64_t end);

// Queues on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
int prototype_column_logsumexp_cuda(const PrototypeColumns& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
