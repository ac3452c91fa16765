// prototype_cross_entropy: the cross entropy of every student view with every teacher view of the
// same image, over C prototypes, from raw logits x [S, B, C] and y [T, B, C]:
//
//   CE[t,s,b] = log sum_c exp(x_sbc / r) - sum_c softmax_c((y_tbc - center_c) / u) x_sbc / r
//
// A share of the work is a chunk of prototypes in a group of images. For every image a share writes
// a partial: the largest logit and the sum of exponentials of every row, and the dot product of
// every pair, over the chunk. Partials are then merged (prototype_cross_entropy_math.h) in a fixed
// order. The teacher's column sums, for which the logits need not be read again, are kept per
// group. Shares depend on the sizes alone, so that results do not depend on the threads' number.
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"
#include "kernels/common/listed_views.h"

namespace mast_ext::kernels {

struct PrototypeLogits {
  DType dtype;
  std::int64_t students, teachers;  // S and T views
  std::int64_t batch, prototypes;   // B, C
  ListedViews<const void> student;  // [S, B, C]
  ListedViews<const void> teacher;  // [T, B, C]
  const void* center;               // [C] in accum_t, or null
  double student_temperature, teacher_temperature;
};

struct PrototypeShares {
  std::int64_t chunk, chunks;  // prototypes of a chunk; ceil(C / chunk)
  std::int64_t group, groups;  // images of a group; ceil(B / group)

  // Chunks of `chunk_` prototypes, and as few groups as give `wanted` shares.
  PrototypeShares(const PrototypeLogits& p, std::int64_t chunk_, std::int64_t wanted)
      : chunk(chunk_), chunks(divide_up(p.prototypes, chunk)) {
    group = divide_up(p.batch, divide_up(wanted, chunks));
    groups = divide_up(p.batch, group);
  }

  std::int64_t count() const { return chunks * groups; }
  MAST_EXT_HD std::int64_t columns() const { return chunks * chunk; }  // C rounded up to chunks

 private:
  static std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
};

// The stats of a row are what the backward needs of its softmax: the largest logit (after the
// center is subtracted) and the sum of exp((logit - largest) / temperature). A single log-sum-exp
// would be as imprecise as large logits are.
struct PrototypeCrossEntropy {
  PrototypeLogits logits;
  PrototypeShares shares;
  void* partials;       // [B, PartialLayout::size(), chunks]
  void* column_sums;    // [groups, shares.columns()] of the teacher, or null
  void* student_stats;  // [2, S, B]: largest logits, sums
  void* teacher_stats;  // [2, T, B]
  void* cross_entropy;  // [T, S, B]
  void* teacher_mean;   // [C] over the T * B rows, or null
};

struct PrototypeCrossEntropyBackward {
  PrototypeLogits logits;
  PrototypeShares shares;
  const void* student_stats;       // [2, S, B]
  const void* teacher_stats;       // [2, T, B]
  const void* grad;                // [T, S, B]
  ListedViews<void> grad_student;  // [S, B, C], every view dense and aligned to 64 bytes
  bool large;                      // grad_student exceeds the caches

  // Whether the CPU writes a float32 gradient by streaming stores: rows must be whole vectors.
  bool streaming() const { return large && logits.prototypes % 16 == 0; }
};

// On the CPU a chunk of a row stays in the first-level cache, and 64 shares occupy 64 threads.
inline constexpr std::int64_t kPrototypeChunkCpu = 2048;
inline PrototypeShares prototype_shares_cpu(const PrototypeLogits& p) {
  return {p, kPrototypeChunkCpu, 64};
}

// For prototype_cross_entropy_with_grad_cpu(): up to 64 groups of images, each with all its chunks.
inline PrototypeShares prototype_groups_cpu(const PrototypeLogits& p) {
  PrototypeShares shares(p, kPrototypeChunkCpu, 1);
  shares.group = (p.batch + 63) / 64;
  shares.groups = (p.batch + shares.group - 1) / shares.group;
  return shares;
}

// On a GPU a thread block takes a share, and each of its warps an image's chunk. 512 shares keep
// all multiprocessors of a large GPU busy; few enough for the groups' column sums to be small
// beside the logits.
inline constexpr std::int64_t kPrototypeChunkCuda = 512;
inline PrototypeShares prototype_shares_cuda(const PrototypeLogits& p) {
  return {p, kPrototypeChunkCuda, 512};
}

// Shares [begin, end): writes partials and column sums.
void prototype_cross_entropy_cpu(const PrototypeCrossEntropy& p, std::int64_t begin,
                                 std::int64_t end);
// Images [begin, end): computes cross entropies and stats from the partials.
void prototype_cross_entropy_merge_cpu(const PrototypeCrossEntropy& p, std::int64_t begin,
                                       std::int64_t end);
// Prototypes [begin, end): computes teacher_mean from the column sums.
void prototype_mean_cpu(const PrototypeCrossEntropy& p, std::int64_t begin, std::int64_t end);
// Chunks [begin, end) of B * chunks.
void prototype_cross_entropy_backward_cpu(const PrototypeCrossEntropyBackward& p,
                                          std::int64_t begin, std::int64_t end);

// Groups [begin, end): forward and backward of one image after the other, whose logits are so read
// from memory once. The shares of p and q are the same, with chunks of kPrototypeChunkCpu.
void prototype_cross_entropy_with_grad_cpu(const PrototypeCrossEntropy& p,
                                           const PrototypeCrossEntropyBackward& q,
                                           std::int64_t begin, std::int64_t end);
// Writes the sum of the cross entropies, weighted by q.grad, in accum_t. A pair of weight 0 adds
// nothing, even if its cross entropy is infinite.
void prototype_weighted_sum_cpu(const PrototypeCrossEntropy& p,
                                const PrototypeCrossEntropyBackward& q, void* sum);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int prototype_cross_entropy_cuda(const PrototypeCrossEntropy& p, CUstream_st* stream);
[[gnu::weak]] int prototype_cross_entropy_backward_cuda(const PrototypeCrossEntropyBackward& p,
                                                        CUstream_st* stream);

}  // namespace mast_ext::kernels
