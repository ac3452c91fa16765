// sigmoid_contrast: SigLIP's loss (Zhai et al. 2023) of every row of x [N, D] against all rows of
// y [M, D], which are the columns of the logits. The logits are never stored.
//
//   z[n, m] = scale cos(x_n, y_m) + bias
//   loss[n] = sum_m softplus(m = n + offset ? -z[n, m] : z[n, m])
//
// Backward. With g the gradient of loss, the weight of an entry is
//
//   W[n, m] = dL/dz = g_n (m = n + offset ? -sigmoid(-z) : sigmoid(z))
//   grad scale = sum W cos      grad bias = sum W      G_n = scale rx_n sum_m W ry_m y_m
//
// and G of the columns alike, with r = 1 / max(norm, 1e-8). From G the gradients of x and y follow
// as in contrastive_logsumexp.h, whose rows, norms and tiles these kernels share.
#pragma once

#include <cstdint>

#include "kernels/contrastive_logsumexp/contrastive_logsumexp.h"

namespace mast_ext::kernels {

// ---- CPU: a tile of products <x, y>, in place

struct SigmoidTile {
  DType dtype;  // of everything here: float32 or float64
  std::int64_t rows, columns;
  std::int64_t stride;   // between the rows of `products`
  std::int64_t partner;  // column of row 0's positive, counted from the tile's first; any sign
  bool has_positive;     // column row + partner, if inside the tile, is the row's positive
  double scale, bias;
  const void* row_scale;     // [rows], 1 / norm
  const void* column_scale;  // [columns]
  void* products;            // [rows, columns]; replaced by W scale rx ry if there is a gradient
  void* loss;                // [rows], added to, or null
  const void* grad;          // [rows] g, or null: no gradient is wanted
  void* grad_scale;          // [rows], the rows' sums of W cos, added to; as grad_bias with `grad`
  void* grad_bias;           // [rows], of W
};

// Rows [begin, end) of the tile.
void sigmoid_tile_cpu(const SigmoidTile& p, std::int64_t begin, std::int64_t end);

// ---- CUDA: rows [first, first + count) against all columns

struct SigmoidSweep {
  Contrastive p;  // one view each, no masks; its temperature has no meaning here
  const float* scale;
  const float* bias;
  std::int64_t first, count;
  std::int64_t splits;          // shares of the columns, one thread block each
  float* loss;                  // [splits, count], or null
  const float* grad;            // [N] g, or null: no gradient is wanted
  float* grad_scale;            // [splits, count]; as grad_bias with `grad`
  float* grad_bias;             // [splits, count]
  DType dtype;                  // of weights: bfloat16 for bfloat16 embeddings, else float32
  void* weights;                // [count, weights_stride] W scale rx ry of M columns, or null
  std::int64_t weights_stride;  // even, so that two neighbors are written at once
};

// Queues on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
[[gnu::weak]] int sigmoid_sweep_cuda(const SigmoidSweep& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
