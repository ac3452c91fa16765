// The entry points of contrastive_logsumexp on CUDA: choose kernels by dtype and size, and launch
// them. Grids have one dimension, x, since the others are limited to 65535.
#include <algorithm>

#include "kernels/common/dtype_cuda.cuh"
#include "kernels/contrastive_logsumexp/contrastive_backward.cuh"
#include "kernels/contrastive_logsumexp/contrastive_forward.cuh"
#include "kernels/contrastive_logsumexp/contrastive_rows.cuh"
#include "kernels/contrastive_logsumexp/contrastive_weights.cuh"

namespace mast_ext::kernels {

using namespace contrastive;

namespace {

// Calls body(part) for the parts of the rows.
template <typename Tile, typename Body>
cudaError_t each_part(const Contrastive& p, const ContrastiveFusedPlan& plan, const Body& body) {
  const auto row_tiles = static_cast<int>(blocks(p.x.rows, Tile::kRows));
  const std::int64_t tiles = p.x.views * row_tiles;
  const auto row_of = [&](std::int64_t tile) {
    return tile / row_tiles * p.x.rows + tile % row_tiles * Tile::kRows;
  };
  std::int64_t slices = 0;
  for (std::int64_t first = 0; first < tiles; first += plan.tiles) {
    const std::int64_t last = std::min(first + plan.tiles, tiles);
    FusedPart part{.first_tile = static_cast<int>(first),
                   .tiles = static_cast<int>(last - first),
                   .row_tiles = row_tiles,
                   .first_row = row_of(first),
                   .rows = row_of(last) - row_of(first),
                   .first_slice = slices,
                   .slices = 0};
    part.slices = blocks(part.rows, plan.slice_rows);
    slices += part.slices;
    const cudaError_t error = body(part);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

int inverse_norms_cuda(const InverseNorms& p, cudaStream_t stream) {
  const unsigned grid = blocks(p.z.views * p.z.rows, kRowWarps);
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename>() {
    return launch(inverse_norms<T>, grid, kRowThreads, stream, p);
  });
}

int contrastive_rows_cuda(const ContrastiveRows& p, cudaStream_t stream) {
  const unsigned grid = blocks(p.slices, 1);
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename P>() {
    return p.grad_dtype == p.z.dtype
               ? launch(rows_of_slice<T, T, P>, grid, kRowThreads, stream, p)
               : launch(rows_of_slice<T, float, P>, grid, kRowThreads, stream, p);
  });
}

int contrastive_forward_cuda(const ContrastiveForward& f, cudaStream_t stream) {
  const Contrastive& p = f.p;
  const std::int64_t results = p.subspaces * p.x.views * p.y.views * p.x.rows;
  if (results == 0) return cudaSuccess;
  return visit_product_dtype(p.x.dtype, [&]<typename T, typename>() {
    using Tile = ProductTile<T>;
    const int shared_bytes = Tile::shared_bytes(p.x.dim);
    if (f.side > 0) {
      const std::int64_t sides = p.x.views * f.splits, squares = sides * (sides + 1) / 2;
      return launch_shared(forward_tiles<T, true>, blocks(squares * p.subspaces, 1), kTileThreads,
                           shared_bytes, stream, f);
    }
    const std::int64_t tiles = blocks(p.x.rows, Tile::kRows);
    const std::int64_t grid = tiles * p.subspaces * p.x.views * p.y.views * f.splits;
    return launch_shared(forward_tiles<T, false>, blocks(grid, 1), kTileThreads, shared_bytes,
                         stream, f);
  });
}

int contrastive_merge_cuda(const ContrastiveForward& f, cudaStream_t stream) {
  const std::int64_t results = f.p.subspaces * f.p.x.views * f.p.y.views * f.p.x.rows;
  if (results == 0 || !has_splits(f)) return cudaSuccess;
  return launch(merge_splits, blocks(results, kMergeThreads), kMergeThreads, stream, f, results);
}

int contrastive_weights_cuda(const ContrastiveWeights& f, cudaStream_t stream) {
  const Contrastive& p = f.b.p;
  return visit_product_dtype(p.x.dtype, [&]<typename T, typename W>() {
    using Tile = ProductTile<T>;
    const std::int64_t row_tiles = blocks(f.count, Tile::kRows);
    const std::int64_t tiles = row_tiles * blocks(p.y.rows, Tile::kColumns);
    return launch_shared(tile_weights<T, W>, blocks(tiles * p.y.views * f.views * p.subspaces, 1),
                         kTileThreads, weights_shared_bytes<T>(p.x.dim), stream, f);
  });
}

ContrastiveFusedPlan contrastive_fused_plan_cuda(const Contrastive& p, std::int64_t many_rows,
                                                 std::int64_t wanted_blocks) {
  // More rows than fill a large GPU several times are processed in parts, to bound the work space.
  constexpr std::int64_t kMostRows = 256 * kFusedBlocks, kMostSlices = 1024;
  ContrastiveFusedPlan plan{};
  plan.many_rows = p.x.views * p.x.rows >= many_rows;
  visit_product_dtype(p.x.dtype, [&]<typename T, typename>() {
    return visit_fused_tile<T>(p.x.dim, plan.many_rows, [&]<int kDim, bool kOwnRows>() {
      using Tile = FusedTile<T, kDim, kOwnRows>;
      const std::int64_t row_tiles = p.x.views * blocks(p.x.rows, Tile::kRows);
      const std::int64_t column_tiles = p.y.views * blocks(p.y.rows, Tile::kColumns);
      const std::int64_t shares =
          std::max<std::int64_t>(1, wanted_blocks / std::max<std::int64_t>(1, row_tiles));
      plan.subspaces = std::min(shares, std::max<std::int64_t>(1, p.subspaces));
      const std::int64_t splits = std::clamp<std::int64_t>(shares / plan.subspaces, 1,
                                                           std::max<std::int64_t>(1, column_tiles));
      // No more splits than the longest of them needs.
      const std::int64_t of_split = blocks(column_tiles, splits);
      plan.splits = of_split == 0 ? 1 : blocks(column_tiles, of_split);
      plan.tiles = std::min(row_tiles, kMostRows / Tile::kRows);
      const std::int64_t rows = p.x.views * p.x.rows;
      plan.slice_rows =
          kFinishRows * std::max<std::int64_t>(1, blocks(rows, kFinishRows * kMostSlices));
      plan.slices = 0;
      each_part<Tile>(p, plan, [&](const FusedPart& part) {
        plan.slices += part.slices;
        plan.partial =
            std::max(plan.partial, plan.subspaces * plan.splits * part.rows * (kDim + 1));
        return cudaSuccess;
      });
      return cudaSuccess;
    });
  });
  return plan;
}

int contrastive_fused_backward_cuda(const ContrastiveFusedBackward& f, cudaStream_t stream) {
  const Contrastive& p = f.b.p;
  const bool adds_up =
      f.grad_x != nullptr && p.subspaces < f.all_subspaces && p.x.dtype != DType::kFloat32;
  if (p.x.dim > most_fused_dims(p.x.dtype) || p.subspaces > f.plan.subspaces ||
      (adds_up && f.sum == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return visit_product_dtype(p.x.dtype, [&]<typename T, typename>() {
    return visit_fused_tile<T>(p.x.dim, f.plan.many_rows, [&]<int kDim, bool kOwnRows>() {
      using Tile = FusedTile<T, kDim, kOwnRows>;
      return each_part<Tile>(p, f.plan, [&](const FusedPart& part) {
        const PartialSums partial(f, part, kDim);
        const std::int64_t grid = part.tiles * f.plan.splits * p.subspaces;
        const cudaError_t error =
            launch_shared(fused_backward<T, kDim, kOwnRows>, blocks(grid, 1), kFusedThreads,
                          Tile::kSharedBytes, stream, f.b, part, partial);
        if (error != cudaSuccess) return error;
        return launch(finish_rows<T, kDim>, blocks(part.slices, 1), kFinishThreads, stream, f, part,
                      partial);
      });
    });
  });
}

int mask_rows_cuda(const MaskedRows& p, cudaStream_t stream) {
  if (p.z.dtype != DType::kBFloat16) return cudaErrorInvalidValue;
  const std::int64_t rows = p.subspaces * p.z.views * p.z.rows;
  return launch(mask_rows<c10::BFloat16>, blocks(rows, kRowWarps), kRowThreads, stream, p);
}

}  // namespace mast_ext::kernels
