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
#include "kernels/common/host_device.h"

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
  std::int64_t parts;   // that a row is divided into, at least 1; CUDA only
  // If rows are normalized, of every part the largest x - center, and sum_c exp(z_nc - max / u)
  // with the temperature u; the CPU has no parts and keeps the logarithm of the sum.
  void* row_max;  // [N, parts]
  void* row_sum;  // [N, parts]
  void* column;   // [C]

  // Of all parts but the last ones, a multiple of what is loaded at once.
  MAST_EXT_HD std::int64_t part_length() const {
    return ((prototypes + parts - 1) / parts + 7) / 8 * 8;
  }
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
