// cross_correlation_penalty: Barlow Twins' loss of two views a, b [N, D].
//
//   sum_d (C_dd - 1)^2 + lambda sum_{d != e} C_de^2        C = A^T B / N
//
// A and B are a and b standardized over the batch. The host code computes the matrix products P by
// the vendor library; the kernels do the rest. Two forms, as |A^T B|_F^2 = <A A^T, B B^T>:
//
//   direct  P = A^T B           [D, D], whose diagonal is left out
//   Gram    P = (B B^T, A A^T)  [2, N, N], in this order because the gradients take P_0 A and P_1 B
//
// Of small batches in the direct form, a GPU makes all that the forward needs of P in one launch,
// and H, the matrix of the gradients, as well.
//
// C_dd is summed separately: late in training it is close to 1, and a product rounded to 16 bits
// would leave little of the difference.
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

struct CrossCorrelationShape {
  DType dtype;  // of the matrix products' operands and results
  bool gram;
  std::int64_t rows, dim;  // N, D
  double lambda;
  double divisor;        // of the variances: N or N - 1
  const void* product;   // P, in dtype; in the backward of a small batch (H, H^T)
  const void* dots;      // [D]  N C_dd
  const void* row_sums;  // direct [D]  N^2 sum_{e != d} C_de^2;  Gram [N]  sum_m P_0nm P_1nm
};

struct CrossCorrelationPenalty {
  CrossCorrelationShape shape;
  void* product;  // shape.product, whose diagonal becomes 0 in the direct form
  void* row_sums;
  void* penalty;  // scalar
};

// The direct form of small batches, on CUDA.
struct CrossCorrelationSmall {
  CrossCorrelationShape shape;
  const void* tile;   // (A, B) [2, N, D] in dtype
  void* dots;         // shape.dots
  void* row_sums;     // shape.row_sums
  void* column_sums;  // [D]  N^2 sum_{d != e} C_de^2
  void* matrices;     // (H, H^T) [2, D, D] in dtype, for a gradient of 1
  void* penalty;      // scalar
};
inline constexpr std::int64_t kSmallDim = 128, kSmallElements = 1 << 16;
inline bool is_small(std::int64_t rows, std::int64_t dim) {
  return dim <= kSmallDim && rows * dim <= kSmallElements;
}

struct CrossCorrelationPenaltyBackward {
  CrossCorrelationShape shape;
  bool small;                // is_small(): shape.product and product_grad are other ones
  const void* grad_penalty;  // scalar
  const void* scale;         // [2, D]  1 / deviation
  // For projection(): direct [D]  N^2 sum_{d != e} C_de^2;  Gram [2, D]  sum_n tile * product_grad
  const void* projections;

  void* matrix;  // direct: [D, D] in dtype; H, with grad A = B H^T and grad B = A H

  // Rows [first_row, first_row + tile_rows) and columns [first_dim, first_dim + dims)
  std::int64_t first_row, tile_rows, first_dim, dims;
  const void* tile;          // (A, B) [2, tile_rows, dims] in dtype
  const void* product_grad;  // direct (B H^T, A H), Gram (B B^T A, A A^T B): [2, tile_rows, dims]
                             // small (A H, B H^T), for a gradient of 1
  DType grad_dtype;
  void* grad_a;  // [N, D] in grad_dtype, or null
  void* grad_b;
};

// Rows [begin, end) of `row_sums`: N (Gram) or D (direct).
void cross_correlation_rows_cpu(const CrossCorrelationPenalty& p, std::int64_t begin,
                                std::int64_t end);
void cross_correlation_finish_cpu(const CrossCorrelationPenalty& p, std::int64_t begin,
                                  std::int64_t end);
// Rows [begin, end) of `matrix`, D.
void cross_correlation_matrix_cpu(const CrossCorrelationPenaltyBackward& p, std::int64_t begin,
                                  std::int64_t end);
// Rows [begin, end) of 2 * tile_rows.
void cross_correlation_combine_cpu(const CrossCorrelationPenaltyBackward& p, std::int64_t begin,
                                   std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int cross_correlation_penalty_cuda(const CrossCorrelationPenalty& p,
                                                 CUstream_st* stream);
[[gnu::weak]] int cross_correlation_small_cuda(const CrossCorrelationSmall& p, CUstream_st* stream);
[[gnu::weak]] int cross_correlation_matrix_cuda(const CrossCorrelationPenaltyBackward& p,
                                                CUstream_st* stream);
[[gnu::weak]] int cross_correlation_combine_cuda(const CrossCorrelationPenaltyBackward& p,
                                                 CUstream_st* stream);

}  // namespace mast_ext::kernels
