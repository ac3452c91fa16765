#include "kernels/nearest_neighbor_distance/nearest_neighbor_distance.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "host/columns/column_passes.h"
#include "host/common/chunk_limit.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

Tensor checked_rows(const Tensor& x, double eps) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) != 1 && x.size(1) >= 1,
                    "x must have shape [N, D] with D >= 1 and another row to every row (N != 1), "
                    "got ",
                    x.sizes());
  dtype_of(x, "x");
  TORCH_CHECK_VALUE(eps > 0, "eps must be positive, got ", eps);
  return dense_rows(x);
}

// The rows of x, normalized, in the accumulation type. CUDA kernels normalize rows as they read
// them, and `rows` is empty.
struct Unit {
  Tensor x, rows, inv_norm;
  kernels::UnitRows p;

  Unit(const Tensor& x_, double eps) : x(checked_rows(x_, eps)) {
    inv_norm = x.new_empty({x.size(0)}, x.options().dtype(accumulation_type(x)));
    rows = inv_norm.new_empty({uses_cuda_kernels(x) ? 0 : x.size(0), x.size(1)});
    p = {.dtype = dtype_of(x, "x"),
         .rows = x.size(0),
         .dim = x.size(1),
         .x = x.const_data_ptr(),
         .row_stride = x.stride(0),
         .eps = eps,
         .unit = rows.mutable_data_ptr(),
         .inv_norm = inv_norm.mutable_data_ptr()};
  }

  void compute_on_cpu() const {
    parallel_rows(p.rows, p.dim,
                  [&](auto begin, auto end) { kernels::unit_rows_cpu(p, begin, end); });
  }
};

