// select_hard_crops: for every image b the tuple of crops with the largest
//
//   ce[a, c] + ce[c, a] + sum over n locals l of (ce[a, l] + ce[c, l])
//
// where ce[t, s, b] is the cross entropy of global crop t (the teacher's) with crop s (the
// student's), one of G global and L local crops; a is an even global crop and c an odd one. As the
// sum has a term for each local, the best tuple with (a, c) has the n locals with the largest
// terms: only pairs (a, c) need to be searched.
//
// This is the contract between the host code, which fills in the struct, and the kernels, which
// read it.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/hard_pairs/hardest_pair.h"

namespace mast_ext::kernels {

struct SelectHardCrops {
  DType dtype;  // of ce; scores are in accum_t
  std::int64_t globals, locals;
  std::int64_t num_locals;  // n, from 0 to L
  std::int64_t batch;       // B
  const void* ce;           // [G, G + L, B], B dense
  std::int64_t teacher_stride, student_stride;
  const std::int64_t* tuples;  // [count, 2 + n] to choose from, as crop numbers, or null: all
  std::int64_t count;          // of tuples; of pairs (a, c) if tuples is null
  std::int64_t* index;         // [2 + n, B]
  void* score;                 // [B]

  // a and c of pair number `pair`; pairs are in lexicographic order.
  MAST_EXT_HD std::int64_t even(std::int64_t pair) const { return pair / (globals / 2) * 2; }
  MAST_EXT_HD std::int64_t odd(std::int64_t pair) const { return pair % (globals / 2) * 2 + 1; }

  MAST_EXT_HD std::int64_t at(std::int64_t teacher, std::int64_t student) const {
    return teacher * teacher_stride + student * student_stride;
  }
};

// Images [begin, end); ranges that do not overlap may run at the same time.
void select_hard_crops_cpu(const SelectHardCrops& p, std::int64_t begin, std::int64_t end);

// Queues on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
[[gnu::weak]] int select_hard_crops_cuda(const SelectHardCrops& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
