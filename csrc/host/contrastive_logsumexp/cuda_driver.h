// contrastive_logsumexp on CUDA: one kernel per direction computes everything. Only the backward of
// embeddings wider than most_fused_dims() writes weights to memory, for a chunk of rows at a time,
// and multiplies them by the vendor library.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "host/contrastive_logsumexp/inputs.h"

namespace mast_ext {

class ContrastiveCudaDriver {
 public:
  explicit ContrastiveCudaDriver(const ContrastiveInputs& inputs) : in(inputs) {}

  template <typename Stream>
  int forward(const Tensor& inv_norm_x, const Tensor& inv_norm_y, const Tensor& lse,
              const Tensor& positive, Stream stream) const {
    if (lse.numel() == 0) return 0;
    // If there are few rows, columns are split to have enough thread blocks for a large GPU.
    constexpr std::int64_t kTileSide = 128, kWantedBlocks = 512;
    const std::int64_t tiles = (in.rows() + kTileSide - 1) / kTileSide * lse.numel() / in.rows();
    const std::int64_t most = std::max<std::int64_t>(1, in.columns() / (2 * kTileSide));
    const std::int64_t splits = std::clamp<std::int64_t>(kWantedBlocks / tiles, 1, most);
    const Tensor partial = in.new_empty({2, splits, lse.numel()});
    return kernels::contrastive_forward_cuda(
        {.p = params(in.x, in.y, inv_norm_x, inv_norm_y, in.offset),
         .splits = splits,
         .partial_max = static_cast<float*>(partial.select(0, 0).mutable_data_ptr()),
         .partial_sum = static_cast<float*>(partial.select(0, 1).mutable_data_ptr()),
         .lse = static_cast<float*>(lse.mutable_data_ptr()),
         .positive =
             in.options.has_positive ? static_cast<float*>(positive.mutable_data_ptr()) : nullptr},
        stream);
  }

  template <typename Stream>
  int backward(const ContrastiveAnchors& rows, const ContrastiveAnchors& columns,
               const Tensor& inv_norm_x, const Tensor& inv_norm_y, ContrastiveGradients& grads,
               Stream stream) const {
    const bool both = columns.any();
    Sums x, y;
    int error = 0;
    if (grads.needs_x()) {
      error = row_gradient({.p = params(in.x, in.y, inv_norm_x, inv_norm_y, in.offset),
                            .row = rows.pointers(),
                            .column = columns.pointers()},
                           in.x, in.y, grads.wants_x ? &grads.x : nullptr, grads, x, stream);
    }
    if (error == 0 && !in.self && grads.needs_y(both)) {
      error = row_gradient({.p = params(in.y, in.x, inv_norm_y, inv_norm_x, -in.offset),
                            .row = {},
                            .column = rows.pointers()},
                           in.y, in.x, grads.wants_y ? &grads.y : nullptr, grads, y, stream);
      if (grads.wants_masks) x.masks = x.masks.sum(0, true).add(y.masks.sum(0, true));
    }
    if (error == 0) grads.finish(in, x.masks, x.dots, both);
    return error;
  }

 private:
  struct Sums {
    Tensor masks, dots;  // [slices, K, D], [slices]
  };

  kernels::Contrastive params(const Tensor& x, const Tensor& y, const Tensor& inv_norm_x,
                              const Tensor& inv_norm_y, std::int64_t partner) const {
    const auto floats = [](const Tensor& t) {
      return t.defined() ? static_cast<const float*>(t.const_data_ptr()) : nullptr;
    };
    return {.x = ContrastiveInputs::embedding_rows(x),
            .y = ContrastiveInputs::embedding_rows(y),
            .masks = floats(in.masks),
            .subspaces = in.subspaces(),
            .temperature = in.temperature,
            .temperature_tensor = floats(in.temperature_tensor),
            .partner = partner,
            .options = in.options,
            .inv_norm_x = floats(inv_norm_x),
            .inv_norm_y = floats(inv_norm_y)};
  }

