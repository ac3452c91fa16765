// Ops that call other ops, which give them their derivatives.
#include <ATen/ExpandUtils.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "binding/op_handle.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

using CrossEntropyOp = Op<"prototype_cross_entropy", decltype(prototype_cross_entropy)>;
using CrossEntropyWithGradOp =
    Op<"prototype_cross_entropy_with_grad", decltype(prototype_cross_entropy_with_grad)>;
using SigmoidContrastOp = Op<"sigmoid_contrast", decltype(sigmoid_contrast)>;
using SigmoidContrastWithGradOp =
    Op<"sigmoid_contrast_with_grad", decltype(sigmoid_contrast_with_grad)>;

// Whether to compute a weighted sum and its gradient in one pass over the logits. Not for float16,
// whose gradients must be scaled before they are rounded, and not while a compiler traces, since it
// can fuse other ops with the two passes.
bool takes_one_pass(at::TensorList students) {
  constexpr std::int64_t kLeastImages = 16;  // fewer are faster in two passes
  const auto traced = [](const Tensor& t) { return t.key_set().has_any(at::kTensorSubclassLike); };
  const auto wants = [](const Tensor& t) { return t.requires_grad(); };
  if (students.empty() || std::ranges::any_of(students, traced)) return false;
  const Tensor& first = students.front();
  return !uses_cuda_kernels(first) && std::ranges::any_of(students, wants) &&
         at::GradMode::is_enabled() && first.scalar_type() != at::kHalf && first.dim() >= 2 &&
         first.size(-2) >= kLeastImages;
}

// Detaches an argument that gets no gradient, so that the graph neither keeps nor traverses it.
Tensor constant(const Tensor& t) { return t.requires_grad() ? t.detach() : t; }
OptionalTensor constant(const OptionalTensor& t) {
  return t ? OptionalTensor(constant(*t)) : std::nullopt;
}
std::vector<Tensor> constant(at::TensorList list) {
  std::vector<Tensor> constants;
  for (const Tensor& t : list) constants.push_back(constant(t));
  return constants;
}

std::tuple<Tensor, Tensor> weighted_prototype_cross_entropy(
    at::TensorList student, at::TensorList teacher_, const OptionalTensor& center_,
    const Tensor& weights_, double student_temperature, double teacher_temperature,
    bool with_mean) {
  const std::vector<Tensor> teacher = constant(teacher_);
  const OptionalTensor center = constant(center_);
  if (takes_one_pass(student)) {
    const auto [sum, mean, grad] =
        CrossEntropyWithGradOp::call(student, teacher, center, constant(weights_),
                                     student_temperature, teacher_temperature, with_mean);
    return {sum, mean};
  }
  const auto [cross_entropy, mean, student_stats, teacher_stats] = CrossEntropyOp::call(
      student, teacher, center, student_temperature, teacher_temperature, with_mean);
  const auto pairs = cross_entropy.sym_sizes();
  TORCH_CHECK_VALUE(at::is_expandable_to(weights_.sym_sizes(), pairs), "weights must have shape ",
                    cross_entropy.sizes(), " or broadcast to it, got ", weights_.sizes());
  TORCH_CHECK_TYPE(!weights_.is_complex(), "weights must be real, got ", weights_.scalar_type());
  const Tensor weights = constant(weights_).expand_symint(pairs).to(cross_entropy.scalar_type());
  // A pair of weight 0 adds nothing, even if its cross entropy is infinite.
  return {cross_entropy.mul(weights).masked_fill(weights.eq(0), 0).sum(), mean};
}

// In one sweep over the pairs, as of the prototypes, on a GPU, too: it saves one of four products.
Tensor weighted_sigmoid_contrast(const Tensor& x, const Tensor& y, const Tensor& scale,
                                 const Tensor& bias, const Tensor& weights_,
                                 std::optional<std::int64_t> offset) {
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(!weights_.is_complex(), "weights must be real, got ", weights_.scalar_type());
  Tensor weights = constant(weights_).to(type);
  if (x.dim() == 2) {  // else an error of the op
    const c10::SymInt rows[]{x.sym_size(0)};
    TORCH_CHECK_VALUE(at::is_expandable_to(weights.sym_sizes(), rows), "weights must have shape [",
                      x.sym_size(0), "] or broadcast to it, got ", weights_.sizes());
    weights = weights.expand_symint(rows);
  }
  const bool traced = x.key_set().has_any(at::kTensorSubclassLike);
  if (traced || x.scalar_type() == at::kHalf) {
    return SigmoidContrastOp::call(x, y, scale, bias, offset).mul(weights).sum();
  }
  const auto wants = [](const Tensor& t) {
    return at::GradMode::is_enabled() && t.requires_grad();
  };
  const auto [sum, grad_x, grad_y, grad_scale, grad_bias] = SigmoidContrastWithGradOp::call(
      x, y, scale, bias, weights, offset, {wants(x), wants(y), wants(scale), wants(bias)});
  return sum;
}

}  // namespace
}  // namespace mast_ext

TORCH_LIBRARY_IMPL(mast_ext, CompositeImplicitAutograd, m) {
  m.impl("weighted_prototype_cross_entropy", TORCH_FN(mast_ext::weighted_prototype_cross_entropy));
  m.impl("weighted_sigmoid_contrast", TORCH_FN(mast_ext::weighted_sigmoid_contrast));
}
