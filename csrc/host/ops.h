// The ops, with the signatures of their schemas (binding/library.cpp).
#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "host/common/tensors.h"

namespace mast_ext {

std::tuple<Tensor, Tensor, Tensor> subspace_similarity(const Tensor& x, const OptionalTensor& y,
                                                       const OptionalTensor& masks,
                                                       std::string_view metric, double eps);
std::tuple<Tensor, Tensor, Tensor> subspace_similarity_backward(
    const Tensor& grad_similarity, const Tensor& x, const OptionalTensor& y,
    const OptionalTensor& masks, const Tensor& similarity, const Tensor& inv_norm_x,
    const Tensor& inv_norm_y, std::string_view metric, double eps, std::array<bool, 3> wanted);

std::tuple<Tensor, Tensor> subspace_nll(const Tensor& x, const Tensor& log_var_x,
                                        const OptionalTensor& y, const OptionalTensor& log_var_y,
                                        const OptionalTensor& masks,
                                        std::optional<std::string_view> variance);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> subspace_nll_backward(
    const Tensor& grad_nll, const Tensor& x, const Tensor& log_var_x, const OptionalTensor& y,
    const OptionalTensor& log_var_y, const OptionalTensor& masks, const Tensor& nll,
    const Tensor& distance, std::optional<std::string_view> variance, std::array<bool, 5> wanted);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> variance_covariance(
    const Tensor& z, const OptionalTensor& masks, double eps);
std::tuple<Tensor, Tensor> variance_covariance_backward(
    const Tensor& grad_variance, const Tensor& grad_covariance, const Tensor& z,
    const OptionalTensor& masks, const Tensor& mean, const Tensor& sum_squares,
    const Tensor& product, const Tensor& row_sums, const Tensor& centered, double eps,
    std::array<bool, 2> wanted);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
vicreg_terms(const Tensor& x, const Tensor& y, const OptionalTensor& invariance,
             const OptionalTensor& group, const OptionalTensor& group_weights, double eps,
             at::ArrayRef<double> scales, at::ArrayRef<double> weights);
std::tuple<Tensor, Tensor, Tensor> vicreg_terms_backward(
    const Tensor& grad, const Tensor& x, const Tensor& y, const OptionalTensor& invariance,
    const OptionalTensor& group, const OptionalTensor& group_weights, const Tensor& mean,
    const Tensor& sum_squares, const Tensor& product, const Tensor& centered,
    const Tensor& group_sums, const Tensor& group_counts, const Tensor& group_means,
    const Tensor& compared, double eps, at::ArrayRef<double> factors, bool weights_wanted);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cross_correlation_penalty(const Tensor& a, const Tensor& b, double lambda,
                          std::string_view variant);
std::tuple<Tensor, Tensor> cross_correlation_penalty_backward(
    const Tensor& grad_penalty, const Tensor& a, const Tensor& b, const Tensor& mean,
    const Tensor& scale, const Tensor& product, const Tensor& dots, const Tensor& row_sums,
    const Tensor& column_sums, const Tensor& standard, double lambda, std::string_view variant,
    std::array<bool, 2> wanted);

// The last result of the contrastive forwards, `products`, is what a CPU keeps for the backward of
// the same inputs, options and temperature (ContrastiveInputs::kept_shape).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contrastive_logsumexp(
    const Tensor& x, const OptionalTensor& y, const OptionalTensor& masks,
    const OptionalTensor& temperature_tensor, double temperature,
    std::optional<std::int64_t> offset, bool exclude_self, bool exclude_positive, bool within_views,
    bool keep);
std::tuple<Tensor, Tensor, Tensor, Tensor> contrastive_logsumexp_backward(
    const OptionalTensor& grad_lse, const OptionalTensor& grad_positive, const Tensor& x,
    const OptionalTensor& y, const OptionalTensor& masks, const OptionalTensor& temperature_tensor,
    const Tensor& lse, const Tensor& inv_norm_x, const Tensor& inv_norm_y, const Tensor& products,
    const OptionalTensor& y_lse, const OptionalTensor& y_grad_lse,
    const OptionalTensor& y_grad_positive, double temperature, std::optional<std::int64_t> offset,
    bool exclude_self, bool exclude_positive, bool within_views, std::array<bool, 4> wanted);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contrastive_loss(
    at::TensorList views, const OptionalTensor& temperature_tensor, double temperature,
    bool decoupled, bool within_views, bool one_sided, bool keep);
std::tuple<Tensor, Tensor> contrastive_loss_backward(const Tensor& grad, at::TensorList views,
                                                     const OptionalTensor& temperature_tensor,
                                                     const Tensor& lse, const Tensor& slopes,
                                                     const Tensor& inv_norm, const Tensor& products,
                                                     double temperature, bool within_views,
                                                     std::array<bool, 2> wanted);

Tensor view_pair_cross_entropy(const Tensor& lse, const Tensor& positive, bool decoupled,
                               std::string_view reduction);
std::tuple<Tensor, Tensor> view_pair_cross_entropy_backward(const Tensor& grad_loss,
                                                            const Tensor& lse,
                                                            const Tensor& positive, bool decoupled,
                                                            std::string_view reduction);

Tensor sigmoid_contrast(const Tensor& x, const Tensor& y, const Tensor& scale, const Tensor& bias,
                        std::optional<std::int64_t> offset);
std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_contrast_backward(
    const Tensor& grad_loss, const Tensor& x, const Tensor& y, const Tensor& scale,
    const Tensor& bias, std::optional<std::int64_t> offset, std::array<bool, 4> wanted);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sigmoid_contrast_with_grad(
    const Tensor& x, const Tensor& y, const Tensor& scale, const Tensor& bias,
    const Tensor& weights, std::optional<std::int64_t> offset, std::array<bool, 4> wanted);
