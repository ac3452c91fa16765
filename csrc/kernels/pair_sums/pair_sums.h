// The one reduction under subspace_similarity and subspace_nll:
//
//   sums[row, k, b] = sum_d w_kd * value(left_bd, right_bd),   w = masks^2,  row = (left, right)
//
// and its adjoint. pair_rows.h says which rows there are, pair_math.h what a value is. The engines
// (pair_sums_cpu.h, pair_sums_cuda.cuh) read every embedding once for all rows and masks; the
// operators add only arithmetic on the sums.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"
#include "kernels/common/views.h"
#include "kernels/pair_sums/pair_rows.h"

namespace mast_ext::kernels {

struct PairSums {
  DType dtype;  // of the embeddings and log-variances; sums and masks are in accum_t
  PairRows rows;
  std::int64_t batch;      // B
  std::int64_t dim;        // D
  std::int64_t subspaces;  // K
  Views x;                 // [Vx, B, D]
  Views y;                 // [Vy, B, D]; unused in self comparison
  Views log_var_x;         // [Vx, B, D]; read by Likelihood only
  Views log_var_y;         // [Vy, B, D]
  const void* masks;       // [K, D], or null for one subspace of all ones
};

// Gradients of the inputs of PairSums, dense, null where not wanted.
struct PairSumsGrad {
  void* x;          // [Vx, B, D]
  void* y;          // [Vy, B, D]
  void* log_var_x;  // [Vx, B, D]
  void* log_var_y;  // [Vy, B, D]
  void* masks;      // [K, D] in accum_t
};

// What the backward keeps on the side.
struct PairSumsWork {
  std::int64_t slices;  // of the batch, see mask_grad_slices
  void* grad_weights;   // the masks' gradient per slice, null where not wanted:
                        // CPU [slices, K, D padded to 16], zeroed; CUDA [slices, K, D]
  void* coefficients;   // CUDA only: [B, rows, padded_subspaces(K)] gradients of the sums
};

// K as the CUDA kernels lay out coefficients: a whole number of 16-byte loads.
MAST_EXT_HD std::int64_t padded_subspaces(std::int64_t subspaces) {
  return (subspaces + 3) / 4 * 4;
}

// The masks' gradient is summed over fixed slices of the batch and then over the slices, so that
// its bits do not depend on how many threads there are.
inline std::int64_t mask_grad_slices(std::int64_t batch, std::int64_t most) {
  constexpr std::int64_t kImagesWorthASlice = 16;
  const std::int64_t slices = (batch + kImagesWorthASlice - 1) / kImagesWorthASlice;
  return slices < 1 ? 1 : slices < most ? slices : most;
}

}  // namespace mast_ext::kernels
