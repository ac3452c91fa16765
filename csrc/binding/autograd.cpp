// Derivatives of the ops, which the dispatcher runs before a device's kernel. Gradients are
// computed by backward ops, which are called through the dispatcher again (op_handle.h).
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "binding/formula.h"
#include "binding/op_handle.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

struct SubspaceSimilarity
    : Formula<SubspaceSimilarity, Op<"subspace_similarity", decltype(subspace_similarity)>> {
  using Backward = Op<"subspace_similarity_backward", decltype(subspace_similarity_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& x,
                   const OptionalTensor& y, const OptionalTensor& masks, std::string_view metric,
                   double eps) {
    const auto& [similarity, inv_norm_x, inv_norm_y] = result;
    save_tensors(ctx, x, y, masks, similarity, inv_norm_x, inv_norm_y);
    keep_options(ctx, std::string(metric), eps);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [x, y, masks, similarity, inv_norm_x, inv_norm_y] = saved_tensors<6>(ctx);
    const auto [metric, eps] = kept_options<std::string, double>(ctx);
    const auto wanted = which_wanted(ctx, x, y, masks);
    return only(wanted, Backward::call(grads[0], x, if_defined(y), if_defined(masks), similarity,
                                       inv_norm_x, inv_norm_y, metric, eps, wanted));
  }
};

struct SubspaceNll : Formula<SubspaceNll, Op<"subspace_nll", decltype(subspace_nll)>> {
  using Backward = Op<"subspace_nll_backward", decltype(subspace_nll_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& x,
                   const Tensor& log_var_x, const OptionalTensor& y,
                   const OptionalTensor& log_var_y, const OptionalTensor& masks,
                   std::optional<std::string_view> variance) {
    const auto& [nll, distance] = result;
    save_tensors(ctx, x, log_var_x, y, log_var_y, masks, nll, distance);
    keep_options(ctx, std::optional<std::string>(variance));
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [x, log_var_x, y, log_var_y, masks, nll, distance] = saved_tensors<7>(ctx);
    const auto [variance] = kept_options<std::optional<std::string>>(ctx);
    const auto wanted = which_wanted(ctx, x, log_var_x, y, log_var_y, masks);
    return only(wanted, Backward::call(grads[0], x, log_var_x, if_defined(y), if_defined(log_var_y),
                                       if_defined(masks), nll, distance, variance, wanted));
  }
};

struct VarianceCovariance
    : Formula<VarianceCovariance, Op<"variance_covariance", decltype(variance_covariance)>> {
  using Backward = Op<"variance_covariance_backward", decltype(variance_covariance_backward)>;
  static constexpr std::size_t differentiable = 2;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& z,
                   const OptionalTensor& masks, double eps) {
    const auto& [variance, covariance, mean, sum_squares, product, row_sums, centered] = result;
    ctx->set_materialize_grads(true);  // the backward op takes both gradients
    save_tensors(ctx, z, masks, mean, sum_squares, product, row_sums, centered);
    keep_options(ctx, eps);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [z, masks, mean, sum_squares, product, row_sums, centered] = saved_tensors<7>(ctx);
    const auto [eps] = kept_options<double>(ctx);
    const auto wanted = which_wanted(ctx, z, masks);
    return only(wanted, Backward::call(grads[0], grads[1], z, if_defined(masks), mean, sum_squares,
                                       product, row_sums, centered, eps, wanted));
  }
};

// The total alone has a gradient.
struct VicregTerms : Formula<VicregTerms, Op<"vicreg_terms", decltype(vicreg_terms)>> {
  using Backward = Op<"vicreg_terms_backward", decltype(vicreg_terms_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& x,
                   const Tensor& y, const OptionalTensor& invariance, const OptionalTensor& group,
                   const OptionalTensor& group_weights, double eps, at::ArrayRef<double> scales,
                   at::ArrayRef<double> weights) {
    const auto& [total, terms, mean, sum_squares, product, centered, sums, counts, means,
                 compared] = result;
    save_tensors(ctx, x, y, invariance, group, group_weights, mean, sum_squares, product, centered,
                 sums, counts, means, compared);
    keep_options(ctx, eps, scales[0] * weights[0], scales[1] * weights[1], scales[2] * weights[2]);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [x, y, invariance, group, group_weights, mean, sum_squares, product, centered, sums,
                counts, means, compared] = saved_tensors<13>(ctx);
    const auto [eps, a, b, c] = kept_options<double, double, double, double>(ctx);
    const std::array factors{a, b, c};
    const auto wanted = which_wanted(ctx, x, y, invariance, group, group_weights);
    const auto [views, numbers, weights] =
        Backward::call(grads[0], x, y, if_defined(invariance), if_defined(group),
                       if_defined(group_weights), mean, sum_squares, product, centered, sums,
                       counts, means, compared, eps, at::ArrayRef<double>(factors), wanted[4]);
    return only(wanted,
                std::tuple(views.select(0, 0), views.select(0, 1), numbers, Tensor(), weights));
  }
};

