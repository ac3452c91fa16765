#include "kernels/sliced_characteristic_sums/sliced_characteristic_sums.h"

#include <ATen/ThreadLocalState.h>

#include <algorithm>
#include <cmath>

#include "host/common/caching_allocator.h"
#include "host/common/checks.h"
#include "host/common/chunk_limit.h"
#include "host/common/products.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The checked arguments that forward and backward share, and the tiles of projections.
struct Projections {
  Tensor z, slices;
  kernels::KnotGrid grid;
  std::int64_t views, rows, dim, count;  // V, N, D, M

  Projections(const Tensor& z_, const Tensor& slices_, std::int64_t knots, double t_min,
              double t_max) {
    TORCH_CHECK_VALUE(z_.dim() == 3 && z_.size(2) >= 1,
                      "z must have shape [V, N, D] with D >= 1, got ", z_.sizes());
    dtype_of(z_, "z");
    TORCH_CHECK_VALUE(slices_.dim() == 2 && slices_.size(0) == z_.size(2) && slices_.size(1) >= 1,
                      "slices must have shape [", z_.size(2), ", M] with M >= 1 to fit z of shape ",
                      z_.sizes(), ", got ", slices_.sizes());
    check_device(slices_, "slices", z_, "z");
    check_accumulation(slices_, "slices", z_, "embeddings");
    TORCH_CHECK_VALUE(knots >= 2, "knots must be at least 2, got ", knots);
    TORCH_CHECK_VALUE(std::isfinite(t_min) && std::isfinite(t_max) && t_min < t_max,
                      "t_min and t_max must be finite, and t_min less than t_max, got ", t_min,
                      " and ", t_max);
    z = z_, slices = slices_;
    views = z.size(0), rows = z.size(1), dim = z.size(2), count = slices.size(1);
    grid = {
        .knots = knots, .t_min = t_min, .step = (t_max - t_min) / static_cast<double>(knots - 1)};
  }

  Tensor new_sums(at::IntArrayRef shape) const {
    return z.new_empty(shape, z.options().dtype(accumulation_type(z)));
  }

  // Of the rows of projections: at a distance of a power of two they would share cache sets.
  std::int64_t stride() const { return (count + 31) / 16 * 16; }

  // Calls body(view, views, row, rows, memory) for every tile: some views, or some rows of one,
  // with memory for a tile if `needs_memory`. Views have nothing to do with each other: if the
  // threads of a CPU can share them evenly, each takes whole tiles and waits for the others only at
  // the end.
  template <typename Body>
  void each_tile(bool needs_memory, const Body& body) const {
    if (views == 0 || rows == 0) return;
    const std::int64_t most = most_rows(), step = std::max<std::int64_t>(most / rows, 1);
    const std::int64_t groups = (views + step - 1) / step, threads = at::get_num_threads();
    const at::ThreadLocalState state;
    const auto each_of = [&](std::int64_t begin, std::int64_t end) {
      const at::ThreadLocalStateGuard as_there(state);  // no gradient; inference mode, or not
      const Tensor memory = needs_memory ? new_tile() : Tensor();
      for (std::int64_t v = begin * step; v < std::min(end * step, views); v += step) {
        for (std::int64_t n = 0; n < rows; n += most) {
          body(v, std::min(step, views - v), n, std::min(most, rows - n), memory);
        }
      }
    };
    const bool evenly = groups % threads == 0 || groups > 4 * threads;
    if (uses_cuda_kernels(z) || !evenly) return each_of(0, groups);
    parallel_rows(groups, std::min(step, views) * rows * dim * count, each_of);
  }

  // Whether projections can be kept for the backward, which takes memory of the order of z's. With
  // few dimensions they would take more, and are made again fast.
  bool can_keep() const { return count <= 2 * dim; }

  // The memory of the largest tile.
  Tensor new_tile() const {
    return new_workspace(z, {std::min(most_rows(), views * rows) * stride()}, accumulation_type(z));
  }

  // The rows of a tile as a matrix [views * rows, D] in the accumulation type.
  Tensor embeddings(std::int64_t view, std::int64_t views_, std::int64_t row,
                    std::int64_t rows_) const {
    const Tensor part = z.narrow(0, view, views_).narrow(1, row, rows_);
    return part.to(accumulation_type(z)).reshape({views_ * rows_, dim});
  }

  // A tile [views * rows, M] in dense memory with room for it.
  Tensor tile_in(const Tensor& memory, std::int64_t length) const {
    return memory.view({-1})
        .narrow(0, 0, length * stride())
        .view({length, stride()})
        .narrow(1, 0, count);
  }

  // The tile of projections of some rows of some views, as made by the forward.
  Tensor kept_tile(const Tensor& kept, std::int64_t view, std::int64_t views_, std::int64_t row,
                   std::int64_t rows_) const {
    return tile_in(kept.narrow(0, view, views_).narrow(1, row, rows_), views_ * rows_);
  }

  kernels::ProjectionTile shape(std::int64_t views_, std::int64_t rows_) const {
    return {.dtype = dtype_of(slices, "slices"),
            .views = views_,
            .rows = rows_,
            .slices = count,
            .stride = stride(),
            .grid = grid};
  }