  // The gradient of b's rows `z`, with the columns `other`.
  template <typename Stream>
  int row_gradient(const kernels::ContrastiveBackward& b, const Tensor& z, const Tensor& other,
                   Tensor* grad, const ContrastiveGradients& grads, Sums& sums,
                   Stream stream) const {
    if (in.dim() <= kernels::most_fused_dims(dtype_of(z, "z"))) {
      const std::int64_t slices = kernels::fused_backward_slices_cuda(b.p);
      sums.dots = in.new_empty({slices});
      if (grads.wants_masks) sums.masks = in.new_empty({slices, in.subspaces(), in.dim()});
      Tensor sum;
      if (grad != nullptr && in.subspaces() > 1 && z.scalar_type() != accumulation_type(z)) {
        sum = in.new_empty(z.sizes());
      }
      return kernels::contrastive_fused_backward_cuda(
          {.b = b,
           .grad_x = grad != nullptr ? grad->mutable_data_ptr() : nullptr,
           .sum = sum.defined() ? static_cast<float*>(sum.mutable_data_ptr()) : nullptr,
           .slices = slices,
           .grad_masks =
               grads.wants_masks ? static_cast<float*>(sums.masks.mutable_data_ptr()) : nullptr,
           .dots = static_cast<float*>(sums.dots.mutable_data_ptr())},
          stream);
    }
    return wide_row_gradient(b, z, other, grad, grads, sums, stream);
  }

  template <typename Stream>
  int wide_row_gradient(kernels::ContrastiveBackward b, const Tensor& z, const Tensor& other,
                        Tensor* grad, const ContrastiveGradients& grads, Sums& sums,
                        Stream stream) const {
    constexpr std::int64_t kSlices = 256, kChunkElements = 1 << 24;
    const std::int64_t views = z.size(0), rows = z.size(1), columns = other.size(0) * other.size(1);
    const at::ScalarType type =
        z.scalar_type() == at::kBFloat16 ? at::kBFloat16 : accumulation_type(z);
    const Tensor operand = other.to(type).contiguous().view({columns, in.dim()});
    const std::int64_t chunk =
        std::clamp<std::int64_t>(kChunkElements / std::max<std::int64_t>(columns, 1), 128,
                                 std::max<std::int64_t>(rows, 128));
    const Tensor buffer = z.new_empty({std::min(chunk, rows), columns}, z.options().dtype(type));
    Tensor total = grad != nullptr ? *grad : Tensor();
    if (grad != nullptr && in.subspaces() > 1 && z.scalar_type() != accumulation_type(z)) {
      total = in.new_empty(z.sizes());
    }
    sums.dots = in.new_empty({kSlices}).zero_();
    sums.masks = in.new_empty({grads.wants_masks ? in.subspaces() : 0, kSlices, in.dim()}).zero_();
    int error = 0;
    for (std::int64_t k = 0; k < in.subspaces(); ++k) {
      for (std::int64_t first = 0; first < views * rows && error == 0;) {
        const std::int64_t view = first / rows;
        const std::int64_t count = std::min(chunk, rows - first % rows);
        const Tensor weights = buffer.narrow(0, 0, count);
        error = kernels::contrastive_weights_cuda({.b = b,
                                                   .subspace = k,
                                                   .view = view,
                                                   .first = first % rows,
                                                   .count = count,
                                                   .dtype = dtype_of(weights, "weights"),
                                                   .weights = weights.mutable_data_ptr()},
                                                  stream);
        if (error != 0) return error;
        const Tensor products = weights.mm(operand);
        error = kernels::contrastive_rows_cuda(
            {.z = ContrastiveInputs::embedding_rows(z),
             .mask = in.mask(k),
             .inv_norm = b.p.inv_norm_x + k * views * rows,
             .first = first,
             .count = count,
             .products_dtype = dtype_of(products, "products"),
             .products = products.const_data_ptr(),
             .add = k > 0,
             .grad_dtype = total.defined() ? dtype_of(total, "total") : dtype_of(z, "z"),
             .grad = total.defined() ? total.mutable_data_ptr() : nullptr,
             .slices = kSlices,
             .grad_mask = grads.wants_masks ? sums.masks.select(0, k).mutable_data_ptr() : nullptr,
             .dots = sums.dots.mutable_data_ptr()},
            stream);
        first += count;
      }
    }
    sums.masks = sums.masks.transpose(0, 1);
    if (total.defined() && !total.is_same(*grad)) grad->copy_(total);
    return error;
  }

  const ContrastiveInputs& in;
};

}  // namespace mast_ext