struct CrossCorrelationPenalty
    : Formula<CrossCorrelationPenalty,
              Op<"cross_correlation_penalty", decltype(cross_correlation_penalty)>> {
  using Backward =
      Op<"cross_correlation_penalty_backward", decltype(cross_correlation_penalty_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& a,
                   const Tensor& b, double lambda, std::string_view variant) {
    const auto& [penalty, mean, scale, product, dots, row_sums, column_sums, standard] = result;
    save_tensors(ctx, a, b, mean, scale, product, dots, row_sums, column_sums, standard);
    keep_options(ctx, lambda, std::string(variant));
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [a, b, mean, scale, product, dots, row_sums, column_sums, standard] =
        saved_tensors<9>(ctx);
    const auto [lambda, variant] = kept_options<double, std::string>(ctx);
    const auto wanted = which_wanted(ctx, a, b);
    return only(wanted, Backward::call(grads[0], a, b, mean, scale, product, dots, row_sums,
                                       column_sums, standard, lambda, variant, wanted));
  }
};

// The residual has no gradient.
struct GroupedSquaredDifference
    : Formula<GroupedSquaredDifference,
              Op<"grouped_squared_difference", decltype(grouped_squared_difference)>> {
  using Backward =
      Op<"grouped_squared_difference_backward", decltype(grouped_squared_difference_backward)>;
  static constexpr std::size_t differentiable = 2;

  static void save(AutogradContext* ctx, const Forward::Result&, const Tensor& x, const Tensor& y,
                   const Tensor& group, std::int64_t /*groups*/, const OptionalTensor& weight,
                   const OptionalTensor& /*dimension_weights*/) {
    save_tensors(ctx, x, y, weight, group);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [x, y, weight, group] = saved_tensors<4>(ctx);
    const std::array<bool, 3> wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                     weight.defined() && ctx->needs_input_grad(3)};
    const Tensor grad_sums = grads[0].defined()
                                 ? grads[0]
                                 : grads[1].new_zeros_symint({grads[1].sym_size(0), x.sym_size(1)});
    auto [grad_x, grad_y, grad_weight] =
        Backward::call(grad_sums, if_defined(grads[1]), x, y, group, if_defined(weight), wanted);
    return {wanted[0] ? grad_x : Tensor(), wanted[1] ? grad_y : Tensor(), Tensor(), Tensor(),
            wanted[2] ? grad_weight : Tensor()};
  }
};

struct GroupedMeans : Formula<GroupedMeans, Op<"grouped_means", decltype(grouped_means)>> {
  using Backward = Op<"grouped_means_backward", decltype(grouped_means_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& weights,
                   const Tensor& sums, const Tensor& counts) {
    const auto& [means, compared] = result;
    save_tensors(ctx, weights, sums, counts, means, compared);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [weights, sums, counts, means, compared] = saved_tensors<5>(ctx);
    const auto wanted = which_wanted(ctx, weights, sums, counts);
    return only(wanted, Backward::call(grads[0], weights, sums, counts, means, compared, wanted));
  }
};

// The total alone has a gradient.
struct WeightedTerms : Formula<WeightedTerms, Op<"weighted_terms", decltype(weighted_terms)>> {
  using Backward = Op<"weighted_terms_backward", decltype(weighted_terms_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result&, const Tensor& first,
                   const OptionalTensor& second, const OptionalTensor& third,
                   at::ArrayRef<double> scales, at::ArrayRef<double> weights) {
    save_tensors(ctx, first, second, third);
    const auto factor = [&](std::size_t i) {
      return i < scales.size() ? scales[i] * weights[i] : 0;
    };
    keep_options(ctx, factor(0), factor(1), factor(2));  // compiled autograd keeps no lists
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [first, second, third] = saved_tensors<3>(ctx);
    const auto [a, b, c] = kept_options<double, double, double>(ctx);
    const std::array factors{a, b, c};
    const auto count = 1 + second.defined() + third.defined();
    const auto wanted = which_wanted(ctx, first, second, third);
    return only(wanted, Backward::call(grads[0], first, if_defined(second), if_defined(third),
                                       at::ArrayRef<double>(factors.data(), count), wanted));
  }
};