  // The approximate number of scalar steps of a block of slices.
  std::int64_t block_cost(std::int64_t rows_) const {
    return rows_ * kernels::kSliceBlock * grid.knots;
  }

 private:
  // A tile fits the second-level cache of a CPU's core or two, or that of a GPU.
  static constexpr std::int64_t kGpuTile = 1 << 22;
  static constexpr std::int64_t kCpuTile = 1 << 18;

  std::int64_t most_rows() const {
    return std::max<std::int64_t>((uses_cuda_kernels(z) ? chunk_limit(kGpuTile) : kCpuTile) / count,
                                  32);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> sliced_characteristic_sums(const Tensor& z, const Tensor& slices,
                                                      std::int64_t knots, double t_min,
                                                      double t_max, bool keep) {
  const PlainTensors plain;
  const Projections in(z, slices, knots, t_min, t_max);
  Tensor sums = in.new_sums({in.views, knots, 2, in.count});
  const bool keeps = keep && in.can_keep();
  const Tensor kept = keeps ? new_workspace(z, {in.views, in.rows, in.stride()}, sums.scalar_type())
                            : in.new_sums({0});
  if (in.rows == 0) return {sums.zero_(), kept};
  const bool cuda = uses_cuda_kernels(z);
  in.each_tile(!keeps, [&](std::int64_t view, std::int64_t views, std::int64_t row,
                           std::int64_t rows, const Tensor& memory) {
    const Tensor tile =
        keeps ? in.kept_tile(kept, view, views, row, rows) : in.tile_in(memory, views * rows);
    multiply(tile, in.embeddings(view, views, row, rows), slices, false);
    const Tensor part = sums.narrow(0, view, views);
    const std::int64_t shares = cuda ? kernels::row_shares(views, rows, in.count) : 1;
    Tensor parts;
    if (shares > 1) parts = in.new_sums({shares, views, knots, 2, in.count});
    const kernels::SlicedCharacteristicSums p{
        .tile = in.shape(views, rows),
        .projections = tile.const_data_ptr(),
        .add = row > 0,
        .sums = part.mutable_data_ptr(),
        .shares = shares,
        .parts = element(parts),
    };
    run_on(
        z,
        [&] {
          parallel_rows(views * kernels::slice_blocks(in.count), in.block_cost(rows),
                        [&](auto begin, auto end) {
                          kernels::sliced_characteristic_sums_cpu(p, begin, end);
                        });
        },
        [&](auto stream) { return kernels::sliced_characteristic_sums_cuda(p, stream); });
  });
  return {sums, kept};
}

Tensor sliced_characteristic_sums_backward(const Tensor& grad_sums_, const Tensor& z,
                                           const Tensor& slices, const Tensor& kept_, double t_min,
                                           double t_max) {
  const PlainTensors plain;
  TORCH_CHECK_VALUE(grad_sums_.dim() == 4, "grad_sums must have shape [V, knots, 2, M], got ",
                    grad_sums_.sizes());
  const std::int64_t knots = grad_sums_.size(1);
  const Projections in(z, slices, knots, t_min, t_max);
  check_shape(grad_sums_, "grad_sums", {in.views, knots, 2, in.count});
  check_device(grad_sums_, "grad_sums", z, "z");
  check_accumulation(grad_sums_, "grad_sums", z, "embeddings");
  if (in.can_keep()) {
    check_shape(kept_, "projections", {in.views, in.rows, in.stride()});
    check_device(kept_, "projections", z, "z");
    check_accumulation(kept_, "projections", z, "embeddings");
  }
  const Tensor grad_sums = grad_sums_.contiguous(), kept = kept_.contiguous();
  Tensor grad_z = new_result(z, z.sizes());
  if (grad_z.numel() == 0) return grad_z;
  in.each_tile(true, [&](std::int64_t view, std::int64_t views, std::int64_t row, std::int64_t rows,
                         const Tensor& memory) {
    const Tensor tile = in.tile_in(memory, views * rows);
    Tensor projections = tile;
    if (in.can_keep()) {
      projections = in.kept_tile(kept, view, views, row, rows);
    } else {
      multiply(tile, in.embeddings(view, views, row, rows), slices, false);
    }
    const kernels::SlicedCharacteristicSumsBackward p{
        .tile = in.shape(views, rows),
        .grad_sums = grad_sums.narrow(0, view, views).const_data_ptr(),
        .projections = projections.const_data_ptr(),
        .grad = tile.mutable_data_ptr(),
    };
    run_on(
        z,
        [&] {
          parallel_rows(views * kernels::slice_blocks(in.count), in.block_cost(rows),
                        [&](auto begin, auto end) {
                          kernels::sliced_characteristic_sums_backward_cpu(p, begin, end);
                        });
        },
        [&](auto stream) { return kernels::sliced_characteristic_sums_backward_cuda(p, stream); });
    const Tensor grad =
        grad_z.narrow(0, view, views).narrow(1, row, rows).view({views * rows, in.dim});
    if (grad.scalar_type() == tile.scalar_type()) {
      multiply(grad, tile, in.slices.t(), false);
    } else {
      grad.copy_(tile.mm(in.slices.t()));
    }
  });
  return grad_z;
}

}  // namespace mast_ext
