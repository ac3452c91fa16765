// select_hard_pairs: for every image b the unordered pair of views i < j with the largest
//
//   (L[i,j,b] + L[j,i,b]) / 2
//
// This is the contract between the host code, which fills in the struct, and the kernels, which
// read it.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/hard_pairs/hardest_pair.h"

namespace mast_ext::kernels {

struct SelectHardPairs {
  DType dtype;  // of the losses; scores are in accum_t
  CandidatePairs candidates;
  std::int64_t batch;        // B
  const void* pair_losses;   // [V, V, B], B dense
  std::int64_t row_stride;   // of i
  std::int64_t pair_stride;  // of j
  std::int64_t* index;       // [2, B]
  void* score;               // [B]
};

// Images [begin, end); ranges that do not overlap may run at the same time.
void select_hard_pairs_cpu(const SelectHardPairs& p, std::int64_t begin, std::int64_t end);

// Queues on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
[[gnu::weak]] int select_hard_pairs_cuda(const SelectHardPairs& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