// Finds the largest cosine of every row and the index of the row it is with, from the tiles on and
// above the diagonal.
void search(const Tensor& unit, const Tensor& cosine, const Tensor& index) {
  constexpr std::int64_t kTile = 256;
  // Between rows of a tile: at a distance of a power of two they would share cache sets.
  constexpr std::int64_t kPadding = 16;
  const std::int64_t rows = unit.size(0), most = std::min(rows, kTile);
  Tensor buffer = unit.new_empty({most * (most + kPadding)});
  cosine.fill_(std::numeric_limits<double>::quiet_NaN());
  for (std::int64_t row = 0; row < rows; row += kTile) {
    const Tensor a = unit.narrow(0, row, std::min(kTile, rows - row));
    for (std::int64_t column = row; column < rows; column += kTile) {
      const Tensor b = unit.narrow(0, column, std::min(kTile, rows - column));
      const std::int64_t stride = b.size(0) + kPadding;
      const Tensor products =
          buffer.narrow(0, 0, a.size(0) * stride).view({a.size(0), stride}).narrow(1, 0, b.size(0));
      multiply(products, a, b.t(), false);
      const kernels::NearestTile p{
          .dtype = dtype_of(unit, "unit"),
          .first_row = row,
          .rows = a.size(0),
          .first_column = column,
          .columns = b.size(0),
          .products = products.const_data_ptr(),
          .stride = stride,
          .cosine = cosine.mutable_data_ptr(),
          .index = static_cast<std::int64_t*>(index.mutable_data_ptr()),
      };
      parallel_rows(p.rows, p.columns,
                    [&](auto begin, auto end) { kernels::nearest_tile_rows_cpu(p, begin, end); });
      if (row == column) continue;
      parallel_rows(p.columns, p.rows, [&](auto begin, auto end) {
        kernels::nearest_tile_columns_cpu(p, begin, end);
      });
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> nearest_neighbor_distance(const Tensor& x, double eps) {
  const PlainTensors plain;
  const Unit unit(x, eps);
  const std::int64_t rows = unit.p.rows, dim = unit.p.dim;
  Tensor distance = unit.rows.new_empty({rows});
  Tensor index = x.new_empty({rows}, x.options().dtype(at::kLong));
  if (rows == 0) return {distance, index};

  const bool cuda = uses_cuda_kernels(x);
  Tensor cosine = unit.rows.new_empty({cuda ? 0 : rows});
  const kernels::NeighborDistances measure{
      .dtype = dtype_of(unit.rows, "x"),
      .rows = rows,
      .dim = dim,
      .unit = unit.rows.const_data_ptr(),
      .eps = eps,
      .cosine = cosine.const_data_ptr(),
      .index = static_cast<std::int64_t*>(index.mutable_data_ptr()),
      .distance = distance.mutable_data_ptr(),
  };
  run_on(
      x,
      [&] {
        unit.compute_on_cpu();
        search(unit.rows, cosine, index);
        parallel_rows(rows, dim, [&](auto begin, auto end) {
          kernels::neighbor_distances_cpu(measure, begin, end);
        });
      },
      [&](auto stream) {
        kernels::NearestSearch search =
            kernels::plan_nearest_search(rows, dim, chunk_limit(kernels::kMostRowsInSmallTiles),
                                         chunk_limit(kernels::kMostNearestSlots));
        const std::int64_t planes = kernels::nearest_planes(unit.p.dtype);
        const auto bytes = [&](std::int64_t count) {
          return x.new_empty({count}, x.options().dtype(at::kByte));
        };
        Tensor memory = bytes(planes * search.padded_rows * search.depth * 2);
        Tensor scale = unit.inv_norm.new_empty({search.padded_rows});
        Tensor candidates = bytes(search.slots * search.padded_rows *
                                  std::int64_t{sizeof(kernels::NearestCandidate)});
        search.planes = memory.mutable_data_ptr();
        search.scale = static_cast<float*>(scale.mutable_data_ptr());
        search.candidates = static_cast<kernels::NearestCandidate*>(candidates.mutable_data_ptr());
        return kernels::nearest_neighbor_distance_cuda(unit.p, search, measure, stream);
      });
  return {distance, index};
}

Tensor nearest_neighbor_distance_backward(const Tensor& grad_distance_, const Tensor& x,
                                          const Tensor& distance_, const Tensor& index_,
                                          double eps) {
  const PlainTensors plain;
  const Unit unit(x, eps);
  const std::int64_t rows = unit.p.rows, dim = unit.p.dim;
  for (const auto& [t, name] :
       {std::pair(&grad_distance_, "grad_distance"), std::pair(&distance_, "distance")}) {
    check_shape(*t, name, {rows});
    check_like(*t, name, unit.rows, "the sums over x");
  }
  check_shape(index_, "index", {rows});
  check_device(index_, "index", x, "x");
  check_long(index_, "index");
  const Tensor grad_distance = grad_distance_.contiguous(), distance = distance_.contiguous();
  const Tensor index = index_.contiguous();
  Tensor grad_x = x.new_empty({rows, dim});
  if (rows == 0) return grad_x;

  // Sorted by neighbor, so that the rows that a row's gradient sums over are adjacent, and no
  // atomic additions are needed.
  const bool counts = uses_cuda_kernels(x) && rows <= chunk_limit(kernels::kMostCountedFollowers);
  const auto [sorted, order] = counts ? std::tuple(index.new_empty({0}), index.new_empty({rows}))
                                      : index.sort(std::optional<bool>(true), 0, false);
  const kernels::NearestNeighborDistanceBackward p{
      .dtype = unit.p.dtype,
      .rows = rows,
      .dim = dim,
      .unit = unit.rows.const_data_ptr(),
      .eps = eps,
      .inv_norm = unit.inv_norm.const_data_ptr(),
      .distance = distance.const_data_ptr(),
      .grad_distance = grad_distance.const_data_ptr(),
      .index = static_cast<const std::int64_t*>(index.const_data_ptr()),
      .sorted_index = counts ? nullptr : static_cast<const std::int64_t*>(sorted.const_data_ptr()),
      .order = static_cast<const std::int64_t*>(order.const_data_ptr()),
      .grad_x = grad_x.mutable_data_ptr(),
  };
  run_on(
      x,
      [&] {
        unit.compute_on_cpu();
        parallel_rows(rows, 4 * dim, [&](auto begin, auto end) {
          kernels::nearest_neighbor_distance_backward_cpu(p, begin, end);
        });
      },
      [&](auto stream) {
        Tensor first = index.new_empty({rows + 1});
        const kernels::NearestFollowers followers{
            .first = static_cast<std::int64_t*>(first.mutable_data_ptr()),
            .order = counts ? static_cast<std::int64_t*>(order.mutable_data_ptr()) : nullptr};
        return kernels::nearest_neighbor_distance_backward_cuda(unit.p, p, followers, stream);
      });
  return grad_x;
}

}  // namespace mast_ext
