// contrastive_logsumexp on the CPU: the vendor library multiplies a tile of rows by a tile of
// columns, then a kernel processes the products in one pass.
//
// In self-contrast only tiles on and above the diagonal are computed: products are symmetric, and a
// tile updates the sums of its rows and those of its columns. All threads work on the same tile.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>

#include "host/columns/column_passes.h"
#include "host/common/products.h"
#include "host/contrastive_logsumexp/inputs.h"

namespace mast_ext {

class ContrastiveCpuDriver {
 public:
  // For the backward: with what the forward kept, if it is defined.
  explicit ContrastiveCpuDriver(const ContrastiveInputs& inputs, const Tensor& kept = {})
      : in(inputs), x(as_rows(in.x)), y(in.self ? x : as_rows(in.y)), kept_(kept) {
    tile_rows_ = kept.defined() ? height_of_tiles(kept) : wanted_tile_rows();
    const std::int64_t rows = std::min(tile_rows_, x.size(0));
    const std::int64_t columns = std::min(kTileColumns, y.size(0));
    buffer_ = in.new_empty({rows * (std::max(rows, columns) + kPadding)});
    const std::int64_t sums = in.self ? slices_of(rows) * columns : 0;
    slice_sum_ = in.new_empty({sums});
    slice_max_ = in.new_empty({fixed_shift() ? 0 : sums});
  }

  // lse and positive from the inverse norms [K, V, N]. Fills `kept` if it is defined, for
  // backward().
  void forward(const Tensor& inv_norm_x, const Tensor& inv_norm_y, const Tensor& lse,
               const Tensor& positive, const Tensor& kept) {
    const bool fixed = fixed_shift();
    Tensor maxima = fixed ? Tensor() : in.new_empty(lse.sizes());
    if (kept.defined()) height_place(kept).fill_(tile_rows_);
    lse.zero_();  // holds the sums of exponentials until the end
    if (in.options.has_positive && !in.options.within_views) positive.zero_();
    if (!fixed) maxima.fill_(-std::numeric_limits<double>::infinity());
    for (std::int64_t k = 0; k < in.subspaces(); ++k) {
      each_tile(k, kept, true, [&](const Tensor& products, const Tile& a, const Tile& b) {
        const bool mirror = in.self && a.first != b.first;
        each_rectangle(a, b, [&](const Rectangle& r) {
          if (left_out(r)) return;
          const std::int64_t row = in_rows(k, r), column = in_columns(k, r);
          const kernels::ContrastiveTileSums p{
              .tile = tile(products, r, k, inv_norm_x, inv_norm_y, kept.defined()),
              .row_sum = element(lse, row),
              .row_max = element(maxima, row),
              .column_sum = mirror ? element(lse, column) : nullptr,
              .column_max = mirror ? element(maxima, column) : nullptr,
              .slice_sum = slice_sum_.mutable_data_ptr(),
              .slice_max = slice_max_.mutable_data_ptr(),
              .positive = in.options.has_positive ? element(positive, row) : nullptr,
              .column_positive = mirror ? element(positive, column) : nullptr};
          over_slices(
              r, [&](auto begin, auto end) { kernels::contrastive_tile_sums_cpu(p, begin, end); });
          if (mirror) {
            parallel_rows(r.columns, slices_of(r.rows), [&](auto begin, auto end) {
              kernels::contrastive_tile_columns_cpu(p, begin, end);
            });
          }
        });
      });
    }
    lse.log_();
    fixed ? lse.add_(1 / in.temperature) : lse.add_(maxima);
  }