struct GramDifference : Formula<GramDifference, Op<"gram_difference", decltype(gram_difference)>> {
  using Backward = Op<"gram_difference_backward", decltype(gram_difference_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& s,
                   const Tensor& t, std::optional<std::string_view> remove_negative,
                   bool /*keep*/) {
    save_tensors(ctx, s, t, std::get<1>(result));
    keep_options(ctx, std::optional<std::string>(remove_negative));
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [s, t, product] = saved_tensors<3>(ctx);
    const auto [remove_negative] = kept_options<std::optional<std::string>>(ctx);
    const auto wanted = which_wanted(ctx, s, t);
    return only(wanted, Backward::call(grads[0], s, t, product, remove_negative, wanted));
  }
};

// The slices get no gradient.
struct SlicedCharacteristicSums
    : Formula<SlicedCharacteristicSums,
              Op<"sliced_characteristic_sums", decltype(sliced_characteristic_sums)>> {
  using Backward =
      Op<"sliced_characteristic_sums_backward", decltype(sliced_characteristic_sums_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& z,
                   const Tensor& slices, std::int64_t /*knots*/, double t_min, double t_max,
                   bool /*keep*/) {
    const auto& [sums, projections] = result;
    save_tensors(ctx, z, slices, projections);
    keep_options(ctx, t_min, t_max);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    if (!ctx->needs_input_grad(0)) return {};
    const auto [z, slices, projections] = saved_tensors<3>(ctx);
    const auto [t_min, t_max] = kept_options<double, double>(ctx);
    return {Backward::call(grads[0], z, slices, projections, t_min, t_max)};
  }
};

// The sums alone have a gradient.
struct EppsPulleyDistance
    : Formula<EppsPulleyDistance, Op<"epps_pulley_distance", decltype(epps_pulley_distance)>> {
  using Backward = Op<"epps_pulley_distance_backward", decltype(epps_pulley_distance_backward)>;

  static void save(AutogradContext* ctx, const Tensor& /*distance*/, const Tensor& sums,
                   const OptionalTensor& images_tensor, double images, const Tensor& phi,
                   const Tensor& weights) {
    save_tensors(ctx, sums, images_tensor, phi, weights);
    keep_options(ctx, images);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    if (!ctx->needs_input_grad(0)) return {};
    const auto [sums, images_tensor, phi, weights] = saved_tensors<4>(ctx);
    const auto [images] = kept_options<double>(ctx);
    return {Backward::call(grads[0], sums, if_defined(images_tensor), images, phi, weights)};
  }
};

struct ContrastiveLogsumexp
    : Formula<ContrastiveLogsumexp, Op<"contrastive_logsumexp", decltype(contrastive_logsumexp)>> {
  using Backward = Op<"contrastive_logsumexp_backward", decltype(contrastive_logsumexp_backward)>;
  static constexpr std::size_t differentiable = 2;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& x,
                   const OptionalTensor& y, const OptionalTensor& masks,
                   const OptionalTensor& temperature_tensor, double temperature,
                   std::optional<std::int64_t> offset, bool exclude_self, bool exclude_positive,
                   bool within_views, bool /*keep*/) {
    const auto& [lse, positive, inv_norm_x, inv_norm_y, products] = result;
    save_tensors(ctx, x, y, masks, temperature_tensor, lse, inv_norm_x, inv_norm_y, products);
    keep_options(ctx, temperature, offset, exclude_self, exclude_positive, within_views);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [x, y, masks, temperature_tensor, lse, inv_norm_x, inv_norm_y, products] =
        saved_tensors<8>(ctx);
    const auto [temperature, offset, exclude_self, exclude_positive, within_views] =
        kept_options<double, std::optional<std::int64_t>, bool, bool, bool>(ctx);
    const Tensor grad_positive = offset ? grads[1] : Tensor();  // without offset, it is empty
    if (!grads[0].defined() && !grad_positive.defined()) return {};
    const auto wanted = which_wanted(ctx, x, y, masks, temperature_tensor);
    return only(
        wanted,
        Backward::call(if_defined(grads[0]), if_defined(grad_positive), x, if_defined(y),
                       if_defined(masks), if_defined(temperature_tensor), lse, inv_norm_x,
                       inv_norm_y, products, std::nullopt, std::nullopt, std::nullopt, temperature,
                       offset, exclude_self, exclude_positive, within_views, wanted));
  }
};

