#include "kernels/subspace_nll/subspace_nll.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"
#include "host/pair_sums/pair_inputs.h"

namespace mast_ext {
namespace {

// The pair inputs and their log-variances, whose last dimension tells the form unless it is given.
struct NllInputs : PairInputs {
  Tensor log_var_x, log_var_y;
  kernels::Variance variance;

  NllInputs(const Tensor& x_, const Tensor& log_var_x_, const OptionalTensor& y_,
            const OptionalTensor& log_var_y_, const OptionalTensor& masks_,
            std::optional<std::string_view> form)
      : PairInputs(x_, y_, masks_), variance(form_of(log_var_x_, form)) {
    TORCH_CHECK_VALUE(y_.has_value() == log_var_y_.has_value(),
                      y_ ? "log_var_y is missing: y was given" : "log_var_y was given without y");
    const std::int64_t width = variance == kernels::Variance::kDiagonal ? dim() : subspaces();
    check_shape(log_var_x_, "log_var_x", {x_views(), batch(), width});
    check_like(log_var_x_, "log_var_x", x_, "x");
    if (log_var_y_) {
      check_shape(*log_var_y_, "log_var_y", {y_views(), batch(), width});
      check_like(*log_var_y_, "log_var_y", x_, "x");
    }
    log_var_x = dense_rows(log_var_x_);
    log_var_y = log_var_y_ ? dense_rows(*log_var_y_) : log_var_x;
  }

  kernels::PairSums sums() const {
    kernels::PairSums p = PairInputs::sums(/*norms=*/false);
    p.log_var_x = views_of(log_var_x);
    p.log_var_y = views_of(log_var_y);
    return p;
  }

 private:
  kernels::Variance form_of(const Tensor& log_var, std::optional<std::string_view> form) const {
    if (form) {
      if (*form == "diagonal") return kernels::Variance::kDiagonal;
      TORCH_CHECK_VALUE(*form == "subspace", "variance must be 'diagonal' or 'subspace', got '",
                        std::string(*form), "'");
      return kernels::Variance::kSubspace;
    }
    TORCH_CHECK_VALUE(
        log_var.dim() == 3 && (log_var.size(2) == dim() || log_var.size(2) == subspaces()),
        "log_var_x must have shape [", x_views(), ", ", batch(), ", ", dim(),
        "] (one variance per dimension) or [", x_views(), ", ", batch(), ", ", subspaces(),
        "] (one per subspace), got ", log_var.sizes());
    TORCH_CHECK_VALUE(dim() != subspaces(),
                      "variance must be given, 'diagonal' or 'subspace': log_var_x of shape ",
                      log_var.sizes(),
                      " could be either, as there are as many subspaces as "
                      "dimensions");
    return log_var.size(2) == dim() ? kernels::Variance::kDiagonal : kernels::Variance::kSubspace;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> subspace_nll(const Tensor& x, const Tensor& log_var_x,
                                        const OptionalTensor& y, const OptionalTensor& log_var_y,
                                        const OptionalTensor& masks,
                                        std::optional<std::string_view> variance) {
  const NllInputs in(x, log_var_x, y, log_var_y, masks, variance);
  Tensor nll = in.new_pairs();
  Tensor distance = in.variance == kernels::Variance::kSubspace ? in.new_pairs() : nll.new_empty(0);

  kernels::SubspaceNll p{
      .pairs = in.sums(),
      .variance = in.variance,
      .nll = nll.mutable_data_ptr(),
      .distance = distance.mutable_data_ptr(),
      .sums = nullptr,
  };
  run_on(
      x,
      [&] {
        parallel_rows(in.batch(), in.image_cost(p.pairs),
                      [&](auto begin, auto end) { kernels::subspace_nll_cpu(p, begin, end); });
      },
      [&](auto stream) {
        Tensor sums = nll.new_empty({p.pairs.rows.count(), in.subspaces(), in.batch()});
        p.sums = sums.mutable_data_ptr();
        return kernels::subspace_nll_cuda(p, stream);
      });
  return {nll, distance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> subspace_nll_backward(
    const Tensor& grad_nll_, const Tensor& x, const Tensor& log_var_x, const OptionalTensor& y,
    const OptionalTensor& log_var_y, const OptionalTensor& masks, const Tensor& nll_,
    const Tensor& distance_, std::optional<std::string_view> variance, std::array<bool, 5> wanted) {
  const NllInputs in(x, log_var_x, y, log_var_y, masks, variance);
  check_shape(grad_nll_, "grad_nll", nll_.sizes());
  check_like(grad_nll_, "grad_nll", nll_, "nll");
  const Tensor grad_nll = grad_nll_.contiguous();
  // The forward returns dense tensors, but a caller of the op may pass copies that are not.
  const Tensor nll = nll_.contiguous(), distance = distance_.contiguous();
  PairGradients out(in, wanted[0], wanted[2], wanted[4]);
  out.add_log_variances(in, in.log_var_x, wanted[1], in.log_var_y, wanted[3]);

  kernels::SubspaceNllBackward p{
      .pairs = in.sums(),
      .variance = in.variance,
      .grad_nll = grad_nll.const_data_ptr(),
      .nll = nll.const_data_ptr(),
      .distance = distance.const_data_ptr(),
      .grad = out.pointers(),
      .work = {},
  };
  run_on(
      x,
      [&] {
        out.run_slices(in, p, [](const auto& q, auto begin, auto end) {
          kernels::subspace_nll_backward_cpu(q, begin, end);
        });
      },
      [&](auto stream) {
        p.work = out.cuda_workspace(in, p.pairs.rows.count() + 1);
        return kernels::subspace_nll_backward_cuda(p, stream);
      });
  return {out.x, out.log_var_x, out.y, out.log_var_y, out.masks};
}

}  // namespace mast_ext
