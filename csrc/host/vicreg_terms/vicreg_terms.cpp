#include "kernels/vicreg_terms/vicreg_terms.h"

#include <algorithm>
#include <tuple>

#include "host/common/caching_allocator.h"
#include "host/ops.h"
#include "host/variance_covariance/passes.h"
#include "kernels/weighted_terms/weighted_terms.h"

namespace mast_ext {
namespace {

// The checked views, as the two of variance_covariance.
VarianceCovarianceInputs checked_views(const Tensor& x, const Tensor& y) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) >= 2 && x.size(1) >= 1,
                    "x must have shape [N, D] with N >= 2 and D >= 1, got ", x.sizes());
  dtype_of(x, "x");
  check_shape(y, "y", x.sizes());
  check_like(y, "y", x, "x");
  return {x.unsqueeze(0), std::nullopt, y.unsqueeze(0)};
}

// The numbers that are given, dense; undefined if there are none.
Tensor checked_numbers(const OptionalTensor& invariance, const Tensor& x) {
  if (!invariance) return {};
  check_device(*invariance, "invariance", x, "x");
  check_accumulation(*invariance, "invariance", x, "embeddings");
  return invariance->contiguous();
}

// Rows in groups, whose means over the pairs that compare a dimension are the numbers.
struct Groups {
  Tensor group, weights, sums, counts, means, compared;

  // Whether the means are made where the terms are finished.
  bool made_at_the_end() const {
    return uses_cuda_kernels(weights) && weights.numel() <= kernels::kSmallProduct;
  }

  kernels::GroupedMeansInputs inputs() const {
    return {.dtype = dtype_of(weights, "group_weights"),
            .groups = weights.size(0),
            .dim = weights.size(1),
            .weights = weights.const_data_ptr(),
            .sums = sums.const_data_ptr(),
            .counts = counts.const_data_ptr()};
  }
};

// Those of the arguments, without sums and means; undefined if they are not given.
Groups checked_groups(const OptionalTensor& group, const OptionalTensor& weights,
                      const OptionalTensor& invariance, const Tensor& x) {
  TORCH_CHECK_VALUE(group.has_value() == weights.has_value(),
                    "group and group_weights must be given together");
  if (!group) return {};
  TORCH_CHECK_VALUE(!invariance, "invariance must be None beside group");
  check_shape(*group, "group", {x.size(0)});
  check_device(*group, "group", x, "x");
  check_long(*group, "group");
  constexpr std::int64_t kMostGroups = 65535;  // of grouped_squared_difference
  TORCH_CHECK_VALUE(weights->dim() == 2 && weights->size(0) >= 1 &&
                        weights->size(0) <= kMostGroups && weights->size(1) == x.size(1),
                    "group_weights must have shape [G, ", x.size(1),
                    "] with 1 <= G <= ", kMostGroups, " to fit x, got ", weights->sizes());
  check_device(*weights, "group_weights", x, "x");
  check_accumulation(*weights, "group_weights", x, "embeddings");
  Groups groups;
  groups.group = group->contiguous(), groups.weights = weights->contiguous();
  return groups;
}

// Fills in the sums, and the means or memory for them.
void add_up(Groups& groups, const VarianceCovarianceInputs& in) {
  if (!groups.group.defined()) {
    for (Tensor* t : {&groups.sums, &groups.counts, &groups.means, &groups.compared}) {
      *t = in.new_empty({0});
    }
    return;
  }
  std::tie(groups.sums, groups.counts, std::ignore) =
      grouped_squared_difference(in.z.select(0, 0), in.more.select(0, 0), groups.group,
                                 groups.weights.size(0), std::nullopt, std::nullopt);
  if (groups.made_at_the_end()) {
    groups.means = in.new_empty({in.dim});
    groups.compared = in.new_empty({in.dim});
  } else {
    std::tie(groups.means, groups.compared) =
        grouped_means(groups.weights, groups.sums, groups.counts);
  }
}

void check_three(at::ArrayRef<double> numbers, const char* name) {
  TORCH_CHECK_VALUE(numbers.size() == 3, name, " must have a number for each of the 3 terms, got ",
                    numbers.size());
}