  // `columns` are the anchors of the columns as rows of the same loss; in self-contrast, `rows`.
  void backward(const ContrastiveAnchors& rows, const ContrastiveAnchors& columns,
                const Tensor& inv_norm_x, const Tensor& inv_norm_y, ContrastiveGradients& grads) {
    const bool both = columns.any();
    const bool needs_x = grads.needs_x(), needs_y = !in.self && grads.needs_y(both);
    OperandGradient side_x(*this, in.x, x, inv_norm_x, needs_x, grads.wants_x ? &grads.x : nullptr,
                           grads);
    OperandGradient side_y(*this, in.y, y, inv_norm_y, needs_y, grads.wants_y ? &grads.y : nullptr,
                           grads);
    for (std::int64_t k = 0; k < in.subspaces(); ++k) {
      side_x.begin();
      side_y.begin();
      each_tile(k, kept_, false, [&](const Tensor& products, const Tile& a, const Tile& b) {
        const Tensor weights = in_buffer(a, b);
        each_rectangle(a, b, [&](const Rectangle& r) {
          if (left_out(r)) {
            part(weights, r.row_in_tile, r.rows, r.column_in_tile, r.columns).zero_();
            return;
          }
          const kernels::ContrastiveTileWeights p{
              .tile = tile(products, r, k, inv_norm_x, inv_norm_y, kept_.defined()),
              .row = rows.pointers(in_rows(k, r)),
              .column = columns.pointers(in_columns(k, r)),
              .stride = weights.stride(0),
              .weights = element(weights, in_tile(weights, r))};
          over_slices(r, [&](auto begin, auto end) {
            kernels::contrastive_tile_weights_cpu(p, begin, end);
          });
        });
        if (needs_x) side_x.add(a, weights, rows_of(y, b));
        if (in.self && a.first != b.first) side_x.add(b, weights.t(), rows_of(x, a));
        if (needs_y) side_y.add(b, weights.t(), rows_of(x, a));
      });
      side_x.end(k);
      side_y.end(k);
    }
    Tensor grad_masks = side_x.grad_masks;
    if (needs_y && grads.wants_masks) {  // of rows and columns there may be other slices
      grad_masks = grad_masks.sum(0, true).add(side_y.grad_masks.sum(0, true));
    }
    grads.finish(in, grad_masks, side_x.dots, both);
  }

 private:
  // A range of rows, or of columns, counted through all views.
  struct Tile {
    std::int64_t first, count;
  };

  // The part of a tile inside block (i, j): rows [row, row + rows) of view i by columns
  // [column, column + columns) of view j.
  struct Rectangle {
    std::int64_t i, j, row, column, rows, columns;
    std::int64_t row_in_tile, column_in_tile;
  };

  // Accumulates G of one operand, x or y, and computes the gradients from it.
  struct OperandGradient {
    const ContrastiveCpuDriver& tiles;
    const Tensor &z, &flat, &inv_norm;
    Tensor* grad;
    Tensor products, sums, grad_masks, dots;
    bool needed, in_place;
    std::int64_t slices;

    OperandGradient(const ContrastiveCpuDriver& tiles_, const Tensor& z_, const Tensor& flat_,
                    const Tensor& inv_norm_, bool needed_, Tensor* grad_,
                    const ContrastiveGradients& grads)
        : tiles(tiles_), z(z_), flat(flat_), inv_norm(inv_norm_), grad(grad_), needed(needed_) {
      constexpr std::int64_t kMostSlices = 16;
      const ContrastiveInputs& in = tiles.in;
      slices = std::clamp<std::int64_t>(flat.size(0) / 64, 1, kMostSlices);
      grad_masks = in.new_empty({slices, grads.wants_masks ? in.subspaces() : 0, in.dim()});
      dots = in.new_empty({slices});
      grad_masks.zero_();
      dots.zero_();
      if (!needed) return;
      // The G of a single subspace is accumulated in the gradient's memory and replaced by it.
      const bool wide = z.scalar_type() == accumulation_type(z);
      in_place = grad != nullptr && wide && in.subspaces() == 1;
      products = in_place ? grad->view(flat.sizes()) : in.new_empty(flat.sizes());
      if (grad != nullptr) sums = wide || in.subspaces() == 1 ? *grad : in.new_empty(z.sizes());
    }

    void begin() {
      if (needed) products.zero_();
    }

    void add(const Tile& to, const Tensor& weights_, const Tensor& from) {
      multiply(rows_of(products, to), weights_, from, true);
    }

