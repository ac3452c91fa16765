// The arguments of contrastive_logsumexp, checked and laid out for its CPU and CUDA drivers.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/stack.h>

#include <array>
#include <cstddef>
#include <optional>
#include <string>

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/common/tensors.h"
#include "kernels/contrastive_logsumexp/contrastive_logsumexp.h"

namespace mast_ext {

// The options in contrastive_logsumexp's schema.
struct ContrastiveArguments {
  double temperature;
  std::optional<std::int64_t> offset;
  bool exclude_self, exclude_positive, within_views;
};

struct ContrastiveInputs {
  Tensor x, y, masks;  // y is x in self-contrast; masks are undefined if not given
  Tensor temperature_tensor;
  double temperature;  // not known if it is a tensor on a GPU
  bool self;
  kernels::ContrastiveOptions options;
  std::int64_t offset;
  // If the views are separate tensors: their distance in memory, in elements. x then has the shape
  // of all views and the data of the first.
  std::optional<std::int64_t> apart;

  ContrastiveInputs(const Tensor& x_, const OptionalTensor& y_, const OptionalTensor& masks_,
                    const OptionalTensor& temperature_tensor_,
                    const ContrastiveArguments& arguments)
      : temperature(arguments.temperature),
        self(!y_),
        options{.has_positive = arguments.offset.has_value(),
                .exclude_self = arguments.exclude_self || self,
                .exclude_positive = arguments.exclude_positive,
                .within_views = arguments.within_views},
        offset(arguments.offset.value_or(0)) {
    TORCH_CHECK_VALUE(x_.dim() == 3, "x must have shape [Vx, N, D], got ", x_.sizes());
    dtype_of(x_, "x");
    if (y_) {
      TORCH_CHECK_VALUE(y_->dim() == 3 && y_->size(2) == x_.size(2), "y must have shape [Vy, M, ",
                        x_.size(2), "] to fit x of shape ", x_.sizes(), ", got ", y_->sizes());
      check_like(*y_, "y", x_, "x");
    }
    if (masks_) {
      check_masks(*masks_, x_);
      masks = masks_->contiguous();
    }
    if (uses_cuda_kernels(x_)) {
      check_countable(x_, "x", kernels::kMostCounted);
      if (y_) check_countable(*y_, "y", kernels::kMostCounted);
    }
    x = dense_rows(x_);
    y = y_ ? dense_rows(*y_) : x;
    check_temperature(temperature_tensor_);
    TORCH_CHECK_VALUE(!self || (options.has_positive && offset == 0),
                      "offset must be 0 when y is not given, got ",
                      options.has_positive ? std::to_string(offset) : "None");
    TORCH_CHECK_VALUE(!options.has_positive || (offset >= 0 && offset <= y.size(1) - x.size(1)),
                      "offset must lie between 0 and M - N = ", y.size(1) - x.size(1),
                      " for x of shape ", x.sizes(), " and y of shape ", y.sizes(), ", got ",
                      offset);
    TORCH_CHECK_VALUE(options.has_positive || !(options.exclude_self || options.exclude_positive),
                      "offset must be given with exclude_self or exclude_positive, got None");
    TORCH_CHECK_VALUE(x.size(0) == y.size(0) || (options.within_views && !options.exclude_self),
                      "y must have as many views as x, ", x.size(0),
                      ", with exclude_self=True or within_views=False, got ", y.size(0));
  }

  // Self-contrast of views [N, D] that have one shape and dtype, as if they were stacked.
  ContrastiveInputs(at::TensorList views, const OptionalTensor& temperature_tensor,
                    const ContrastiveArguments& arguments)
      : ContrastiveInputs(in_one(views), std::nullopt, std::nullopt, temperature_tensor,
                          arguments) {
    apart = distance(views);
  }

  std::int64_t x_views() const { return x.size(0); }
  std::int64_t y_views() const { return y.size(0); }
  std::int64_t rows() const { return x.size(1); }
  std::int64_t columns() const { return y.size(1); }
  std::int64_t dim() const { return x.size(2); }
  std::int64_t subspaces() const { return masks.defined() ? masks.size(0) : 1; }
  at::TensorOptions accumulation() const { return x.options().dtype(accumulation_type(x)); }
  Tensor new_empty(at::IntArrayRef shape) const { return x.new_empty(shape, accumulation()); }