struct ContrastiveLoss
    : Formula<ContrastiveLoss, Op<"contrastive_loss", decltype(contrastive_loss)>> {
  using Backward = Op<"contrastive_loss_backward", decltype(contrastive_loss_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, at::TensorList views,
                   const OptionalTensor& temperature_tensor, double temperature, bool /*decoupled*/,
                   bool within_views, bool /*one_sided*/, bool /*keep*/) {
    const auto& [loss, lse, slopes, inv_norm, products] = result;
    Tensors saved{or_undefined(temperature_tensor), lse, slopes, inv_norm, products};
    saved.insert(saved.end(), views.begin(), views.end());
    ctx->save_for_backward(std::move(saved));
    keep_options(ctx, temperature, within_views);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const Tensors saved = ctx->get_saved_variables();
    const at::TensorList views = at::TensorList(saved).slice(5);
    const auto [temperature, within_views] = kept_options<double, bool>(ctx);
    std::array<bool, 2> wanted{false, saved[0].defined() && ctx->needs_input_grad(views.size())};
    for (std::size_t i = 0; i < views.size(); ++i) wanted[0] |= ctx->needs_input_grad(i);
    const auto [grad_views, grad_temperature] =
        Backward::call(grads[0], views, if_defined(saved[0]), saved[1], saved[2], saved[3],
                       saved[4], temperature, within_views, wanted);
    Tensors found(views.size() + 1);
    for (std::size_t i = 0; i < views.size(); ++i) {
      if (ctx->needs_input_grad(i)) found[i] = grad_views.select(0, static_cast<std::int64_t>(i));
    }
    if (wanted[1]) found.back() = grad_temperature;
    return found;
  }
};

struct ViewPairCrossEntropy
    : Formula<ViewPairCrossEntropy,
              Op<"view_pair_cross_entropy", decltype(view_pair_cross_entropy)>> {
  using Backward =
      Op<"view_pair_cross_entropy_backward", decltype(view_pair_cross_entropy_backward)>;

  static void save(AutogradContext* ctx, const Tensor&, const Tensor& lse, const Tensor& positive,
                   bool decoupled, std::string_view reduction) {
    save_tensors(ctx, lse, positive);
    keep_options(ctx, decoupled, std::string(reduction));
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [lse, positive] = saved_tensors<2>(ctx);
    const auto [decoupled, reduction] = kept_options<bool, std::string>(ctx);
    return only(which_wanted(ctx, lse, positive),
                Backward::call(grads[0], lse, positive, decoupled, reduction));
  }
};

// ---- Sums whose gradients for a gradient of 1 the forward has computed

// Whether the sum itself is the loss, so that the results are the gradients. A graph that is kept
// returns copies, as it needs them again, and the value on a GPU is not waited for.
bool is_one(const Tensor& grad) {
  return !at::GradMode::is_enabled() && grad.is_cpu() && !at::isTensorSubclassLike(grad) &&
         !torch::autograd::get_current_graph_task_keep_graph() && grad.item<double>() == 1;
}

// Stands before the inputs of a sum in the graph of its gradients. What the forward has computed
// does not depend on the inputs as far as autograd knows: a second derivative would be zero. With
// this between, whoever asks for one comes to NoSecondDerivative, which is an error.
struct BeforeInputs : torch::autograd::Node {
  using Node::Node;
  Tensors apply(Tensors&&) override { TORCH_CHECK(false, "a gradient was differentiated"); }
};

// `grad` as the backward op takes it.
Tensor differentiated(const Tensor& grad) {
  if (!at::GradMode::is_enabled()) return grad;
  const auto sum = torch::autograd::get_current_node();
  if (sum == nullptr || at::isTensorSubclassLike(grad)) {  // compiled, or transformed
    return grad.requires_grad() ? grad : grad.detach().requires_grad_();
  }
  torch::autograd::edge_list edges = sum->next_edges();
  if (grad.requires_grad()) edges.push_back(torch::autograd::impl::gradient_edge(grad));
  const auto before = std::make_shared<BeforeInputs>(std::move(edges));
  const Tensor dependent = grad.detach();
  torch::autograd::set_history(dependent, before);
  return dependent;
}

