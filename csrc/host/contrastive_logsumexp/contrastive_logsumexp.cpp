#include "host/contrastive_logsumexp/cpu_driver.h"
#include "host/contrastive_logsumexp/cuda_driver.h"
#include "host/contrastive_logsumexp/inputs.h"
#include "host/ops.h"

namespace mast_ext {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contrastive_logsumexp(
    const Tensor& x, const OptionalTensor& y, const OptionalTensor& masks,
    const OptionalTensor& temperature_tensor, double temperature,
    std::optional<std::int64_t> offset, bool exclude_self, bool exclude_positive, bool within_views,
    bool keep) {
  const PlainTensors plain;
  const ContrastiveInputs in(x, y, masks, temperature_tensor,
                             {temperature, offset, exclude_self, exclude_positive, within_views});
  const Tensor lse = in.new_empty({in.subspaces(), in.x_views(), in.y_views(), in.rows()});
  const Tensor positive =
      in.options.has_positive
          ? in.new_empty(lse.sizes())
          : in.new_empty({lse.size(0), lse.size(1), lse.size(2), lse.size(3), 0});
  const Tensor inv_norm_x = in.inverse_norms(in.x);
  const Tensor inv_norm_y = in.self ? in.new_empty({in.subspaces(), 0, 0}) : in.inverse_norms(in.y);
  const Tensor& column_inv_norm = in.self ? inv_norm_x : inv_norm_y;
  const Tensor products = in.new_empty(in.kept_shape(keep));
  run_on(
      in.x,
      [&] {
        ContrastiveCpuDriver(in).forward(inv_norm_x, column_inv_norm, lse, positive,
                                         products.numel() > 0 ? products : Tensor());
      },
      [&](auto stream) {
        return ContrastiveCudaDriver(in).forward(inv_norm_x, column_inv_norm, lse, positive,
                                                 stream);
      });
  return {lse, positive, inv_norm_x, inv_norm_y, products};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> contrastive_logsumexp_backward(
    const OptionalTensor& grad_lse, const OptionalTensor& grad_positive, const Tensor& x,
    const OptionalTensor& y, const OptionalTensor& masks, const OptionalTensor& temperature_tensor,
    const Tensor& lse, const Tensor& inv_norm_x_, const Tensor& inv_norm_y, const Tensor& products_,
    const OptionalTensor& y_lse, const OptionalTensor& y_grad_lse,
    const OptionalTensor& y_grad_positive, double temperature, std::optional<std::int64_t> offset,
    bool exclude_self, bool exclude_positive, bool within_views, std::array<bool, 4> wanted) {
  const PlainTensors plain;
  const ContrastiveInputs in(x, y, masks, temperature_tensor,
                             {temperature, offset, exclude_self, exclude_positive, within_views});
  const auto K = in.subspaces();
  check_shape(lse, "lse", {K, in.x_views(), in.y_views(), in.rows()});
  check_shape(inv_norm_x_, "inv_norm_x", {K, in.x_views(), in.rows()});
  if (!in.self) check_shape(inv_norm_y, "inv_norm_y", {K, in.y_views(), in.columns()});
  // The forward returns dense tensors, but a caller of the op may pass copies that are not.
  const Tensor inv_norm_x = inv_norm_x_.contiguous();
  const Tensor column_inv_norm = in.self ? inv_norm_x : inv_norm_y.contiguous();
  const Tensor products = in.kept(products_);
  const ContrastiveAnchors rows(lse, grad_lse, grad_positive, "", lse.sizes());
  const ContrastiveAnchors columns =
      in.self ? rows
              : ContrastiveAnchors(y_lse, y_grad_lse, y_grad_positive, "y_",
                                   {K, in.y_views(), in.x_views(), in.columns()});
  ContrastiveGradients grads(in, wanted);
  run_on(
      in.x,
      [&] {
        ContrastiveCpuDriver(in, products)
            .backward(rows, columns, inv_norm_x, column_inv_norm, grads);
      },
      [&](auto stream) {
        return ContrastiveCudaDriver(in).backward(rows, columns, inv_norm_x, column_inv_norm, grads,
                                                  stream);
      });
  return {grads.x, grads.y, grads.masks, grads.temperature};
}

}  // namespace mast_ext
