// sigmoid_contrast on CUDA: one kernel computes losses and, for a chunk of rows at a time, writes
// the weights of the gradient to memory. The vendor library multiplies them by the embeddings.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>

#include <algorithm>

#include "host/common/chunk_limit.h"
#include "host/sigmoid_contrast/inputs.h"

namespace mast_ext {

class SigmoidCudaDriver {
 public:
  explicit SigmoidCudaDriver(const SigmoidInputs& inputs)
      : in(inputs), x(in.pairs.x), y(in.pairs.y) {}

  template <typename Stream>
  int sweep(const SigmoidSweepResults& results, Stream stream) const {
    const Tensor inv_norm_x = in.pairs.inverse_norms(x), inv_norm_y = in.pairs.inverse_norms(y);
    const std::int64_t rows = in.rows(), columns = in.columns();
    SigmoidGradients* const grads = results.grads;
    const bool weighs = grads != nullptr && (grads->wants_x || grads->wants_y);
    // Without weights all rows are one chunk.
    const std::int64_t chunk =
        std::min(rows, weighs ? std::max<std::int64_t>(128, chunk_limit(kChunkElements) /
                                                                std::max<std::int64_t>(columns, 1))
                              : rows);
    const at::ScalarType type = x.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
    const std::int64_t stride = (columns + 7) / 8 * 8;
    Tensor weights, x_rows, y_rows, products_y, sums, dots;
    if (grads != nullptr) sums = in.pairs.new_empty({2, rows});
    if (weighs) {
      weights = x.new_empty({chunk, stride}, x.options().dtype(type));
      x_rows = x[0].to(type);
      y_rows = y[0].to(type);
      dots = in.pairs.new_empty({kSlices}).zero_();  // which the last step adds to; not used here
    }
    if (weighs && grads->wants_y) products_y = in.pairs.new_empty(grads->y.sizes()).zero_();
    for (std::int64_t first = 0; first < rows; first += chunk) {
      const std::int64_t count = std::min(chunk, rows - first), splits = splits_of(count);
      const Tensor partial = in.pairs.new_empty({3, splits, count});
      const int error = kernels::sigmoid_sweep_cuda(
          {.p = pairs(inv_norm_x, inv_norm_y),
           .scale = floats(in.scale),
           .bias = floats(in.bias),
           .first = first,
           .count = count,
           .splits = splits,
           .loss = results.loss.defined() ? mutable_floats(partial[0]) : nullptr,
           .grad = grads != nullptr ? floats(results.row_grads) : nullptr,
           .grad_scale = mutable_floats(partial[1]),
           .grad_bias = mutable_floats(partial[2]),
           .dtype = weighs ? dtype_of(weights, "weights") : DType::kFloat32,
           .weights = element(weights),
           .weights_stride = stride},
          stream);
      if (error != 0) return error;
      if (results.loss.defined()) results.loss.narrow(0, first, count).copy_(partial[0].sum(0));
      if (grads != nullptr) {
        sums.narrow(1, first, count).copy_(partial.narrow(0, 1, 2).sum(1));
      }
      if (!weighs) continue;
      const Tensor chunk_weights = weights.narrow(0, 0, count).narrow(1, 0, columns);
      if (grads->wants_x) {
        const Tensor products = chunk_weights.mm(y_rows);
        const int failed = kernels::contrastive_rows_cuda(
            sigmoid_rows(x, inv_norm_x, products, first, grads->x, dots), stream);
        if (failed != 0) return failed;
      }
      if (products_y.defined()) {
        add_product(products_y, chunk_weights.t(), x_rows.narrow(0, first, count));
      }
    }
    if (grads == nullptr) return 0;
    if (grads->wants_scale) grads->scale.copy_(sums[0].sum());
    if (grads->wants_bias) grads->bias.copy_(sums[1].sum());
    if (!products_y.defined()) return 0;
    const Tensor products = products_y.to(type);
    return kernels::contrastive_rows_cuda(sigmoid_rows(y, inv_norm_y, products, 0, grads->y, dots),
                                          stream);
  }

 private:
  // Weights of a chunk: as many as amortize that its product is added to all rows of y's gradient.
  static constexpr std::int64_t kSlices = 256, kChunkElements = 1 << 25;

  // sum += a b, in float32 and without a rounded product between, whatever type a and b have.
  static void add_product(const Tensor& sum, const Tensor& a, const Tensor& b) {
    Tensor out = sum;
    if (a.scalar_type() == at::kFloat) {
      out.addmm_(a, b);
    } else if (on_gpu(a)) {
      at::addmm_out(out, out, a, b, at::kFloat);
    } else {  // emulated kernels: on the CPU there is no such product
      out.add_(a.mm(b));
    }
  }

  // If there are few rows, columns are split to have enough thread blocks for a large GPU.
  std::int64_t splits_of(std::int64_t rows) const {
    constexpr std::int64_t kTileSide = 128, kWantedBlocks = 512;
    const std::int64_t tiles = (rows + kTileSide - 1) / kTileSide;
    const std::int64_t most = std::max<std::int64_t>(1, in.columns() / (2 * kTileSide));
    return std::clamp<std::int64_t>(kWantedBlocks / tiles, 1, most);
  }

  kernels::Contrastive pairs(const Tensor& inv_norm_x, const Tensor& inv_norm_y) const {
    return {.x = ContrastiveInputs::embedding_rows(x),
            .y = ContrastiveInputs::embedding_rows(y),
            .masks = nullptr,
            .subspaces = 1,
            .temperature = in.pairs.temperature,
            .temperature_tensor = nullptr,
            .partner = in.pairs.offset,
            .options = in.pairs.options,
            .inv_norm_x = floats(inv_norm_x),
            .inv_norm_y = floats(inv_norm_y)};
  }

  static const float* floats(const Tensor& t) {
    return static_cast<const float*>(t.const_data_ptr());
  }
  static float* mutable_floats(const Tensor& t) {
    return static_cast<float*>(t.mutable_data_ptr());
  }

  const SigmoidInputs& in;
  const Tensor &x, &y;  // [1, N, D] and [1, M, D]
};

}  // namespace mast_ext