    void end(std::int64_t k) {
      if (!needed) return;
      Tensor of_subspace;
      if (grad_masks.size(1) > 0) of_subspace = grad_masks.new_zeros({slices, z.size(2)});
      const kernels::ContrastiveRows p{
          .z = ContrastiveInputs::embedding_rows(z),
          .mask = tiles.in.mask(k),
          .inv_norm = inv_norm.select(0, k).const_data_ptr(),
          .first = 0,
          .count = flat.size(0),
          .products_dtype = dtype_of(products, "products"),
          .products = products.const_data_ptr(),
          .add = k > 0,
          .grad_dtype = grad != nullptr ? dtype_of(sums, "sums") : dtype_of(z, "z"),
          .grad = grad != nullptr ? sums.mutable_data_ptr() : nullptr,
          .slices = slices,
          .grad_mask = of_subspace.defined() ? of_subspace.mutable_data_ptr() : nullptr,
          .dots = dots.mutable_data_ptr()};
      parallel_rows(slices, 4 * flat.size(0) / slices * z.size(2),
                    [&](auto begin, auto end) { kernels::contrastive_rows_cpu(p, begin, end); });
      if (of_subspace.defined()) grad_masks.select(1, k).copy_(of_subspace);
      if (grad != nullptr && k + 1 == tiles.in.subspaces() && !sums.is_same(*grad)) {
        grad->copy_(sums);
      }
    }
  };

  // Tiles are large enough for the vendor library to reach full speed on all threads, and small
  // enough to stay in the caches until the kernel has processed them. Of few rows in self-contrast
  // they are smaller: of tiles on the diagonal both halves are computed, so that eight steps take
  // 9/16 of the products that one would take.
  static constexpr std::int64_t kTileColumns = 2048;
  static constexpr std::int64_t kPadding = ContrastiveInputs::kPadding;
  std::int64_t wanted_tile_rows() const {
    const int threads = at::get_num_threads();
    const std::int64_t most = threads > 16 ? 2048 : threads > 4 ? 1024 : in.dim() < 384 ? 512 : 256;
    if (!in.self) return most;
    return std::clamp(x.size(0) / 8, std::max<std::int64_t>(most / 4, 128), most);
  }

  // Where the forward tells the backward how high its tiles were: in the padding of the first row.
  static Tensor height_place(const Tensor& kept) {
    return kept.select(0, 0).select(0, 0).select(0, kept.size(2) - 1);
  }
  static std::int64_t height_of_tiles(const Tensor& kept) {
    const auto height = height_place(kept).item<double>();
    TORCH_CHECK_VALUE(height >= 1 && height <= 1 << 20,
                      "products must be those that the forward kept, got others");
    return static_cast<std::int64_t>(height);
  }

  static std::int64_t slices_of(std::int64_t rows) {
    return (rows + kernels::kTileSlice - 1) / kernels::kTileSlice;
  }

  bool fixed_shift() const { return in.temperature >= kernels::kLeastFixedTemperature; }

  bool left_out(const Rectangle& r) const { return in.options.leaves_out(r.i, r.j); }

  // The index of a rectangle's first row in [K, Vx, Vy, N], and of its first column in
  // [K, Vy, Vx, M].
  std::int64_t in_rows(std::int64_t k, const Rectangle& r) const {
    return ((k * in.x_views() + r.i) * in.y_views() + r.j) * in.rows() + r.row;
  }
  std::int64_t in_columns(std::int64_t k, const Rectangle& r) const {
    return ((k * in.y_views() + r.j) * in.x_views() + r.i) * in.columns() + r.column;
  }

  // The index of a rectangle's first element in a tile.
  static std::int64_t in_tile(const Tensor& tile, const Rectangle& r) {
    return r.row_in_tile * tile.stride(0) + r.column_in_tile;
  }

  // The memory of one tile, of rows a by columns b.
  Tensor in_buffer(const Tile& a, const Tile& b) const {
    const std::int64_t stride = b.count + kPadding;
    return buffer_.as_strided({a.count, b.count}, {stride, 1});
  }

