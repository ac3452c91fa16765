// The arguments of sigmoid_contrast, checked and laid out for its CPU and CUDA drivers, and the
// gradients that these compute.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "host/common/checks.h"
#include "host/contrastive_logsumexp/inputs.h"
#include "kernels/sigmoid_contrast/sigmoid_contrast.h"

namespace mast_ext {

struct SigmoidInputs {
  Tensor scale, bias;
  ContrastiveInputs pairs;  // x [1, N, D] and y [1, M, D]

  SigmoidInputs(const Tensor& x, const Tensor& y, const Tensor& scale_, const Tensor& bias_,
                std::optional<std::int64_t> offset)
      : scale(scale_), bias(bias_), pairs(checked_pairs(x, y, offset)) {
    check_scalar(scale, "scale");
    check_scalar(bias, "bias");
  }

  std::int64_t rows() const { return pairs.rows(); }
  std::int64_t columns() const { return pairs.columns(); }

  // [N] in the accumulation type, dense.
  Tensor of_rows(const Tensor& t, const char* name) const {
    check_shape(t, name, {rows()});
    check_device(t, name, pairs.x, "x");
    check_accumulation(t, name, pairs.x, "embeddings");
    return t.contiguous();
  }

 private:
  void check_scalar(const Tensor& t, const char* name) const {
    TORCH_CHECK_VALUE(t.dim() == 0, name, " must be a number or a scalar tensor, got shape ",
                      t.sizes());
    check_device(t, name, pairs.x, "x");
    check_accumulation(t, name, pairs.x, "embeddings");
  }

  static ContrastiveInputs checked_pairs(const Tensor& x, const Tensor& y,
                                         std::optional<std::int64_t> offset) {
    TORCH_CHECK_VALUE(x.dim() == 2, "x must have shape [N, D], got ", x.sizes());
    dtype_of(x, "x");
    TORCH_CHECK_VALUE(y.dim() == 2 && y.size(1) == x.size(1), "y must have shape [M, ", x.size(1),
                      "] to fit x of shape ", x.sizes(), ", got ", y.sizes());
    check_like(y, "y", x, "x");
    TORCH_CHECK_VALUE(!offset || (*offset >= 0 && *offset <= y.size(0) - x.size(0)),
                      "offset must lie between 0 and M - N = ", y.size(0) - x.size(0),
                      " for x of shape ", x.sizes(), " and y of shape ", y.sizes(), ", got ",
                      offset.value_or(0));
    return {x.unsqueeze(0),
            y.unsqueeze(0),
            std::nullopt,
            std::nullopt,
            {.temperature = 1,
             .offset = offset,
             .exclude_self = false,
             .exclude_positive = false,
             .within_views = true}};
  }
};

// Those that are not wanted are empty.
struct SigmoidGradients {
  Tensor x, y, scale, bias;
  bool wants_x, wants_y, wants_scale, wants_bias;

  SigmoidGradients(const SigmoidInputs& in, std::array<bool, 4> wanted)
      : wants_x(wanted[0]), wants_y(wanted[1]), wants_scale(wanted[2]), wants_bias(wanted[3]) {
    const Tensor &x_ = in.pairs.x, &y_ = in.pairs.y;
    x = wants_x ? x_.new_empty({x_.size(1), x_.size(2)}) : x_.new_empty({0});
    y = wants_y ? y_.new_empty({y_.size(1), y_.size(2)}) : y_.new_empty({0});
    scale = wants_scale ? in.pairs.new_empty({}) : in.pairs.new_empty({0});
    bias = wants_bias ? in.pairs.new_empty({}) : in.pairs.new_empty({0});
  }

  bool any() const { return wants_x || wants_y || wants_scale || wants_bias; }
};

// What one sweep over all pairs computes. Undefined tensors are not wanted.
struct SigmoidSweepResults {
  Tensor loss;                        // [N]
  Tensor row_grads;                   // [N] g, given
  SigmoidGradients* grads = nullptr;  // with row_grads
};

// The last step of the gradient of z [1, V, D]: from products G [count, D] of the rows from `first`
// on to `grad`.
inline kernels::ContrastiveRows sigmoid_rows(const Tensor& z, const Tensor& inv_norm,
                                             const Tensor& products, std::int64_t first,
                                             const Tensor& grad, const Tensor& dots) {
  return {.z = ContrastiveInputs::embedding_rows(z),
          .mask = nullptr,
          .inv_norm = inv_norm.const_data_ptr(),
          .first = first,
          .count = products.size(0),
          .products_dtype = dtype_of(products, "products"),
          .products = products.const_data_ptr(),
          .add = false,
          .grad_dtype = dtype_of(grad, "grad"),
          .grad = grad.mutable_data_ptr(),
          .slices = dots.size(0),
          .grad_mask = nullptr,
          .dots = dots.mutable_data_ptr()};
}

}  // namespace mast_ext