struct SigmoidContrast
    : Formula<SigmoidContrast, Op<"sigmoid_contrast", decltype(sigmoid_contrast)>> {
  using Backward = Op<"sigmoid_contrast_backward", decltype(sigmoid_contrast_backward)>;

  static void save(AutogradContext* ctx, const Tensor&, const Tensor& x, const Tensor& y,
                   const Tensor& scale, const Tensor& bias, std::optional<std::int64_t> offset) {
    save_tensors(ctx, x, y, scale, bias);
    keep_options(ctx, offset);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [x, y, scale, bias] = saved_tensors<4>(ctx);
    const auto [offset] = kept_options<std::optional<std::int64_t>>(ctx);
    const auto wanted = which_wanted(ctx, x, y, scale, bias);
    return only(wanted, Backward::call(grads[0], x, y, scale, bias, offset, wanted));
  }
};

// The weights get no gradient.
struct SigmoidContrastWithGrad
    : Formula<SigmoidContrastWithGrad,
              Op<"sigmoid_contrast_with_grad", decltype(sigmoid_contrast_with_grad)>> {
  using Backward =
      Op<"sigmoid_contrast_with_grad_backward", decltype(sigmoid_contrast_with_grad_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const auto&...) {
    const auto& [sum, grad_x, grad_y, grad_scale, grad_bias] = result;
    save_tensors(ctx, grad_x, grad_y, grad_scale, grad_bias);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [grad_x, grad_y, grad_scale, grad_bias] = saved_tensors<4>(ctx);
    const auto wanted = which_wanted(ctx, grad_x, grad_y, grad_scale, grad_bias);
    if (is_one(grads[0])) return only(wanted, std::tuple(grad_x, grad_y, grad_scale, grad_bias));
    return only(wanted,
                Backward::call(differentiated(grads[0]), grad_x, grad_y, grad_scale, grad_bias));
  }
};

// The teacher gets no gradient.
struct PrototypeCrossEntropy
    : Formula<PrototypeCrossEntropy,
              Op<"prototype_cross_entropy", decltype(prototype_cross_entropy)>> {
  using Backward =
      Op<"prototype_cross_entropy_backward", decltype(prototype_cross_entropy_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, at::TensorList student,
                   at::TensorList teacher, const OptionalTensor& center, double student_temperature,
                   double teacher_temperature, bool /*with_mean*/) {
    const auto& [cross_entropy, teacher_mean, student_stats, teacher_stats] = result;
    Tensors saved{or_undefined(center), student_stats, teacher_stats};
    saved.insert(saved.end(), student.begin(), student.end());
    saved.insert(saved.end(), teacher.begin(), teacher.end());
    ctx->save_for_backward(std::move(saved));
    keep_options(ctx, static_cast<std::int64_t>(student.size()), student_temperature,
                 teacher_temperature);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [students, student_temperature, teacher_temperature] =
        kept_options<std::int64_t, double, double>(ctx);
    const Tensors saved = ctx->get_saved_variables();
    const at::TensorList views = at::TensorList(saved).slice(3);
    return Backward::call(grads[0], views.slice(0, students), views.slice(students),
                          if_defined(saved[0]), saved[1], saved[2], student_temperature,
                          teacher_temperature);
  }
};

struct PrototypeCrossEntropyWithGrad
    : Formula<PrototypeCrossEntropyWithGrad, Op<"prototype_cross_entropy_with_grad",
                                                decltype(prototype_cross_entropy_with_grad)>> {
  using Backward = Op<"prototype_cross_entropy_with_grad_backward",
                      decltype(prototype_cross_entropy_with_grad_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const auto&...) {
    const auto& [sum, teacher_mean, grad_student] = result;
    ctx->save_for_backward(grad_student);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const Tensors grad_student = ctx->get_saved_variables();
    if (is_one(grads[0])) return grad_student;
    return Backward::call(differentiated(grads[0]), grad_student);
  }
};

struct NearestNeighborDistance
    : Formula<NearestNeighborDistance,
              Op<"nearest_neighbor_distance", decltype(nearest_neighbor_distance)>> {
  using Backward =
      Op<"nearest_neighbor_distance_backward", decltype(nearest_neighbor_distance_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor& x,
                   double eps) {
    const auto& [distance, index] = result;
    save_tensors(ctx, x, distance, index);
    keep_options(ctx, eps);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [x, distance, index] = saved_tensors<3>(ctx);
    const auto [eps] = kept_options<double>(ctx);
    return {Backward::call(grads[0], x, distance, index, eps)};
  }
};

