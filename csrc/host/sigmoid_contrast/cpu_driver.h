// sigmoid_contrast on the CPU: a tile of products after the other, from which a kernel makes losses
// and, in place, the weights of the gradient, while they are in the cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "host/common/products.h"
#include "host/common/run_on.h"
#include "host/sigmoid_contrast/inputs.h"

namespace mast_ext {

class SigmoidCpuDriver {
 public:
  explicit SigmoidCpuDriver(const SigmoidInputs& inputs)
      : in(inputs), x(rows_of(in.pairs.x)), y(rows_of(in.pairs.y)) {}

  void sweep(const SigmoidSweepResults& results) const {
    const Tensor inv_norm_x = in.pairs.inverse_norms(in.pairs.x);
    const Tensor inv_norm_y = in.pairs.inverse_norms(in.pairs.y);
    const std::int64_t rows = in.rows(), columns = in.columns();
    const auto scale = in.scale.item<double>(), bias = in.bias.item<double>();
    const std::int64_t most_rows = std::min(kTileRows, rows);
    const std::int64_t stride = std::min(kTileColumns, columns) + kPadding;
    const Tensor buffer = in.pairs.new_empty({most_rows, stride});
    const SigmoidGradients* const grads = results.grads;
    Tensor sums, products_x, products_y;
    if (results.loss.defined()) results.loss.zero_();
    if (grads != nullptr) {
      sums = in.pairs.new_empty({2, rows}).zero_();
      if (grads->wants_x) products_x = accumulator(grads->x);
      if (grads->wants_y) products_y = accumulator(grads->y);
    }
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      const std::int64_t row_count = std::min(kTileRows, rows - row);
      const Tensor x_rows = x.narrow(0, row, row_count);
      for (std::int64_t column = 0; column < columns; column += kTileColumns) {
        const std::int64_t column_count = std::min(kTileColumns, columns - column);
        const Tensor y_rows = y.narrow(0, column, column_count);
        const Tensor products = buffer.narrow(0, 0, row_count).narrow(1, 0, column_count);
        multiply(products, x_rows, y_rows.t(), false);
        const kernels::SigmoidTile tile{.dtype = dtype_of(products, "products"),
                                        .rows = row_count,
                                        .columns = column_count,
                                        .stride = stride,
                                        .partner = row + in.pairs.offset - column,
                                        .has_positive = in.pairs.options.has_positive,
                                        .scale = scale,
                                        .bias = bias,
                                        .row_scale = const_element(inv_norm_x, row),
                                        .column_scale = const_element(inv_norm_y, column),
                                        .products = products.mutable_data_ptr(),
                                        .loss = element(results.loss, row),
                                        .grad = const_element(results.row_grads, row),
                                        .grad_scale = element(sums, row),
                                        .grad_bias = element(sums, rows + row)};
        parallel_rows(row_count, kEntryCost * column_count,
                      [&](auto begin, auto end) { kernels::sigmoid_tile_cpu(tile, begin, end); });
        if (products_x.defined()) {
          multiply(products_x.narrow(0, row, row_count), products, y_rows, true);
        }
        if (products_y.defined()) {
          multiply(products_y.narrow(0, column, column_count), products.t(), x_rows, true);
        }
      }
    }
    if (grads == nullptr) return;
    if (grads->wants_x) finish(in.pairs.x, inv_norm_x, products_x, grads->x);
    if (grads->wants_y) finish(in.pairs.y, inv_norm_y, products_y, grads->y);
    if (grads->wants_scale) grads->scale.fill_(total(sums[0]));
    if (grads->wants_bias) grads->bias.fill_(total(sums[1]));
  }

  // The sum of all elements, in their order: torch's depends on the number of threads.
  static double total(const Tensor& t) {
    return visit_accumulation(dtype_of(t, "t"), [&]<typename A>() {
      const auto* values = static_cast<const A*>(t.const_data_ptr());
      double sum = 0;
      for (std::int64_t i = 0; i < t.numel(); ++i) sum += values[i];
      return sum;
    });
  }

 private:
  // As in contrastive_logsumexp, but of the same size for any number of threads: sums over tiles
  // then have the same bits.
  static constexpr std::int64_t kTileRows = 512, kTileColumns = 2048;
  static constexpr std::int64_t kPadding = 16;  // at a power of two rows would share cache sets
  static constexpr std::int64_t kEntryCost = 4;

  // G is accumulated in the gradient's memory, if that is wide enough, and replaced by it.
  Tensor accumulator(const Tensor& grad) const {
    const bool wide = grad.scalar_type() == accumulation_type(grad);
    return (wide ? grad : in.pairs.new_empty(grad.sizes())).zero_();
  }

  void finish(const Tensor& z, const Tensor& inv_norm, const Tensor& products,
              const Tensor& grad) const {
    constexpr std::int64_t kSliceRows = 64;
    const std::int64_t rows = products.size(0), slices = (rows + kSliceRows - 1) / kSliceRows;
    const Tensor dots = in.pairs.new_empty({slices}).zero_();
    const auto p = sigmoid_rows(z, inv_norm, products, 0, grad, dots);
    parallel_rows(slices, 4 * kSliceRows * z.size(2),
                  [&](auto begin, auto end) { kernels::contrastive_rows_cpu(p, begin, end); });
  }

  static Tensor rows_of(const Tensor& z) {
    return z.to(accumulation_type(z)).contiguous().view({z.size(1), z.size(2)});
  }

  const SigmoidInputs& in;
  const Tensor x, y;  // [N, D] and [M, D] in the accumulation type
};

}  // namespace mast_ext
