// The entry points of contrastive_logsumexp on CUDA: choose kernels by dtype and size, and launch
// them. Grids have one dimension, x, since the others are limited to 65535.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/contrastive_logsumexp/contrastive_backward.cuh"
#include "kernels/contrastive_logsumexp/contrastive_forward.cuh"
#include "kernels/contrastive_logsumexp/contrastive_rows.cuh"
#include "kernels/contrastive_logsumexp/contrastive_weights.cuh"

namespace mast_ext::kernels {

using namespace contrastive;

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
  const cudaError_t error = visit_product_dtype(p.x.dtype, [&]<typename T, typename>() {
    using Tile = ProductTile<T>;
    const std::int64_t tiles = blocks(p.x.rows, Tile::kRows);
    const std::int64_t grid = tiles * p.subspaces * p.x.views * p.y.views * f.splits;
    return launch_shared(forward_tiles<T>, blocks(grid, 1), kTileThreads,
                         Tile::shared_bytes(p.x.dim), stream, f);
  });
  if (error != cudaSuccess || f.splits == 1) return error;
  return launch(merge_splits, blocks(results, kMergeThreads), kMergeThreads, stream, f, results);
}

int contrastive_weights_cuda(const ContrastiveWeights& f, cudaStream_t stream) {
  const Contrastive& p = f.b.p;
  return visit_product_dtype(p.x.dtype, [&]<typename T, typename W>() {
    using Tile = ProductTile<T>;
    const std::int64_t row_tiles = blocks(f.count, Tile::kRows);
    const std::int64_t grid = row_tiles * blocks(p.y.rows, Tile::kColumns) * p.y.views;
    return launch_shared(tile_weights<T, W>, blocks(grid, 1), kTileThreads,
                         weights_shared_bytes<T>(p.x.dim), stream, f);
  });
}

std::int64_t fused_backward_slices_cuda(const Contrastive& p) {
  std::int64_t slices = 0;
  visit_product_dtype(p.x.dtype, [&]<typename T, typename>() {
    return visit_fused_dim<T>(p.x.dim, [&]<typename, int kDim>() {
      slices = p.x.views * blocks(p.x.rows, FusedTile<T, kDim>::kRows);
      return cudaSuccess;
    });
  });
  return slices;
}

int contrastive_fused_backward_cuda(const ContrastiveFusedBackward& f, cudaStream_t stream) {
  const Contrastive& p = f.b.p;
  const bool adds_up = f.grad_x != nullptr && p.subspaces > 1 && p.x.dtype != DType::kFloat32;
  if (p.x.dim > most_fused_dims(p.x.dtype) || (adds_up && f.sum == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return visit_product_dtype(p.x.dtype, [&]<typename T, typename>() {
    return visit_fused_dim<T>(p.x.dim, [&]<typename, int kDim>() {
      return launch_shared(fused_backward<T, kDim>, blocks(f.slices, 1), kFusedThreads,
                           FusedTile<T, kDim>::kSharedBytes, stream, f);
    });
  });
}

}  // namespace mast_ext::kernels
