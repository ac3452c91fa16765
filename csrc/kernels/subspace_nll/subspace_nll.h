// subspace_nll: the Gaussian negative log-likelihood, up to a constant, that two embeddings with
// variances are equal, for every pair of views in every subspace.     w = m^2, W_k = sum_d w_kd
//
//   diagonal   s_d = exp(lvx_ibd) + exp(lvy_jbd)
//              L[k,i,j,b] = 1/2 sum_d w_kd ((x_ibd - y_jbd)^2 / s_d + log s_d) / W_k
//   subspace   s_k = exp(lvx_ibk) + exp(lvy_jbk),  q_k = sum_d w_kd (x_ibd - y_jbd)^2 / W_k
//              L[k,i,j,b] = 1/2 (q_k / s_k + log s_k)
//
// A subspace whose mask is all zero has q_k = 0, and L = 0 in the diagonal form.
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them. Embeddings and log-variances may be strided (Views), everything else is dense. In the
// subspace form pairs.log_var_x and log_var_y are [V, B, K].
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/pair_sums/pair_sums.h"

namespace mast_ext::kernels {

enum class Variance { kDiagonal, kSubspace };

struct SubspaceNll {
  PairSums pairs;
  Variance variance;
  void* nll;       // [K, Vx, Vy, B]
  void* distance;  // [K, Vx, Vy, B]  q_k; subspace form only
  void* sums;      // [rows, K, B] workspace; CUDA only
};

struct SubspaceNllBackward {
  PairSums pairs;
  Variance variance;
  const void* grad_nll;  // [K, Vx, Vy, B]
  const void* nll;       // [K, Vx, Vy, B]
  const void* distance;  // [K, Vx, Vy, B]; subspace form only
  PairSumsGrad grad;     // log_var_x and log_var_y have the shapes of the log-variances
  PairSumsWork work;
};

// Images [begin, end); ranges that do not overlap may run at the same time.
void subspace_nll_cpu(const SubspaceNll& p, std::int64_t begin, std::int64_t end);
// Slices [begin, end) of the batch.
void subspace_nll_backward_cpu(const SubspaceNllBackward& p, std::int64_t begin, std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int subspace_nll_cuda(const SubspaceNll& p, CUstream_st* stream);
[[gnu::weak]] int subspace_nll_backward_cuda(const SubspaceNllBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