// On the CPU: both results of both views, and their weighted sum.
void finish_cpu(const kernels::VicregTerms& p, const Tensor& like) {
  const std::int64_t views = p.batch.shape.views;
  Tensor variance = like.new_empty({views}), covariance = like.new_empty({views});
  kernels::VarianceCovariance batch = p.batch;
  batch.variance = variance.mutable_data_ptr();
  batch.covariance = covariance.mutable_data_ptr();
  kernels::variance_covariance_finish_cpu(batch, 0, views);
  kernels::weighted_terms_cpu({.dtype = dtype_of(like, "terms"),
                               .count = 3,
                               .parts = {{p.invariance, p.numbers, p.scales[0], p.weights[0]},
                                         {batch.variance, views, p.scales[1], p.weights[1]},
                                         {batch.covariance, views, p.scales[2], p.weights[2]}},
                               .terms = p.terms,
                               .total = p.total});
}

// On the CPU: what the differences of the views add, and the gradients of the numbers and of the
// groups' weights.
void finish_gradients_cpu(const kernels::VicregTermsBackward& p) {
  if (p.group != nullptr) {
    parallel_rows(p.means.in.groups, 4 * p.means.in.dim, [&](auto begin, auto end) {
      kernels::grouped_means_backward_cpu(p.means, begin, end);
    });
  }
  if (p.difference_factor != 0) {
    parallel_rows(p.z.rows, 4 * p.z.dim, [&](auto begin, auto end) {
      kernels::vicreg_terms_differences_cpu(p, begin, end);
    });
  }
  kernels::weighted_terms_backward_cpu(
      {.dtype = p.batch.shape.dtype,
       .grad = p.grad,
       .parts = {{p.grad_invariance, p.numbers, p.invariance_factor}}});
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
vicreg_terms(const Tensor& x, const Tensor& y, const OptionalTensor& invariance,
             const OptionalTensor& group, const OptionalTensor& group_weights, double eps,
             at::ArrayRef<double> scales, at::ArrayRef<double> weights) {
  const PlainTensors plain;
  const VarianceCovarianceInputs in = checked_views(x, y);
  Tensor numbers = checked_numbers(invariance, x);
  Groups groups = checked_groups(group, group_weights, invariance, x);
  TORCH_CHECK_VALUE(eps >= 0, "eps must not be negative, got ", eps);
  check_three(scales, "scales");
  check_three(weights, "weights");
  add_up(groups, in);
  const bool grouped = group.has_value(), made_here = grouped && groups.made_at_the_end();
  if (grouped) numbers = groups.means;
  Tensor differences;
  if (!numbers.defined()) numbers = differences = in.new_empty({in.dim});
  Tensor total = in.new_empty({}), terms = in.new_empty({3});
  const BatchProducts made = batch_products(in, differences);
  const bool small = uses_cuda_kernels(x) && made.product.numel() <= kernels::kSmallProduct;
  const Tensor row_sums = small ? Tensor() : product_row_sums(in, made);
  kernels::VicregTerms p{.batch = {.shape = in.shape(made.sum_squares, made.product, eps),
                                   .row_sums = element(row_sums),
                                   .variance = nullptr,
                                   .covariance = nullptr},
                         .invariance = made_here ? nullptr : numbers.const_data_ptr(),
                         .numbers = numbers.numel(),
                         .groups = {},
                         .scales = {},
                         .weights = {},
                         .terms = terms.mutable_data_ptr(),
                         .total = total.mutable_data_ptr()};
  if (made_here) {
    p.groups = {.in = groups.inputs(),
                .means = groups.means.mutable_data_ptr(),
                .compared = groups.compared.mutable_data_ptr()};
  }
  std::ranges::copy(scales, p.scales);
  std::ranges::copy(weights, p.weights);
  run_on(
      x, [&] { finish_cpu(p, terms); },
      [&](auto stream) { return kernels::vicreg_terms_finish_cuda(p, stream); });
  return {total,         terms,       made.mean,     made.sum_squares, made.product,
          made.centered, groups.sums, groups.counts, groups.means,     groups.compared};
}

std::tuple<Tensor, Tensor, Tensor> vicreg_terms_backward(
    const Tensor& grad, const Tensor& x, const Tensor& y, const OptionalTensor& invariance,
    const OptionalTensor& group, const OptionalTensor& group_weights, const Tensor& mean,
    const Tensor& sum_squares, const Tensor& product, const Tensor& centered,
    const Tensor& group_sums, const Tensor& group_counts, const Tensor& group_means,
    const Tensor& compared, double eps, at::ArrayRef<double> factors, bool weights_wanted) {
  const PlainTensors plain;
  const VarianceCovarianceInputs in = checked_views(x, y);
  check_three(factors, "factors");
  check_shape(grad, "grad", {});
  check_like(grad, "grad", mean, "mean");
  const auto kept = BatchProducts{mean, sum_squares, product, centered}.contiguous();
  Tensor grad_z = new_result(x, {2, in.rows, in.dim});
  Tensor grad_invariance = in.new_empty(invariance ? invariance->sizes() : at::IntArrayRef({0}));
  Groups groups = checked_groups(group, group_weights, invariance, x);
  Tensor grad_weights, grad_sums;
  if (group) {
    groups.sums = group_sums.contiguous(), groups.counts = group_counts.contiguous();
    groups.means = group_means.contiguous(), groups.compared = compared.contiguous();
    check_shape(groups.sums, "group_sums", groups.weights.sizes());
    check_shape(groups.counts, "group_counts", {groups.weights.size(0)});
    check_shape(groups.means, "group_means", {in.dim});
    check_shape(groups.compared, "compared", {in.dim});
    if (weights_wanted) grad_weights = in.new_empty(groups.weights.sizes());
    if (!uses_cuda_kernels(x)) grad_sums = in.new_empty(groups.weights.sizes());
  }
  kernels::VicregTermsBackward p{
      .batch = {.shape = in.shape(kept.sum_squares, kept.product, eps),
                .grad_variance = grad.const_data_ptr(),
                .grad_covariance = grad.const_data_ptr(),
                .grad_stride = 0,
                .variance_factor = factors[1],
                .covariance_factor = factors[2],
                .slopes = nullptr,
                .matrix = nullptr,
                .first_dim = 0,
                .dims = 0,
                .centered = nullptr,
                .product_grad = nullptr,
                .grad_dtype = dtype_of(x, "x"),
                .grad_z = grad_z.mutable_data_ptr(),
                .grad_masks = nullptr},
      .z = in.columns(),
      .grad = grad.const_data_ptr(),
      .difference_factor = invariance ? 0 : 2 * factors[0],
      .grad_invariance = invariance ? grad_invariance.mutable_data_ptr() : nullptr,
      .numbers = grad_invariance.numel(),
      .invariance_factor = factors[0],
      .group = nullptr,
      .means = {}};
  if (group) {
    p.group = static_cast<const std::int64_t*>(groups.group.const_data_ptr());
    p.means = {.in = groups.inputs(),
               .means = groups.means.const_data_ptr(),
               .compared = groups.compared.const_data_ptr(),
               .grad = grad.const_data_ptr(),
               .grad_stride = 0,
               .factor = factors[0],
               .grad_weights = element(grad_weights),
               .grad_sums = element(grad_sums),
               .grad_counts = nullptr};
  }
  if (in.gram) {
    each_column_chunk(in, kept, p.batch, [&](auto) {
      run_on(
          x, [&] { combine_cpu(p.batch); },
          [&](auto stream) { return kernels::vicreg_terms_combine_cuda(p, stream); });
    });
  } else {
    const bool add = uses_cuda_kernels(x) && p.difference_factor != 0;
    multiply_by_matrix(in, kept, p.batch, grad_z, add, [&] {
      run_on(
          x, [&] { write_matrix_cpu(p.batch); },
          [&](auto stream) { return kernels::vicreg_terms_matrix_cuda(p, stream); });
    });
  }
  run_on(x, [&] { finish_gradients_cpu(p); }, [](auto) { return 0; });  // a GPU has done it above
  return {grad_z, grad_invariance, grad_weights.defined() ? grad_weights : in.new_empty({0})};
}

}  // namespace mast_ext
