// The reduction that subspace_similarity and subspace_nll are built on:
//
//   sums[row, k, b] = sum_d w_kd * value(left_bd, right_bd),   w = masks^2,  row = (left, right)
//
// and its adjoint. pair_rows.h defines the rows, pair_math.h the values. The engines
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

// Gradients of the inputs of PairSums: dense, null if not wanted.
struct PairSumsGrad {
  void* x;          // [Vx, B, D]
  void* y;          // [Vy, B, D]
  void* log_var_x;  // [Vx, B, D]
  void* log_var_y;  // [Vy, B, D]
  void* masks;      // [K, D] in accum_t
};

// Work space of the backward.
struct PairSumsWork {
  std::int64_t slices;  // of the batch: mask_grad_slices(), cuda_mask_grad_slices()
  void* grad_weights;   // the gradient of w per slice, null if not wanted:
                        // CPU [slices, K, D padded to 16], zeroed; CUDA [slices, K, D]
  void* coefficients;   // CUDA only: [B, rows, padded_subspaces(K)] gradients of the sums; where
                        // results depend on sum_d w_kd, its gradients are one more row
};

// K rounded up to a multiple of 4, so that CUDA kernels load coefficients 16 bytes at a time.
MAST_EXT_HD std::int64_t padded_subspaces(std::int64_t subspaces) {
  return (subspaces + 3) / 4 * 4;
}

// The number of slices of the batch, at most `most`. The masks' gradient is summed over each slice
// and then over the slices, so that it does not depend on the number of threads.
inline std::int64_t mask_grad_slices(std::int64_t batch, std::int64_t most) {
  constexpr std::int64_t kImagesPerSlice = 16;
  const std::int64_t slices = (batch + kImagesPerSlice - 1) / kImagesPerSlice;
  return slices < 1 ? 1 : slices < most ? slices : most;
}

// The same for CUDA, where a thread block has a slice of some elements of D: as many slices as make
// enough thread blocks, if there are so many images.
inline std::int64_t cuda_mask_grad_slices(std::int64_t batch, std::int64_t dim,
                                          std::int64_t subspaces) {
  constexpr std::int64_t kManyBlocks = 528;
  const std::int64_t elements = subspaces > 8 ? 256 : 512;  // of a thread block
  const std::int64_t tiles = (subspaces + 15) / 16;
  const std::int64_t blocks = (dim + elements - 1) / elements * tiles;
  const std::int64_t slices = blocks > 0 ? (kManyBlocks + blocks - 1) / blocks : 1;
  return batch < 1 ? 1 : batch < slices ? batch : slices;
}

}  // namespace mast_ext::kernels
