// variance_covariance: VICReg's two batch statistics of every view, in every subspace.
//
//   variance[k,v]   = mean_d relu(1 - sqrt(w_kd Var_vd + eps))
//   covariance[k,v] = sum_{d != e} w_kd w_ke C_vde^2 / D        C = zc^T zc / (N-1),  w = m^2
//
// zc is z minus its column means. The host code computes the matrix products P by the vendor
// library; the kernels do the rest. There are two forms of the covariance:
//
//   direct  P_v  = zc^T zc            [V, D, D]     sum_d w_kd sum_{e != d} w_ke P_de^2
//   Gram    P_kv = zc diag(w) zc^T    [K, V, N, N]  |P_kv|_F^2 - sum_d (w_kd sum_n zc_nd^2)^2
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them.
#pragma once

#include <cstdint>

#include "kernels/columns/columns.h"
#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"

namespace mast_ext::kernels {

struct VarianceCovarianceShape {
  DType dtype;                               // of the matrix products' operands and results
  bool gram;                                 // Gram form; else direct
  std::int64_t views, rows, dim, subspaces;  // V, N, D, K
  double eps;
  const void* masks;        // [K, D], or null for one subspace of all ones
  const void* sum_squares;  // [V, D]  sum_n zc^2
  const void* product;      // P, in dtype
};

struct VarianceCovariance {
  VarianceCovarianceShape shape;
  void* row_sums;    // direct [K, V, D]  sum_{e != d} w_ke P_vde^2;  Gram [K, V, N]  sum_m P_nm^2
  void* variance;    // [K, V]
  void* covariance;  // [K, V]
};

struct VarianceCovarianceBackward {
  VarianceCovarianceShape shape;
  // The gradients of results (k, v): factor * grad[(k * V + v) * grad_stride]; stride 0: of all.
  const void* grad_variance;    // [K, V]
  const void* grad_covariance;  // [K, V]
  std::int64_t grad_stride;
  double variance_factor, covariance_factor;
  const void* slopes;  // [K, V, D]  direct: row_sums;  Gram: sum_n zc_nd (P_kv zc)_nd

  // Direct: the gradient of z is zc times this matrix.
  void* matrix;  // [V, D, D] in dtype

  // Gram: for the columns [first_dim, first_dim + dims)
  std::int64_t first_dim, dims;
  const void* centered;      // zc [V, N, dims] in dtype
  const void* product_grad;  // P_kv zc [K, V, N, dims] in dtype
  DType grad_dtype;
  void* grad_z;      // [V, N, D] in grad_dtype
  void* grad_masks;  // [K, D]
};

// Rows [begin, end) of `row_sums`: K * V * N (Gram) or, for all k at once, V * D (direct).
void variance_covariance_rows_cpu(const VarianceCovariance& p, std::int64_t begin,
                                  std::int64_t end);
// Results [begin, end) of K * V, from the row sums.
void variance_covariance_finish_cpu(const VarianceCovariance& p, std::int64_t begin,
                                    std::int64_t end);
// Rows [begin, end) of `matrix`, V * D.
void variance_covariance_matrix_cpu(const VarianceCovarianceBackward& p, std::int64_t begin,
                                    std::int64_t end);
// Rows [begin, end) of `grad_z`, V * N.
void variance_covariance_combine_cpu(const VarianceCovarianceBackward& p, std::int64_t begin,
                                     std::int64_t end);
// Elements [begin, end) of `grad_masks`, K * D.
void variance_covariance_masks_cpu(const VarianceCovarianceBackward& p, std::int64_t begin,
                                   std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int variance_covariance_rows_cuda(const VarianceCovariance& p, CUstream_st* stream);
[[gnu::weak]] int variance_covariance_finish_cuda(const VarianceCovariance& p, CUstream_st* stream);
[[gnu::weak]] int variance_covariance_matrix_cuda(const VarianceCovarianceBackward& p,
                                                  CUstream_st* stream);
[[gnu::weak]] int variance_covariance_combine_cuda(const VarianceCovarianceBackward& p,
                                                   CUstream_st* stream);
[[gnu::weak]] int variance_covariance_masks_cuda(const VarianceCovarianceBackward& p,
                                                 CUstream_st* stream);

}  // namespace mast_ext::kernels