  kernels::ContrastiveTile tile(const Tensor& products, const Rectangle& r, std::int64_t k,
                                const Tensor& inv_norm_x, const Tensor& inv_norm_y,
                                bool kept) const {
    const std::int64_t row = (k * in.x_views() + r.i) * in.rows() + r.row;
    const std::int64_t column = (k * in.y_views() + r.j) * in.columns() + r.column;
    return {.dtype = dtype_of(products, "products"),
            .rows = r.rows,
            .columns = r.columns,
            .stride = products.stride(0),
            .partner = r.row + in.offset - r.column,
            .has_positive = in.options.has_positive,
            .exclude = in.options.excludes(r.i, r.j),
            .temperature = in.temperature,
            .fixed_shift = fixed_shift(),
            .row_scale = element(inv_norm_x, row),
            .column_scale = element(inv_norm_y, column),
            .products = element(products, in_tile(products, r)),
            .keeps_exponentials = kept && fixed_shift()};
  }

  static Tensor rows_of(const Tensor& matrix, const Tile& tile) {
    return part(matrix, tile.first, tile.count, 0, matrix.size(1));
  }

  // Calls body(products, a, b) with the products <w x, y> of rows a and columns b. In self-contrast
  // b is first a itself, then the columns behind it. Where `kept` is defined they are written to it
  // if `fill`, and otherwise what the forward left there is passed on.
  template <typename Body>
  void each_tile(std::int64_t k, const Tensor& kept, bool fill, const Body& body) {
    const Tensor weights = in.masks.defined() ? in.masks.select(0, k).square() : Tensor();
    const std::int64_t columns = y.size(0);
    for (std::int64_t first = 0; first < x.size(0);) {
      const Tile a{first, length(first, tile_rows_, in.rows(), x.size(0))};
      first += a.count;
      Tensor rows = rows_of(x, a);
      if (weights.defined()) rows = rows.mul(weights);
      const auto visit = [&](const Tile& b) {
        if (!any_used(a, b)) return;
        const Tensor products = kept.defined() ? part(kept.select(0, k), a.first, a.count,
                                                      b.first - in.first_kept_column(), b.count)
                                               : in_buffer(a, b);
        if (fill || !kept.defined()) {
          multiply(products, rows, rows_of(y, b).t(), false);
        }
        body(products, a, b);
      };
      if (in.self) visit(a);
      for (std::int64_t column = in.self ? first : 0; column < columns;) {
        const Tile b{column, length(column, kTileColumns, in.columns(), columns)};
        column += b.count;
        visit(b);
      }
    }
  }

  // The length of a tile that begins at `first`. Where blocks (i, i) are left out it also ends at
  // the end of a view, so that whole tiles can be skipped.
  std::int64_t length(std::int64_t first, std::int64_t step, std::int64_t rows,
                      std::int64_t total) const {
    const std::int64_t rest = in.options.within_views ? total - first : rows - first % rows;
    return std::min(step, rest);
  }

  template <typename Body>
  void each_rectangle(const Tile& a, const Tile& b, const Body& body) const {
    const std::int64_t rows = in.rows(), columns = in.columns();
    for (std::int64_t row = a.first, next; row < a.first + a.count; row = next) {
      next = std::min((row / rows + 1) * rows, a.first + a.count);
      for (std::int64_t column = b.first, end; column < b.first + b.count; column = end) {
        end = std::min((column / columns + 1) * columns, b.first + b.count);
        body(Rectangle{.i = row / rows,
                       .j = column / columns,
                       .row = row % rows,
                       .column = column % columns,
                       .rows = next - row,
                       .columns = end - column,
                       .row_in_tile = row - a.first,
                       .column_in_tile = column - b.first});
      }
    }
  }

  bool any_used(const Tile& a, const Tile& b) const {
    bool used = false;
    each_rectangle(a, b, [&](const Rectangle& r) { used |= !left_out(r); });
    return used;
  }

  template <typename Body>
  static void over_slices(const Rectangle& r, const Body& body) {
    constexpr std::int64_t kEntryCost = 4;
    parallel_rows(slices_of(r.rows), kEntryCost * kernels::kTileSlice * r.columns, body);
  }

  static Tensor as_rows(const Tensor& z) {
    return z.to(accumulation_type(z)).contiguous().view({z.size(0) * z.size(1), z.size(2)});
  }

  const ContrastiveInputs& in;
  const Tensor x, y;  // [V * N, D] in the accumulation type
  const Tensor kept_;
  std::int64_t tile_rows_;
  Tensor buffer_, slice_sum_, slice_max_;
};

}  // namespace mast_ext
