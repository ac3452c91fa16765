// The arguments and gradients that subspace_similarity and subspace_nll share: checks, layout, and
// the structs for the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include "host/common/caching_allocator.h"
#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/common/tensors.h"
#include "kernels/pair_sums/pair_sums.h"

namespace mast_ext {

// x [Vx, B, D], y [Vy, B, D] and masks [K, D], checked and laid out for the kernels.
struct PairInputs {
  Tensor x, y, masks;  // y is x in self comparison; masks are undefined if not given
  bool self;

  PairInputs(const Tensor& x_, const OptionalTensor& y_, const OptionalTensor& masks_) : self(!y_) {
    TORCH_CHECK_VALUE(x_.dim() == 3, "x must have shape [Vx, B, D], got ", x_.sizes());
    dtype_of(x_, "x");
    if (y_) {
      TORCH_CHECK_VALUE(y_->dim() == 3 && y_->size(1) == x_.size(1) && y_->size(2) == x_.size(2),
                        "y must have shape [Vy, ", x_.size(1), ", ", x_.size(2),
                        "] to fit x of shape ", x_.sizes(), ", got ", y_->sizes());
      check_like(*y_, "y", x_, "x");
    }
    if (masks_) {
      check_masks(*masks_, x_);
      masks = masks_->contiguous();
    }
    constexpr std::int64_t kMostViews = 1 << 12;  // rows of pairs are counted in 32 bits
    TORCH_CHECK_VALUE(x_.size(0) <= kMostViews && (!y_ || y_->size(0) <= kMostViews),
                      "x and y may have at most ", kMostViews, " views, got ", x_.sizes(), " and ",
                      y_ ? y_->sizes() : x_.sizes());
    x = dense_rows(x_);
    y = y_ ? dense_rows(*y_) : x;
  }

  std::int64_t x_views() const { return x.size(0); }
  std::int64_t y_views() const { return y.size(0); }
  std::int64_t batch() const { return x.size(1); }
  std::int64_t dim() const { return x.size(2); }
  std::int64_t subspaces() const { return masks.defined() ? masks.size(0) : 1; }
  at::TensorOptions accumulation() const { return x.options().dtype(accumulation_type(x)); }

  // A [K, Vx, Vy, B] result.
  Tensor new_pairs() const {
    return x.new_empty({subspaces(), x_views(), y_views(), batch()}, accumulation());
  }

  kernels::PairSums sums(bool norms) const {
    return {
        .dtype = dtype_of(x, "x"),
        .rows = {.x_views = static_cast<std::int32_t>(x_views()),
                 .y_views = static_cast<std::int32_t>(y_views()),
                 .self = self,
                 .norms = norms},
        .batch = batch(),
        .dim = dim(),
        .subspaces = subspaces(),
        .x = views_of(x),
        .y = views_of(y),
        .log_var_x = {},
        .log_var_y = {},
        .masks = const_element(masks),
    };
  }

  // The approximate number of scalar steps of an image.
  std::int64_t image_cost(const kernels::PairSums& p) const {
    return p.rows.count() * (2 + subspaces()) * dim();
  }
};

// The gradients that a backward op returns. Unwanted ones are empty, and null for the kernel.
struct PairGradients {
  Tensor x, y, log_var_x, log_var_y, masks;

  PairGradients(const PairInputs& in, bool wants_x, bool wants_y, bool wants_masks)
      : x(new_like(in.x, wants_x)),
        y(new_like(in.y, wants_y && !in.self)),
        log_var_x(in.x.new_empty({0})),
        log_var_y(in.x.new_empty({0})),
        masks(in.masks.defined() ? new_like(in.masks, wants_masks)
                                 : in.x.new_empty({0}, in.accumulation())) {}

  void add_log_variances(const PairInputs& in, const Tensor& like_x, bool wants_x,
                         const Tensor& like_y, bool wants_y) {
    log_var_x = new_like(like_x, wants_x);
    log_var_y = new_like(like_y, wants_y && !in.self);
  }

  kernels::PairSumsGrad pointers() {
    return {.x = pointer(x),
            .y = pointer(y),
            .log_var_x = pointer(log_var_x),
            .log_var_y = pointer(log_var_y),
            .masks = pointer(masks)};
  }

  // Runs backward(p, begin, end) over slices of the batch on the CPU, then adds up the slices'
  // gradients of the masks.
  template <typename Params, typename Backward>
  void run_slices(const PairInputs& in, Params p, const Backward& backward) {
    constexpr std::int64_t kMostSlices = 16;
    p.work.slices = kernels::mask_grad_slices(in.batch(), kMostSlices);
    Tensor grad_weights;
    if (wants(masks)) {
      const std::int64_t padded = (in.dim() + 15) / 16 * 16;
      grad_weights = in.masks.new_zeros({p.work.slices, in.subspaces(), padded});
      p.work.grad_weights = grad_weights.mutable_data_ptr();
    }
    parallel_rows(p.work.slices, 4 * in.image_cost(p.pairs) * in.batch() / p.work.slices,
                  [&](auto begin, auto end) { backward(p, begin, end); });
    if (wants(masks)) {
      masks.copy_(grad_weights.sum(0).narrow(1, 0, in.dim()).mul_(in.masks).mul_(2));
    }
  }

  // `rows` of coefficients.
  kernels::PairSumsWork cuda_workspace(const PairInputs& in, std::int64_t rows) {
    kernels::PairSumsWork work{
        .slices = kernels::cuda_mask_grad_slices(in.batch(), in.dim(), in.subspaces()),
        .grad_weights = nullptr,
        .coefficients = nullptr};
    if (wants(masks)) {
      grad_weights_ = in.x.new_empty({work.slices, in.subspaces(), in.dim()}, in.accumulation());
      work.grad_weights = grad_weights_.mutable_data_ptr();
    }
    coefficients_ = in.x.new_empty({in.batch(), rows, kernels::padded_subspaces(in.subspaces())},
                                   in.accumulation());
    work.coefficients = coefficients_.mutable_data_ptr();
    return work;
  }

 private:
  static Tensor new_like(const Tensor& t, bool wanted) {
    return wanted ? new_result(t, t.sizes()) : t.new_empty({0});
  }
  static bool wants(const Tensor& t) { return t.dim() != 1; }
  static void* pointer(const Tensor& t) { return wants(t) ? t.mutable_data_ptr() : nullptr; }

  Tensor grad_weights_, coefficients_;
};

}  // namespace mast_ext