  // The products, or their exponentials, that the forward on a CPU keeps for the backward where
  // they take little memory, of all rows of x and y; in self-contrast those on and above the
  // diagonal of tiles. Making the products again would take more than a quarter of the backward's
  // time. Rows are padded: at a distance of a power of two they would share cache sets. The last
  // number of the first row is the height of the forward's tiles, which depends on the number of
  // threads.
  static constexpr std::int64_t kKeptProducts = 1 << 20, kPadding = 16;
  at::DimVector kept_shape(bool keep) const {
    const std::int64_t height = x.size(0) * x.size(1) - first_kept_column();
    const std::int64_t width = y.size(0) * y.size(1) - first_kept_column() + kPadding;
    if (!keep || on_gpu(x) || subspaces() * height * width > kKeptProducts) return {0};
    return {subspaces(), height, width};
  }

  // In self-contrast without the blocks (i, i) those of the last rows and first columns are none.
  std::int64_t first_kept_column() const { return self && !options.within_views ? rows() : 0; }

  // What the forward kept, dense; undefined if that is nothing.
  Tensor kept(const Tensor& products) const {
    if (products.numel() == 0) return Tensor();
    check_shape(products, "products", kept_shape(true));
    check_device(products, "products", x, "x");
    check_accumulation(products, "products", x, "embeddings");
    return products.contiguous();
  }

  const void* mask(std::int64_t k) const { return const_element(masks, k * dim()); }

  // 1 / norm of every row of z in every subspace, [K, V, N].
  Tensor inverse_norms(const Tensor& z) const {
    Tensor inv_norm = new_empty({subspaces(), z.size(0), z.size(1)});
    const kernels::InverseNorms p{.z = rows_of(z),
                                  .masks = const_element(masks),
                                  .subspaces = subspaces(),
                                  .inv_norm = inv_norm.mutable_data_ptr()};
    run_on(
        z,
        [&] {
          parallel_rows(z.size(0) * z.size(1), 2 * subspaces() * dim(),
                        [&](auto begin, auto end) { kernels::inverse_norms_cpu(p, begin, end); });
        },
        [&](auto stream) { return kernels::inverse_norms_cuda(p, stream); });
    return inv_norm;
  }

  // Those of x, of y, or of another tensor.
  kernels::EmbeddingRows rows_of(const Tensor& z) const {
    kernels::EmbeddingRows rows = embedding_rows(z);
    if (apart && z.is_same(x)) rows.view_stride = *apart;
    return rows;
  }

  static kernels::EmbeddingRows embedding_rows(const Tensor& z) {
    return {.dtype = dtype_of(z, "z"),
            .data = z.const_data_ptr(),
            .view_stride = z.stride(0),
            .row_stride = z.stride(1),
            .views = z.size(0),
            .rows = z.size(1),
            .dim = z.size(2)};
  }

 private:
  // The distance of neighboring views in memory, if it is the same for all (of two views it is) and
  // their rows are alike: kernels then reach them as if they were stacked. A CPU's vendor library,
  // and that of a GPU for wide embeddings, needs views that are.
  static std::optional<std::int64_t> distance(at::TensorList views) {
    const Tensor& first = views.front();
    if (!uses_cuda_kernels(first) ||
        first.size(1) > kernels::most_fused_dims(dtype_of(first, "views[0]"))) {
      return std::nullopt;
    }
    const auto address = [](const Tensor& view) {
      return reinterpret_cast<std::intptr_t>(view.const_data_ptr());
    };
    const std::int64_t step = address(views[1]) - address(first);
    if (step % first.element_size() != 0) return std::nullopt;
    for (std::size_t i = 1; i < views.size(); ++i) {
      if (views[i].strides() != first.strides() ||
          address(views[i]) - address(views[i - 1]) != step) {
        return std::nullopt;
      }
    }
    return first.stride(1) == 1 ? std::optional(step / first.element_size()) : std::nullopt;
  }

