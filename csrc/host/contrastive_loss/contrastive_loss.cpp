#include "kernels/contrastive_loss/contrastive_loss.h"

#include <limits>
#include <string>

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/contrastive_logsumexp/cpu_driver.h"
#include "host/contrastive_logsumexp/cuda_driver.h"
#include "host/contrastive_logsumexp/inputs.h"
#include "host/ops.h"
#include "kernels/view_pair_cross_entropy/view_pair_cross_entropy.h"

namespace mast_ext {
namespace {

ContrastiveInputs checked_views(at::TensorList views, const OptionalTensor& temperature_tensor,
                                double temperature, bool within_views) {
  TORCH_CHECK_VALUE(views.size() >= 2, "views must be 2 or more, got ", views.size());
  const Tensor& first = views.front();
  TORCH_CHECK_VALUE(first.dim() == 2 && first.size(0) >= 1,
                    "views[0] must have shape [N, D] with N >= 1, got ", first.sizes());
  dtype_of(first, "views[0]");
  for (std::size_t i = 1; i < views.size(); ++i) {
    const std::string name = "views[" + std::to_string(i) + "]";
    check_shape(views[i], name.c_str(), first.sizes());
    check_like(views[i], name.c_str(), first, "views[0]");
  }
  return {views,
          temperature_tensor,
          {.temperature = temperature,
           .offset = 0,
           .exclude_self = true,
           .exclude_positive = true,
           .within_views = within_views}};
}

float* floats(const Tensor& t) {
  return t.numel() > 0 ? static_cast<float*>(t.mutable_data_ptr()) : nullptr;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contrastive_loss(
    at::TensorList views, const OptionalTensor& temperature_tensor, double temperature,
    bool decoupled, bool within_views, bool one_sided, bool keep) {
  const PlainTensors plain;
  const ContrastiveInputs in = checked_views(views, temperature_tensor, temperature, within_views);
  const std::int64_t V = in.x_views(), N = in.rows();
  const Tensor loss = in.new_empty({}), lse = in.new_empty({V, V, N});
  const Tensor positive = in.new_empty({V, V, N});
  const Tensor slopes = in.new_empty(keep ? at::DimVector{2, V, V, N} : at::DimVector{0});
  const Tensor inv_norm = in.inverse_norms(in.x), products = in.new_empty(in.kept_shape(keep));
  run_on(
      in.x,
      [&] {
        ContrastiveCpuDriver(in).forward(inv_norm, inv_norm, lse, positive,
                                         products.numel() > 0 ? products : Tensor());
        const std::int64_t blocks = kernels::pair_blocks(N);
        const Tensor sums = in.new_empty({blocks});
        const kernels::ContrastiveLoss p{.dtype = dtype_of(lse, "lse"),
                                         .decoupled = decoupled,
                                         .one_sided = one_sided,
                                         .views = V,
                                         .images = N,
                                         .lse = lse.const_data_ptr(),
                                         .positive = positive.const_data_ptr(),
                                         .sums = sums.mutable_data_ptr(),
                                         .loss = loss.mutable_data_ptr(),
                                         .slopes = keep ? slopes.mutable_data_ptr() : nullptr};
        parallel_rows(blocks, 32 * V * V * kernels::kPairBlock,
                      [&](auto begin, auto end) { kernels::contrastive_loss_cpu(p, begin, end); });
        kernels::contrastive_loss_mean_cpu(p);
        // Rows of the other views are no anchors: infinite sums keep what is NaN in them out of
        // the gradient, where their terms are 0.
        if (one_sided) {
          lse.narrow(0, 1, V - 1).fill_(std::numeric_limits<double>::infinity());
        }
      },
      [&](auto stream) {
        const std::int64_t blocks = kernels::loss_blocks(V * N);
        const Tensor sums = in.new_empty({blocks > 1 ? blocks : 0});
        return ContrastiveCudaDriver(in).forward(
            inv_norm, inv_norm, lse, positive, stream, [&](const kernels::ContrastiveForward& f) {
              return kernels::contrastive_loss_cuda({.f = f,
                                                     .decoupled = decoupled,
                                                     .one_sided = one_sided,
                                                     .sums = floats(sums),
                                                     .loss = floats(loss),
                                                     .slopes = floats(slopes)},
                                                    stream);
            });
      });
  return {loss, lse, slopes, inv_norm, products};
}

std::tuple<Tensor, Tensor> contrastive_loss_backward(
    const Tensor& grad_, at::TensorList views, const OptionalTensor& temperature_tensor,
    const Tensor& lse, const Tensor& slopes, const Tensor& inv_norm_, const Tensor& products_,
    double temperature, bool within_views, std::array<bool, 2> wanted) {
  const PlainTensors plain;
  const ContrastiveInputs in = checked_views(views, temperature_tensor, temperature, within_views);
  const std::int64_t V = in.x_views(), N = in.rows();
  check_shape(grad_, "grad", {});
  check_like(grad_, "grad", lse, "lse");
  check_shape(lse, "lse", {V, V, N});
  check_shape(slopes, "slopes", {2, V, V, N});
  check_shape(inv_norm_, "inv_norm", {1, V, N});
  const Tensor inv_norm = inv_norm_.contiguous(), products = in.kept(products_);
  // The kernels of a GPU multiply the slopes by the gradient of the loss themselves.
  const Tensor of_sums = uses_cuda_kernels(in.x) ? slopes : slopes.mul(grad_);
  const ContrastiveAnchors anchors(lse.unsqueeze(0), of_sums.select(0, 0).unsqueeze(0),
                                   of_sums.select(0, 1).unsqueeze(0), "", {1, V, V, N});
  ContrastiveGradients grads(in, {wanted[0], false, false, wanted[1]});
  if (uses_cuda_kernels(in.x)) grads.factor = grad_;
  run_on(
      in.x,
      [&] {
        ContrastiveCpuDriver(in, products).backward(anchors, anchors, inv_norm, inv_norm, grads);
      },
      [&](auto stream) {
        return ContrastiveCudaDriver(in).backward(anchors, anchors, inv_norm, inv_norm, grads,
                                                  stream);
      });
  return {grads.x, grads.temperature};
}

}  // namespace mast_ext
