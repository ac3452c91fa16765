// prototype_cross_entropy: of every student view with every teacher view of the same image, over C
// prototypes, from raw logits x [S, B, C] and y [T, B, C]:
//
//   CE[t,s,b] = log sum_c exp(x_sbc / r) - sum_c softmax_c((y_tbc - center_c) / u) x_sbc / r
//
// Work is shared out as chunks of C times groups of images. Of every image each chunk leaves a
// partial: the largest logit and the sum of exponentials of every row, and the dot of every pair.
// Partials merge exactly (prototype_cross_entropy_math.h), always in the same order; the teacher's
// column sums, which the same read gives, are kept per group. The shares depend on the sizes alone,
// so that the bits do not depend on how many threads there are.
//
// The contract between the host code, which fills in the structs, and the kernels, which read them.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"
#include "kernels/common/views.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace mast_ext::kernels {

struct PrototypeLogits {
  DType dtype;
  std::int64_t students, teachers;  // S and T views
  std::int64_t batch, prototypes;   // B, C
  Views student;                    // [S, B, C]
  Views teacher;                    // [T, B, C]
  const void* center;               // [C] in accum_t, or null
  double student_temperature, teacher_temperature;
};

struct PrototypeShares {
  std::int64_t chunk, chunks;  // prototypes of a chunk; ceil(C / chunk)
  std::int64_t group, groups;  // images of a group; ceil(B / group)

  // Chunks of `chunk_` prototypes, and as few groups as give `wanted` shares.
  PrototypeShares(const PrototypeLogits& p, std::int64_t chunk_, std::int64_t wanted)
      : chunk(chunk_), chunks(parts(p.prototypes, chunk)) {
    group = parts(p.batch, parts(wanted, chunks));
    groups = parts(p.batch, group);
  }

  std::int64_t count() const { return chunks * groups; }
  MAST_EXT_HD std::int64_t columns() const { return chunks * chunk; }  // of whole chunks

 private:
  static std::int64_t parts(std::int64_t whole, std::int64_t part) {
    return (whole + part - 1) / part;
  }
};

// Stats are what the backward needs of a row's softmax: its largest logit (the center taken off)
// and the sum of exp((logit - largest) / temperature); not their log-sum-exp, which would be
// rounded as coarsely as large logits are.
struct PrototypeCrossEntropy {
  PrototypeLogits logits;
  PrototypeShares shares;
  void* partials;       // [B, PartialLayout::size(), chunks]
  void* column_sums;    // [groups, shares.columns()] of the teacher, or null
  void* student_stats;  // [2, S, B], the largest first
  void* teacher_stats;  // [2, T, B]
  void* cross_entropy;  // [T, S, B]
  void* teacher_mean;   // [C] over the T * B rows, or null
};

struct PrototypeCrossEntropyBackward {
  PrototypeLogits logits;
  PrototypeShares shares;
  const void* student_stats;  // [2, S, B]
  const void* teacher_stats;  // [2, T, B]
  const void* grad;           // [T, S, B]
  void* grad_student;         // [S, B, C] dense, aligned to 64 bytes
  bool large;                 // it exceeds the caches

  // Whether the CPU writes a float32 gradient past them, which takes rows of whole vectors.
  bool streaming() const { return large && logits.prototypes % 16 == 0; }
};

// On the CPU the rows of a chunk stay in the first-level cache, and there are shares enough for
// as many threads.
inline constexpr std::int64_t kPrototypeChunkCpu = 2048;
inline PrototypeShares prototype_shares_cpu(const PrototypeLogits& p) {
  return {p, kPrototypeChunkCpu, 64};
}

// Groups of whole images, for as many threads.
inline PrototypeShares prototype_groups_cpu(const PrototypeLogits& p) {
  PrototypeShares shares(p, kPrototypeChunkCpu, 1);
  shares.group = (p.batch + 63) / 64;
  shares.groups = (p.batch + shares.group - 1) / shares.group;
  return shares;
}

// On a GPU a warp takes an image's chunk, and a share is a block's: enough for every processor of
// a large one, few enough that the column sums of the groups are small beside the logits.
inline constexpr std::int64_t kPrototypeChunkCuda = 512;
inline PrototypeShares prototype_shares_cuda(const PrototypeLogits& p) {
  return {p, kPrototypeChunkCuda, 512};
}

// Shares [begin, end): partials and column sums.
void prototype_cross_entropy_cpu(const PrototypeCrossEntropy& p, std::int64_t begin,
                                 std::int64_t end);
// Images [begin, end): cross entropies and stats, from the partials.
void prototype_cross_entropy_merge_cpu(const PrototypeCrossEntropy& p, std::int64_t begin,
                                       std::int64_t end);
// Prototypes [begin, end) of the mean, from the column sums.
void prototype_mean_cpu(const PrototypeCrossEntropy& p, std::int64_t begin, std::int64_t end);
// Chunks [begin, end) of B * chunks.
void prototype_cross_entropy_backward_cpu(const PrototypeCrossEntropyBackward& p,
                                          std::int64_t begin, std::int64_t end);

// Groups [begin, end), forward and backward, an image at a time: its logits are read from memory
// once. Takes a chunk of kPrototypeChunkCpu and the same shares for both.
void prototype_cross_entropy_with_grad_cpu(const PrototypeCrossEntropy& p,
                                           const PrototypeCrossEntropyBackward& q,
                                           std::int64_t begin, std::int64_t end);
// The cross entropies' sum, weighted by q.grad, in accum_t: a pair of weight 0 is left out,
// infinite or not.
void prototype_weighted_sum_cpu(const PrototypeCrossEntropy& p,
                                const PrototypeCrossEntropyBackward& q, void* sum);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
int prototype_cross_entropy_cuda(const PrototypeCrossEntropy& p, CUstream_st* stream);
int prototype_cross_entropy_backward_cuda(const PrototypeCrossEntropyBackward& p,
                                          CUstream_st* stream);

}  // namespace mast_ext::kernels