  static Tensor in_one(at::TensorList views) {
    const auto count = static_cast<std::int64_t>(views.size());
    if (!distance(views)) return at::stack(views);
    return views.front().unsqueeze(0).expand({count, -1, -1});
  }

  void check_temperature(const OptionalTensor& tensor) {
    if (tensor) {
      TORCH_CHECK_VALUE(tensor->dim() == 0, "temperature must be a number or a scalar tensor, got ",
                        "shape ", tensor->sizes());
      check_device(*tensor, "temperature", x, "x");
      check_accumulation(*tensor, "temperature", x, "embeddings");
      temperature_tensor = *tensor;
      if (!tensor->is_cpu()) return;
      temperature = tensor->item<double>();
    }
    TORCH_CHECK_VALUE(temperature > 0, "temperature must be positive, got ", temperature);
  }
};

// What the weights W need of the rows, or of the columns: lse and the gradients of lse and
// positive, [K, V, V', N] each. Those that are not needed are undefined.
struct ContrastiveAnchors {
  Tensor lse, grad_lse, grad_positive;

  // A result whose gradient is not given has no term in W; lse is needed only with its gradient.
  ContrastiveAnchors(const OptionalTensor& lse_, const OptionalTensor& grad_lse_,
                     const OptionalTensor& grad_positive_, const char* prefix,
                     at::IntArrayRef shape) {
    const auto take = [&](const OptionalTensor& from, const char* name) {
      if (!from) return Tensor();
      check_shape(*from, (std::string(prefix) + name).c_str(), shape);
      return from->contiguous();
    };
    grad_lse = take(grad_lse_, "grad_lse");
    grad_positive = take(grad_positive_, "grad_positive");
    if (grad_lse.defined()) {
      TORCH_CHECK_VALUE(lse_, prefix, "lse must be given with ", prefix, "grad_lse");
      lse = take(lse_, "lse");
    }
  }
  ContrastiveAnchors() = default;

  bool any() const { return grad_lse.defined() || grad_positive.defined(); }

  // The addresses from element `at` on.
  kernels::ContrastiveAnchor pointers(std::int64_t at = 0) const {
    return {.lse = const_element(lse, at),
            .grad_lse = const_element(grad_lse, at),
            .grad_positive = const_element(grad_positive, at)};
  }
};

// The results of the backward; those that are not wanted are empty.
struct ContrastiveGradients {
  Tensor x, y, masks, temperature;
  Tensor factor;  // of all of them, a scalar that only CUDA kernels read; undefined: 1
  bool wants_x, wants_y, wants_masks, wants_temperature;

  ContrastiveGradients(const ContrastiveInputs& in, std::array<bool, 4> wanted)
      : wants_x(wanted[0]),
        wants_y(wanted[1] && !in.self),
        wants_masks(wanted[2] && in.masks.defined()),
        wants_temperature(wanted[3] && in.temperature_tensor.defined()) {
    x = wants_x ? in.x.new_empty(in.x.sizes()) : in.x.new_empty({0});
    y = wants_y ? in.y.new_empty(in.y.sizes()) : in.x.new_empty({0});
    masks = wants_masks ? in.masks.new_empty(in.masks.sizes()) : in.new_empty({0});
    temperature = wants_temperature ? in.new_empty({}) : in.new_empty({0});
    if (in.subspaces() == 0) {  // nothing is added to them
      x.zero_();
      y.zero_();
    }
  }

  // Whether the sums over x's rows, or over y's rows, are needed. The masks' gradient takes those
  // of y only if W has no terms of the columns (`columns_too`).
  bool needs_x() const { return wants_x || wants_masks || wants_temperature; }
  bool needs_y(bool columns_too) const { return wants_y || (wants_masks && !columns_too); }

  // Completes masks and temperature from the sums over rows, grad_masks [slices, K, D] and
  // dots [slices].
  void finish(const ContrastiveInputs& in, const Tensor& grad_masks, const Tensor& dots,
              bool columns_too) {
    if (wants_masks) masks.copy_(grad_masks.sum(0));
    if (wants_temperature) {
      temperature.copy_(dots.sum().div_(in.temperature_tensor).mul_(columns_too ? -0.5 : -1));
    }
  }
};

}  // namespace mast_ext