std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_contrast_with_grad_backward(
    const Tensor& grad, const Tensor& grad_x, const Tensor& grad_y, const Tensor& grad_scale,
    const Tensor& grad_bias);

// Logits are one tensor [V, B, C], or views [B, C], at most 32; gradients likewise.
std::tuple<Tensor, Tensor, Tensor, Tensor> prototype_cross_entropy(
    at::TensorList student, at::TensorList teacher, const OptionalTensor& center,
    double student_temperature, double teacher_temperature, bool with_mean);
std::vector<Tensor> prototype_cross_entropy_backward(
    const Tensor& grad, at::TensorList student, at::TensorList teacher,
    const OptionalTensor& center, const Tensor& student_stats, const Tensor& teacher_stats,
    double student_temperature, double teacher_temperature);
std::tuple<Tensor, Tensor, std::vector<Tensor>> prototype_cross_entropy_with_grad(
    at::TensorList student, at::TensorList teacher, const OptionalTensor& center,
    const Tensor& weights, double student_temperature, double teacher_temperature, bool with_mean);
std::vector<Tensor> prototype_cross_entropy_with_grad_backward(const Tensor& grad,
                                                               at::TensorList grad_student);

Tensor prototype_column_logsumexp(const Tensor& logits, const OptionalTensor& center,
                                  double temperature, bool normalize_rows);

std::tuple<Tensor, Tensor> nearest_neighbor_distance(const Tensor& x, double eps);
Tensor nearest_neighbor_distance_backward(const Tensor& grad_distance, const Tensor& x,
                                          const Tensor& distance, const Tensor& index, double eps);

std::tuple<Tensor, Tensor, Tensor> grouped_squared_difference(
    const Tensor& x, const Tensor& y, const Tensor& group, std::int64_t groups,
    const OptionalTensor& weight, const OptionalTensor& dimension_weights);
std::tuple<Tensor, Tensor, Tensor> grouped_squared_difference_backward(
    const Tensor& grad_sums, const OptionalTensor& grad_counts, const Tensor& x, const Tensor& y,
    const Tensor& group, const OptionalTensor& weight, std::array<bool, 3> wanted);

std::tuple<Tensor, Tensor> grouped_means(const Tensor& weights, const Tensor& sums,
                                         const Tensor& counts);
std::tuple<Tensor, Tensor, Tensor> grouped_means_backward(const Tensor& grad_means,
                                                          const Tensor& weights, const Tensor& sums,
                                                          const Tensor& counts, const Tensor& means,
                                                          const Tensor& compared,
                                                          std::array<bool, 3> wanted);

std::tuple<Tensor, Tensor> weighted_terms(const Tensor& first, const OptionalTensor& second,
                                          const OptionalTensor& third, at::ArrayRef<double> scales,
                                          at::ArrayRef<double> weights);
std::tuple<Tensor, Tensor, Tensor> weighted_terms_backward(const Tensor& grad, const Tensor& first,
                                                           const OptionalTensor& second,
                                                           const OptionalTensor& third,
                                                           at::ArrayRef<double> factors,
                                                           std::array<bool, 3> wanted);

std::tuple<Tensor, Tensor> gram_difference(const Tensor& s, const Tensor& t,
                                           std::optional<std::string_view> remove_negative,
                                           bool keep);
std::tuple<Tensor, Tensor> gram_difference_backward(const Tensor& grad_difference, const Tensor& s,
                                                    const Tensor& t, const Tensor& product,
                                                    std::optional<std::string_view> remove_negative,
                                                    std::array<bool, 2> wanted);

std::tuple<Tensor, Tensor> sliced_characteristic_sums(const Tensor& z, const Tensor& slices,
                                                      std::int64_t knots, double t_min,
                                                      double t_max, bool keep);
Tensor sliced_characteristic_sums_backward(const Tensor& grad_sums, const Tensor& z,
                                           const Tensor& slices, const Tensor& projections,
                                           double t_min, double t_max);

Tensor epps_pulley_distance(const Tensor& sums, const OptionalTensor& images_tensor, double images,
                            const Tensor& phi, const Tensor& weights);
Tensor epps_pulley_distance_backward(const Tensor& grad_distance, const Tensor& sums,
                                     const OptionalTensor& images_tensor, double images,
                                     const Tensor& phi, const Tensor& weights);

std::tuple<Tensor, Tensor> select_hard_pairs(const Tensor& pair_losses,
                                             const OptionalTensor& candidates);
std::tuple<Tensor, Tensor> select_hard_cosine_pairs(const Tensor& x, const OptionalTensor& y,
                                                    const OptionalTensor& candidates, double eps);
std::tuple<Tensor, Tensor> select_hard_crops(const Tensor& ce, const OptionalTensor& tuples,
                                             std::int64_t num_locals);
std::tuple<Tensor, Tensor> budgeted_masks(const Tensor& logits, const Tensor& mean,
                                          double sharpness);
Tensor budgeted_masks_backward(const Tensor& grad_weights, const Tensor& weights,
                               const Tensor& shifted, double sharpness);

Tensor gather_views(const Tensor& views, const Tensor& index);
Tensor gather_views_backward(const Tensor& grad, const Tensor& index, std::int64_t views);

Tensor resized_crops(const Tensor& images, const Tensor& boxes, const Tensor& flipped,
                     std::int64_t size);
Tensor new_pixels(const Tensor& like, at::IntArrayRef shape);
void photometry(const Tensor& levels, const Tensor& rows, std::int64_t solarize_threshold,
                const OptionalTensor& mean, const OptionalTensor& std, const Tensor& out);

}  // namespace mast_ext
