// gram_difference: for every image, the mean squared difference of the products of all pairs of its
// tokens, in s and in t [B, N, D].
//
//   G = s s^T - t t^T          difference = |G|_F^2 / N^2
//
// With a = s - t, b = s + t and z = (a, b) [N, 2 D]
//
//   G = (a b^T + b a^T) / 2    so that the digits of a small difference are not lost
//   |G|_F^2 = (<P, Q> + <R, R^T>) / 2     where z^T z = (P R; R^T Q), [2 D, 2 D]
//
// The Gram form computes a b^T, tile by tile; the moment form, for many tokens, computes z^T z.
//
// Negative products may be removed, in the Gram form. With x = s s^T and y = t t^T, y < 0 counts as
// 0, and so does x < 0: wherever it is, or only where y < 0, too.
//
// Backward, with g the gradient of the difference and c = 4 g / N^2
//
//   grad s = c G s = c/4 z (R^T + Q; P + R)      grad t = -c G t = c/4 z (R^T - Q; P - R)
//
// where an element of G is 0 in grad s (grad t) if that of x (y) was removed.
//
// This is the contract between the host code, which fills in the structs and multiplies matrices,
// and the kernels, which read them. s and t have dense rows; everything else is dense, and in
// accum_t.
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/views.h"

namespace mast_ext::kernels {

// Which negative products are removed: none, the teacher's (t) together with those of the student
// (s) at the same place, or all.
enum class RemoveNegative { kNone, kTeacher, kBoth };

// Sums are made over blocks of this many rows, and then over the blocks.
inline constexpr std::int64_t kGramRows = 32;
inline std::int64_t gram_blocks(std::int64_t rows) { return (rows + kGramRows - 1) / kGramRows; }

// z of some images and rows. `s` and `t` begin at the first ones.
struct GramOperands {
  DType dtype;  // of s and t
  std::int64_t images, rows, dim;
  Views s, t;
  void* z;  // [images, rows, 2 D]
};

// A tile of G of some images. On the diagonal its products are a b^T, the transpose of which is
// b a^T; off the diagonal they are a b^T + b a^T.
struct GramTile {
  DType dtype;
  RemoveNegative remove;
  bool diagonal;
  std::int64_t images, rows, columns;
  const void* products;  // [images, rows, columns]
  const void* teacher;   // [images, rows, columns], t t^T; not read if nothing is removed

  // Forward: sums of squares over blocks of rows; += if `add`.
  double weight = 1;  // of an element: a tile off the diagonal stands for its mirror image, too
  bool add = false;
  double* sums = nullptr;  // [images, ...] of gram_blocks(rows)
  std::int64_t sums_stride = 0;

  // Backward: c G, with a factor of 4 / N^2 in c.
  const void* grad = nullptr;       // [images]
  double scale = 0;                 // 4 / N^2
  void* student_weights = nullptr;  // [images, rows, columns]; null if not wanted
  void* teacher_weights = nullptr;  // -c G
};

// z^T z of some images.
struct GramMoments {
  DType dtype;
  std::int64_t images, dim;
  const void* moments;  // [images, 2 D, 2 D]

  double* sums = nullptr;  // [images, gram_blocks(D)]: <P, Q> + <R, R^T> of blocks of rows

  const void* grad = nullptr;      // [images]
  double scale = 0;                // 1 / N^2
  void* student_matrix = nullptr;  // [images, 2 D, D]: c/4 (R^T + Q; P + R), or null
  void* teacher_matrix = nullptr;  // c/4 (R^T - Q; P - R), or null
};

struct GramFinish {
  DType dtype;
  std::int64_t images, blocks;
  const double* sums;  // [images, blocks]
  double scale;
  void* difference;  // [images]
};

// Rows [begin, end) of all images.
void gram_operands_cpu(const GramOperands& p, std::int64_t begin, std::int64_t end);
// Blocks of rows [begin, end) of all images.
void gram_tile_cpu(const GramTile& p, std::int64_t begin, std::int64_t end);
void gram_tile_backward_cpu(const GramTile& p, std::int64_t begin, std::int64_t end);
void gram_moments_cpu(const GramMoments& p, std::int64_t begin, std::int64_t end);
// Rows [begin, end) of the matrices of all images.
void gram_moments_backward_cpu(const GramMoments& p, std::int64_t begin, std::int64_t end);
void gram_finish_cpu(const GramFinish& p);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int gram_operands_cuda(const GramOperands& p, CUstream_st* stream);
[[gnu::weak]] int gram_tile_cuda(const GramTile& p, CUstream_st* stream);
[[gnu::weak]] int gram_tile_backward_cuda(const GramTile& p, CUstream_st* stream);
[[gnu::weak]] int gram_moments_cuda(const GramMoments& p, CUstream_st* stream);
[[gnu::weak]] int gram_moments_backward_cuda(const GramMoments& p, CUstream_st* stream);
[[gnu::weak]] int gram_finish_cuda(const GramFinish& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
