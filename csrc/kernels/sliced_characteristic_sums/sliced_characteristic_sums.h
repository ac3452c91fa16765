// sliced_characteristic_sums: sums of cosines and sines of the projections x = z slices of every
// view z [N, D] on slices [D, M], at the knots t_k = t_min + k step of a uniform grid
//
//   sums[v, k, 0, m] = sum_n cos(t_k x_vnm)        sums[v, k, 1, m] = sum_n sin(t_k x_vnm)
//
// Divided by N they are the empirical characteristic function of each slice. Backward, with G the
// gradient of sums,
//
//   grad x_vnm = sum_k t_k (G[v, k, 1, m] cos(t_k x_vnm) - G[v, k, 0, m] sin(t_k x_vnm))
//   grad z     = grad x slices^T
//
// The host code computes the products, one tile of projections at a time, and keeps them for the
// backward or makes them again; the kernels do what is between the products. They need a cosine and
// a sine per projection, not per knot: the other knots' are powers of the rotation w = e^{i step
// x}.
//
// This is the contract between the host code, which fills in the structs, and the kernels, which
// read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// Knots that follow from each other by multiplication with w. Each group of them begins with a
// cosine and a sine of its own, so that errors do not grow with the number of knots.
inline constexpr std::int64_t kKnotGroup = 17;

struct KnotGrid {
  std::int64_t knots;
  double t_min, step;

  MAST_EXT_HD double t(std::int64_t k) const { return t_min + static_cast<double>(k) * step; }

  // The number of knots in the group that begins at knot `first`.
  MAST_EXT_HD std::int64_t group_size(std::int64_t first) const {
    return knots - first < kKnotGroup ? knots - first : kKnotGroup;
  }
};

// Projections of the same rows of some views.
struct ProjectionTile {
  DType dtype;  // of all numbers: float32 or float64
  std::int64_t views, rows, slices;
  std::int64_t stride;  // of the rows
  KnotGrid grid;
};

// Rows of a view are divided into shares that thread blocks of a GPU add up on their own, in
// `shares` parts, which are then added in order. On the CPU, and for a single share, it is null.
struct SlicedCharacteristicSums {
  ProjectionTile tile;
  const void* projections;  // [views, rows, slices]
  bool add;                 // to what is in sums; else that is overwritten
  void* sums;               // [views, knots, 2, slices]
  std::int64_t shares;
  void* parts;  // [shares, views, knots, 2, slices], or null
};

struct SlicedCharacteristicSumsBackward {
  ProjectionTile tile;
  const void* grad_sums;    // [views, knots, 2, slices]
  const void* projections;  // [views, rows, slices]
  void* grad;               // of projections, alike; may be the same memory
};

// The CPU takes this many slices at a time, so that their sums stay in the first-level cache.
inline constexpr std::int64_t kSliceBlock = 32;
inline std::int64_t slice_blocks(std::int64_t slices) {
  return (slices + kSliceBlock - 1) / kSliceBlock;
}

// Shares of a view's rows on a GPU: enough thread blocks to fill it, with at least 32 rows each.
inline constexpr std::int64_t kSlicesPerBlock = 32;
inline std::int64_t row_shares(std::int64_t views, std::int64_t rows, std::int64_t slices) {
  constexpr std::int64_t kEnoughBlocks = 1024;
  const std::int64_t blocks = views * ((slices + kSlicesPerBlock - 1) / kSlicesPerBlock);
  return std::clamp<std::int64_t>(kEnoughBlocks / std::max<std::int64_t>(blocks, 1), 1,
                                  std::max<std::int64_t>(rows / 32, 1));
}

// Blocks [begin, end) of views * slice_blocks(slices).
void sliced_characteristic_sums_cpu(const SlicedCharacteristicSums& p, std::int64_t begin,
                                    std::int64_t end);
// The same.
void sliced_characteristic_sums_backward_cpu(const SlicedCharacteristicSumsBackward& p,
                                             std::int64_t begin, std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when every launch was accepted.
[[gnu::weak]] int sliced_characteristic_sums_cuda(const SlicedCharacteristicSums& p,
                                                  CUstream_st* stream);
[[gnu::weak]] int sliced_characteristic_sums_backward_cuda(
    const SlicedCharacteristicSumsBackward& p, CUstream_st* stream);

}  // namespace mast_ext::kernels