// The means have no gradient: they are what is asked for.
struct BudgetedMasks : Formula<BudgetedMasks, Op<"budgeted_masks", decltype(budgeted_masks)>> {
  using Backward = Op<"budgeted_masks_backward", decltype(budgeted_masks_backward)>;

  static void save(AutogradContext* ctx, const Forward::Result& result, const Tensor&,
                   const Tensor&, double sharpness) {
    const auto& [weights, shifted] = result;
    save_tensors(ctx, weights, shifted);
    keep_options(ctx, sharpness);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    if (!ctx->needs_input_grad(0)) return {};
    const auto [weights, shifted] = saved_tensors<2>(ctx);
    const auto [sharpness] = kept_options<double>(ctx);
    return {Backward::call(grads[0], weights, shifted, sharpness)};
  }
};

// gather_views and its backward are each other's adjoint: derivatives of any order exist.
using GatherViewsOp = Op<"gather_views", decltype(gather_views)>;
using GatherViewsBackwardOp = Op<"gather_views_backward", decltype(gather_views_backward)>;

struct GatherViews : Formula<GatherViews, GatherViewsOp> {
  static void save(AutogradContext* ctx, const Tensor&, const Tensor& views, const Tensor& index) {
    save_tensors(ctx, index);
    keep_options(ctx, views.sym_size(0).guard_int(__FILE__, __LINE__));
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [index] = saved_tensors<1>(ctx);
    const auto [views] = kept_options<std::int64_t>(ctx);
    return {GatherViewsBackwardOp::call(grads[0], index, views)};
  }
};

struct GatherViewsBackward : Formula<GatherViewsBackward, GatherViewsBackwardOp> {
  static void save(AutogradContext* ctx, const Tensor&, const Tensor&, const Tensor& index,
                   std::int64_t) {
    save_tensors(ctx, index);
  }

  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto [index] = saved_tensors<1>(ctx);
    return {GatherViewsOp::call(grads[0], index)};
  }
};

template <typename Derivative>
void differentiable(torch::Library& m) {
  m.impl(Derivative::Forward::name.data(), TORCH_FN(Derivative::run));
}

template <typename Derivative>
void differentiable_once(torch::Library& m) {
  differentiable<Derivative>(m);
  differentiable<NoSecondDerivative<Derivative>>(m);
}

// For an op whose results have no gradient.
template <Name name, typename Signature>
void no_derivative(torch::Library& m) {
  m.impl(name.text, TORCH_FN((Op<name, Signature>::below_autograd)));
}

}  // namespace

TORCH_LIBRARY_IMPL(mast_ext, Autograd, m) {
  differentiable_once<SubspaceSimilarity>(m);
  differentiable_once<SubspaceNll>(m);
  differentiable_once<VarianceCovariance>(m);
  differentiable_once<VicregTerms>(m);
  differentiable_once<CrossCorrelationPenalty>(m);
  differentiable_once<GroupedSquaredDifference>(m);
  differentiable_once<GroupedMeans>(m);
  differentiable_once<WeightedTerms>(m);
  differentiable_once<GramDifference>(m);
  differentiable_once<SlicedCharacteristicSums>(m);
  differentiable_once<EppsPulleyDistance>(m);
  differentiable_once<ContrastiveLogsumexp>(m);
  differentiable_once<ContrastiveLoss>(m);
  differentiable_once<ViewPairCrossEntropy>(m);
  differentiable_once<SigmoidContrast>(m);
  differentiable_once<SigmoidContrastWithGrad>(m);
  differentiable_once<PrototypeCrossEntropy>(m);
  differentiable_once<PrototypeCrossEntropyWithGrad>(m);
  no_derivative<"select_hard_pairs", decltype(select_hard_pairs)>(m);
  no_derivative<"select_hard_cosine_pairs", decltype(select_hard_cosine_pairs)>(m);
  no_derivative<"select_hard_crops", decltype(select_hard_crops)>(m);
  differentiable_once<NearestNeighborDistance>(m);
  no_derivative<"prototype_column_logsumexp", decltype(prototype_column_logsumexp)>(m);
  differentiable_once<BudgetedMasks>(m);
  differentiable<GatherViews>(m);
  differentiable<GatherViewsBackward>(m);
}

}  // namespace mast_ext
