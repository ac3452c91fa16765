// subspace_similarity: the similarity of every view of x with every view of y, in every subspace.
//
//   cosine        S[k,i,j,b] = sum_d w_kd x_ibd y_jbd / (max(|m_k x_ib|, eps) max(|m_k y_jb|, eps))
//   sqeuclidean   S[k,i,j,b] = sum_d w_kd (x_ibd - y_jbd)^2                     w = m^2
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them. All tensors are on one device and, except the embeddings (Views), dense.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/pair_sums/pair_sums.h"

namespace mast_ext::kernels {

enum class Metric { kCosine, kSquaredEuclidean };

struct SubspaceSimilarity {
  PairSums pairs;
  Metric metric;
  double eps;        // norms below it count as eps
  void* similarity;  // [K, Vx, Vy, B]
  void* inv_norm_x;  // [K, Vx, B]  1 / max(norm, eps); cosine only
  void* inv_norm_y;  // [K, Vy, B]  cosine with y given only
  void* sums;        // [rows, K, B] workspace; CUDA only, null where it compares_two()
};

// Whether a view of x is compared with one of y, without masks, for which a GPU needs no workspace.
inline bool compares_two(const PairSums& p) {
  return !p.rows.self && p.rows.x_views == 1 && p.rows.y_views == 1 && p.masks == nullptr &&
         p.subspaces == 1;
}

struct SubspaceSimilarityBackward {
  PairSums pairs;
  Metric metric;
  double eps;
  const void* grad_similarity;  // [K, Vx, Vy, B]
  const void* similarity;       // [K, Vx, Vy, B]
  const void* inv_norm_x;       // [K, Vx, B]
  const void* inv_norm_y;       // [K, Vy, B]
  PairSumsGrad grad;
  PairSumsWork work;
};

// Images [begin, end); ranges that do not overlap may run at the same time.
void subspace_similarity_cpu(const SubspaceSimilarity& p, std::int64_t begin, std::int64_t end);
// Slices [begin, end) of the batch.
void subspace_similarity_backward_cpu(const SubspaceSimilarityBackward& p, std::int64_t begin,
                                      std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int subspace_similarity_cuda(const SubspaceSimilarity& p, CUstream_st* stream);
[[gnu::weak]] int subspace_similarity_backward_cuda(const SubspaceSimilarityBackward& p,
                                                    CUstream_st* stream);

}  // namespace mast_ext::kernels
