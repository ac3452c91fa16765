// Table of contents: every op that mast_ext defines, with its schema.
//
// Derivatives are in autograd.cpp, shape-only (fake) kernels in mast_ext/ops/<op>.py. `wanted` says
// which gradients a backward op computes; the others are returned empty. `keep` says whether a
// backward will read what an op returns for it; that is empty, too, otherwise.
// weighted_prototype_cross_entropy and weighted_sigmoid_contrast call other ops (composites.cpp).
// The last three render views: nothing differentiates or traces them (mast_ext/ops/rendering.py).
#include <torch/library.h>

#include "host/ops.h"

namespace {

void define(torch::Library& m) {
  m.def(
      "subspace_similarity(Tensor x, Tensor? y, Tensor? masks, str metric, float eps) "
      "-> (Tensor similarity, Tensor inv_norm_x, Tensor inv_norm_y)");
  m.def(
      "subspace_similarity_backward(Tensor grad_similarity, Tensor x, Tensor? y, Tensor? masks, "
      "Tensor similarity, Tensor inv_norm_x, Tensor inv_norm_y, str metric, float eps, "
      "bool[3] wanted) -> (Tensor grad_x, Tensor grad_y, Tensor grad_masks)");
  m.def(
      "subspace_nll(Tensor x, Tensor log_var_x, Tensor? y, Tensor? log_var_y, Tensor? masks, "
      "str? variance) -> (Tensor nll, Tensor distance)");
  m.def(
      "subspace_nll_backward(Tensor grad_nll, Tensor x, Tensor log_var_x, Tensor? y, "
      "Tensor? log_var_y, Tensor? masks, Tensor nll, Tensor distance, str? variance, "
      "bool[5] wanted) -> (Tensor grad_x, Tensor grad_log_var_x, Tensor grad_y, "
      "Tensor grad_log_var_y, Tensor grad_masks)");
  m.def(
      "variance_covariance(Tensor z, Tensor? masks, float eps) -> (Tensor variance, "
      "Tensor covariance, Tensor mean, Tensor sum_squares, Tensor product, Tensor row_sums, "
      "Tensor centered)");
  m.def(
      "variance_covariance_backward(Tensor grad_variance, Tensor grad_covariance, Tensor z, "
      "Tensor? masks, Tensor mean, Tensor sum_squares, Tensor product, Tensor row_sums, "
      "Tensor centered, float eps, bool[2] wanted) -> (Tensor grad_z, Tensor grad_masks)");
  m.def(
      "vicreg_terms(Tensor x, Tensor y, Tensor? invariance, Tensor? group, Tensor? group_weights, "
      "float eps, float[] scales, float[] weights) -> (Tensor total, Tensor terms, Tensor mean, "
      "Tensor sum_squares, Tensor product, Tensor centered, Tensor group_sums, "
      "Tensor group_counts, Tensor group_means, Tensor compared)");
  m.def(
      "vicreg_terms_backward(Tensor grad, Tensor x, Tensor y, Tensor? invariance, Tensor? group, "
      "Tensor? group_weights, Tensor mean, Tensor sum_squares, Tensor product, Tensor centered, "
      "Tensor group_sums, Tensor group_counts, Tensor group_means, Tensor compared, float eps, "
      "float[] factors, bool weights_wanted) -> (Tensor grad_views, Tensor grad_invariance, "
      "Tensor grad_group_weights)");
  m.def(
      "cross_correlation_penalty(Tensor a, Tensor b, float lambda_, str variant) -> "
      "(Tensor penalty, Tensor mean, Tensor scale, Tensor product, Tensor dots, Tensor row_sums, "
      "Tensor column_sums, Tensor standard)");
  m.def(
      "cross_correlation_penalty_backward(Tensor grad_penalty, Tensor a, Tensor b, Tensor mean, "
      "Tensor scale, Tensor product, Tensor dots, Tensor row_sums, Tensor column_sums, "
      "Tensor standard, float lambda_, str variant, bool[2] wanted) -> (Tensor grad_a, "
      "Tensor grad_b)");
  m.def(
      "grouped_squared_difference(Tensor x, Tensor y, Tensor group, int groups, Tensor? weight, "
      "Tensor? dimension_weights) -> (Tensor sums, Tensor counts, Tensor residual)");
  m.def(
      "grouped_squared_difference_backward(Tensor grad_sums, Tensor? grad_counts, Tensor x, "
      "Tensor y, Tensor group, Tensor? weight, bool[3] wanted) -> (Tensor grad_x, Tensor grad_y, "
      "Tensor grad_weight)");
  m.def(
      "grouped_means(Tensor group_weights, Tensor sums, Tensor counts) -> (Tensor means, "
      "Tensor compared)");
  m.def(
      "grouped_means_backward(Tensor grad_means, Tensor group_weights, Tensor sums, Tensor counts, "
      "Tensor means, Tensor compared, bool[3] wanted) -> (Tensor grad_group_weights, Tensor "
      "grad_sums, "
      "Tensor grad_counts)");
  m.def(
      "weighted_terms(Tensor first, Tensor? second, Tensor? third, float[] scales, "
      "float[] weights) -> (Tensor total, Tensor terms)");
  m.def(
      "weighted_terms_backward(Tensor grad, Tensor first, Tensor? second, Tensor? third, "
      "float[] factors, bool[3] wanted) -> (Tensor grad_first, Tensor grad_second, "
      "Tensor grad_third)");
  m.def(
      "gram_difference(Tensor s, Tensor t, str? remove_negative, bool keep=True) -> "
      "(Tensor difference, Tensor product)");
  m.def(
      "gram_difference_backward(Tensor grad_difference, Tensor s, Tensor t, Tensor product, "
      "str? remove_negative, bool[2] wanted) -> (Tensor grad_s, Tensor grad_t)");
  m.def(
      "sliced_characteristic_sums(Tensor z, Tensor slices, int knots, float t_min, float t_max, "
      "bool keep=True) -> (Tensor sums, Tensor projections)");
  m.def(
      "sliced_characteristic_sums_backward(Tensor grad_sums, Tensor z, Tensor slices, "
      "Tensor projections, float t_min, float t_max) -> Tensor");
  m.def(
      "epps_pulley_distance(Tensor sums, Tensor? images_tensor, float images, Tensor phi, "
      "Tensor weights) -> Tensor");
  m.def(
      "epps_pulley_distance_backward(Tensor grad_distance, Tensor sums, Tensor? images_tensor, "
      "float images, Tensor phi, Tensor weights) -> Tensor");
  m.def(
      "contrastive_logsumexp(Tensor x, Tensor? y, Tensor? masks, Tensor? temperature_tensor, "
      "float temperature, int? offset, bool exclude_self, bool exclude_positive, "
      "bool within_views, bool keep=True) -> (Tensor lse, Tensor positive, Tensor inv_norm_x, "
      "Tensor inv_norm_y, Tensor products)");
  m.def(
      "contrastive_logsumexp_backward(Tensor? grad_lse, Tensor? grad_positive, Tensor x, "
      "Tensor? y, Tensor? masks, Tensor? temperature_tensor, Tensor lse, Tensor inv_norm_x, "
      "Tensor inv_norm_y, Tensor products, Tensor? y_lse, Tensor? y_grad_lse, "
      "Tensor? y_grad_positive, "
      "float temperature, int? offset, bool exclude_self, bool exclude_positive, "
      "bool within_views, bool[4] wanted) -> (Tensor grad_x, Tensor grad_y, Tensor grad_masks, "
      "Tensor grad_temperature)");
  m.def(
      "contrastive_loss(Tensor[] views, Tensor? temperature_tensor, float temperature, "
      "bool decoupled, bool within_views, bool one_sided, bool keep=True) -> (Tensor loss, "
      "Tensor lse, Tensor slopes, Tensor inv_norm, Tensor products)");
  m.def(
      "contrastive_loss_backward(Tensor grad, Tensor[] views, Tensor? temperature_tensor, "
      "Tensor lse, Tensor slopes, Tensor inv_norm, Tensor products, float temperature, "
      "bool within_views, bool[2] wanted) -> (Tensor grad_views, Tensor grad_temperature)");
  m.def(
      "view_pair_cross_entropy(Tensor lse, Tensor positive, bool decoupled, str reduction) "
      "-> Tensor");
  m.def(
      "view_pair_cross_entropy_backward(Tensor grad_loss, Tensor lse, Tensor positive, "
      "bool decoupled, str reduction) -> (Tensor grad_lse, Tensor grad_positive)");
  m.def("sigmoid_contrast(Tensor x, Tensor y, Tensor scale, Tensor bias, int? offset) -> Tensor");
  m.def(
      "sigmoid_contrast_backward(Tensor grad_loss, Tensor x, Tensor y, Tensor scale, Tensor bias, "
      "int? offset, bool[4] wanted) -> (Tensor grad_x, Tensor grad_y, Tensor grad_scale, "
      "Tensor grad_bias)");
  m.def(
      "sigmoid_contrast_with_grad(Tensor x, Tensor y, Tensor scale, Tensor bias, Tensor weights, "
      "int? offset, bool[4] wanted) -> (Tensor sum, Tensor grad_x, Tensor grad_y, "
      "Tensor grad_scale, Tensor grad_bias)");
  m.def(
      "sigmoid_contrast_with_grad_backward(Tensor grad, Tensor grad_x, Tensor grad_y, "
      "Tensor grad_scale, Tensor grad_bias) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "weighted_sigmoid_contrast(Tensor x, Tensor y, Tensor scale, Tensor bias, Tensor weights, "
      "int? offset) -> Tensor");
  m.def(
      "prototype_cross_entropy(Tensor[] student, Tensor[] teacher, Tensor? center, "
      "float student_temperature, float teacher_temperature, bool with_mean) -> "
      "(Tensor cross_entropy, Tensor teacher_mean, Tensor student_stats, Tensor teacher_stats)");
  m.def(
      "prototype_cross_entropy_backward(Tensor grad, Tensor[] student, Tensor[] teacher, "
      "Tensor? center, Tensor student_stats, Tensor teacher_stats, float student_temperature, "
      "float teacher_temperature) -> Tensor[]");
  m.def(
      "prototype_cross_entropy_with_grad(Tensor[] student, Tensor[] teacher, Tensor? center, "
      "Tensor weights, float student_temperature, float teacher_temperature, bool with_mean) -> "
      "(Tensor sum, Tensor teacher_mean, Tensor[] grad_student)");
  m.def(
      "weighted_prototype_cross_entropy(Tensor[] student, Tensor[] teacher, Tensor? center, "
      "Tensor weights, float student_temperature, float teacher_temperature, bool with_mean) -> "
      "(Tensor sum, Tensor teacher_mean)");
  m.def(
      "prototype_cross_entropy_with_grad_backward(Tensor grad, Tensor[] grad_student) -> "
      "Tensor[]");
  m.def(
      "select_hard_pairs(Tensor pair_losses, Tensor? candidates) -> (Tensor index, Tensor score)");
  m.def(
      "select_hard_cosine_pairs(Tensor x, Tensor? y, Tensor? candidates, float eps) "
      "-> (Tensor index, Tensor score)");
  m.def(
      "select_hard_crops(Tensor ce, Tensor? tuples, int num_locals) "
      "-> (Tensor index, Tensor score)");
  m.def("nearest_neighbor_distance(Tensor x, float eps) -> (Tensor distance, Tensor index)");
  m.def(
      "nearest_neighbor_distance_backward(Tensor grad_distance, Tensor x, Tensor distance, "
      "Tensor index, float eps) -> Tensor");
  m.def(
      "prototype_column_logsumexp(Tensor logits, Tensor? center, float temperature, "
      "bool normalize_rows) -> Tensor");
  m.def(
      "budgeted_masks(Tensor mask_logits, Tensor mean, float sharpness) -> (Tensor weights, "
      "Tensor shifted)");
  m.def(
      "budgeted_masks_backward(Tensor grad_weights, Tensor weights, Tensor shifted, "
      "float sharpness) -> Tensor");
  m.def("gather_views(Tensor views, Tensor index) -> Tensor");
  m.def("gather_views_backward(Tensor grad, Tensor index, int views) -> Tensor");
  m.def("resized_crops(Tensor images, Tensor boxes, Tensor flipped, int size) -> Tensor");
  m.def("new_pixels(Tensor like, int[] shape) -> Tensor");
  m.def(
      "photometry(Tensor levels, Tensor rows, int solarize_threshold, Tensor? mean, Tensor? std, "
      "Tensor(a!) out) -> ()");
}

// One function for all devices: run_on() chooses the kernel.
void implement(torch::Library& m) {
  m.impl("subspace_similarity", TORCH_FN(mast_ext::subspace_similarity));
  m.impl("subspace_similarity_backward", TORCH_FN(mast_ext::subspace_similarity_backward));
  m.impl("subspace_nll", TORCH_FN(mast_ext::subspace_nll));
  m.impl("subspace_nll_backward", TORCH_FN(mast_ext::subspace_nll_backward));
  m.impl("variance_covariance", TORCH_FN(mast_ext::variance_covariance));
  m.impl("variance_covariance_backward", TORCH_FN(mast_ext::variance_covariance_backward));
  m.impl("vicreg_terms", TORCH_FN(mast_ext::vicreg_terms));
  m.impl("vicreg_terms_backward", TORCH_FN(mast_ext::vicreg_terms_backward));
  m.impl("cross_correlation_penalty", TORCH_FN(mast_ext::cross_correlation_penalty));
  m.impl("cross_correlation_penalty_backward",
         TORCH_FN(mast_ext::cross_correlation_penalty_backward));
  m.impl("grouped_squared_difference", TORCH_FN(mast_ext::grouped_squared_difference));
  m.impl("grouped_squared_difference_backward",
         TORCH_FN(mast_ext::grouped_squared_difference_backward));
  m.impl("grouped_means", TORCH_FN(mast_ext::grouped_means));
  m.impl("grouped_means_backward", TORCH_FN(mast_ext::grouped_means_backward));
  m.impl("weighted_terms", TORCH_FN(mast_ext::weighted_terms));
  m.impl("weighted_terms_backward", TORCH_FN(mast_ext::weighted_terms_backward));
  m.impl("gram_difference", TORCH_FN(mast_ext::gram_difference));
  m.impl("gram_difference_backward", TORCH_FN(mast_ext::gram_difference_backward));
  m.impl("sliced_characteristic_sums", TORCH_FN(mast_ext::sliced_characteristic_sums));
  m.impl("sliced_characteristic_sums_backward",
         TORCH_FN(mast_ext::sliced_characteristic_sums_backward));
  m.impl("epps_pulley_distance", TORCH_FN(mast_ext::epps_pulley_distance));
  m.impl("epps_pulley_distance_backward", TORCH_FN(mast_ext::epps_pulley_distance_backward));
  m.impl("contrastive_logsumexp", TORCH_FN(mast_ext::contrastive_logsumexp));
  m.impl("contrastive_logsumexp_backward", TORCH_FN(mast_ext::contrastive_logsumexp_backward));
  m.impl("contrastive_loss", TORCH_FN(mast_ext::contrastive_loss));
  m.impl("contrastive_loss_backward", TORCH_FN(mast_ext::contrastive_loss_backward));
  m.impl("view_pair_cross_entropy", TORCH_FN(mast_ext::view_pair_cross_entropy));
  m.impl("view_pair_cross_entropy_backward", TORCH_FN(mast_ext::view_pair_cross_entropy_backward));
  m.impl("sigmoid_contrast", TORCH_FN(mast_ext::sigmoid_contrast));
  m.impl("sigmoid_contrast_backward", TORCH_FN(mast_ext::sigmoid_contrast_backward));
  m.impl("sigmoid_contrast_with_grad", TORCH_FN(mast_ext::sigmoid_contrast_with_grad));
  m.impl("sigmoid_contrast_with_grad_backward",
         TORCH_FN(mast_ext::sigmoid_contrast_with_grad_backward));
  m.impl("prototype_cross_entropy", TORCH_FN(mast_ext::prototype_cross_entropy));
  m.impl("prototype_cross_entropy_backward", TORCH_FN(mast_ext::prototype_cross_entropy_backward));
  m.impl("prototype_cross_entropy_with_grad",
         TORCH_FN(mast_ext::prototype_cross_entropy_with_grad));
  m.impl("prototype_cross_entropy_with_grad_backward",
         TORCH_FN(mast_ext::prototype_cross_entropy_with_grad_backward));
  m.impl("select_hard_pairs", TORCH_FN(mast_ext::select_hard_pairs));
  m.impl("select_hard_cosine_pairs", TORCH_FN(mast_ext::select_hard_cosine_pairs));
  m.impl("select_hard_crops", TORCH_FN(mast_ext::select_hard_crops));
  m.impl("nearest_neighbor_distance", TORCH_FN(mast_ext::nearest_neighbor_distance));
  m.impl("nearest_neighbor_distance_backward",
         TORCH_FN(mast_ext::nearest_neighbor_distance_backward));
  m.impl("prototype_column_logsumexp", TORCH_FN(mast_ext::prototype_column_logsumexp));
  m.impl("budgeted_masks", TORCH_FN(mast_ext::budgeted_masks));
  m.impl("budgeted_masks_backward", TORCH_FN(mast_ext::budgeted_masks_backward));
  m.impl("gather_views", TORCH_FN(mast_ext::gather_views));
  m.impl("gather_views_backward", TORCH_FN(mast_ext::gather_views_backward));
  m.impl("resized_crops", TORCH_FN(mast_ext::resized_crops));
  m.impl("new_pixels", TORCH_FN(mast_ext::new_pixels));
  m.impl("photometry", TORCH_FN(mast_ext::photometry));
}

}  // namespace

TORCH_LIBRARY(mast_ext, m) { define(m); }
TORCH_LIBRARY_IMPL(mast_ext, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(mast_ext, CUDA, m) { implement(m); }
