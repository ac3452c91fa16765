// select_hard_cosine_pairs: for every image b the unordered pair of views i < j with the largest
//
//   (-cos(x_ib, y_jb) - cos(x_jb, y_ib)) / 2
//
// computed from the embeddings: the losses of the pairs are never written to memory.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/hard_pairs/hardest_pair.h"
#include "kernels/pair_sums/pair_sums.h"

namespace mast_ext::kernels {

struct SelectHardCosinePairs {
  PairSums pairs;  // with norms, and one subspace of all ones
  CandidatePairs candidates;
  double eps;           // norms below it count as eps
  std::int64_t* index;  // [2, B]
  void* score;          // [B] in accum_t
};

// Images [begin, end); ranges that do not overlap may run at the same time.
void select_hard_cosine_pairs_cpu(const SelectHardCosinePairs& p, std::int64_t begin,
                                  std::int64_t end);

// Queues on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
[[gnu::weak]] int select_hard_cosine_pairs_cuda(const SelectHardCosinePairs& p,
                                                CUstream_st* stream);

}  // namespace mast_ext::kernels
