#include "host/variance_covariance/passes.h"

#include "host/ops.h"

namespace mast_ext {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> variance_covariance(
    const Tensor& z, const OptionalTensor& masks, double eps) {
  const PlainTensors plain;
  const VarianceCovarianceInputs in(z, masks);
  TORCH_CHECK_VALUE(eps >= 0, "eps must not be negative, got ", eps);
  const auto V = in.views, K = in.subspaces;
  Tensor variance = in.new_empty({K, V}), covariance = in.new_empty({K, V});
  const BatchProducts made = batch_products(in);
  const Tensor row_sums = product_row_sums(in, made);
  const kernels::VarianceCovariance p{.shape = in.shape(made.sum_squares, made.product, eps),
                                      .row_sums = row_sums.mutable_data_ptr(),
                                      .variance = variance.mutable_data_ptr(),
                                      .covariance = covariance.mutable_data_ptr()};
  run_on(
      in.z,
      [&] {
        parallel_rows(K * V, 8 * in.dim, [&](auto begin, auto end) {
          kernels::variance_covariance_finish_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::variance_covariance_finish_cuda(p, stream); });
  return {variance, covariance, made.mean, made.sum_squares, made.product, row_sums, made.centered};
}

std::tuple<Tensor, Tensor> variance_covariance_backward(
    const Tensor& grad_variance_, const Tensor& grad_covariance_, const Tensor& z,
    const OptionalTensor& masks, const Tensor& mean, const Tensor& sum_squares,
    const Tensor& product, const Tensor& row_sums_, const Tensor& centered, double eps,
    std::array<bool, 2> wanted) {
  const PlainTensors plain;
  const VarianceCovarianceInputs in(z, masks);
  const auto V = in.views, N = in.rows, D = in.dim, K = in.subspaces;
  for (const auto& [grad, name] : {std::pair(&grad_variance_, "grad_variance"),
                                   std::pair(&grad_covariance_, "grad_covariance")}) {
    check_shape(*grad, name, {K, V});
    check_like(*grad, name, mean, "mean");
  }
  const Tensor grad_variance = grad_variance_.contiguous();
  const Tensor grad_covariance = grad_covariance_.contiguous();
  const Tensor row_sums = row_sums_.contiguous();
  const auto kept = BatchProducts{mean, sum_squares, product, centered}.contiguous();
  const bool want_z = wanted[0], want_masks = wanted[1] && in.masks.defined();
  Tensor grad_z = want_z ? new_result(in.z, {V, N, D}) : in.z.new_empty({0});
  Tensor grad_masks = want_masks ? in.new_empty({K, D}) : in.new_empty({0});
  Tensor dots = in.gram && want_masks ? in.new_empty({K, V, D}) : Tensor();

  kernels::VarianceCovarianceBackward p{
      .shape = in.shape(kept.sum_squares, kept.product, eps),
      .grad_variance = grad_variance.const_data_ptr(),
      .grad_covariance = grad_covariance.const_data_ptr(),
      .grad_stride = 1,
      .variance_factor = 1,
      .covariance_factor = 1,
      .slopes = dots.defined() ? dots.const_data_ptr() : row_sums.const_data_ptr(),
      .matrix = nullptr,
      .first_dim = 0,
      .dims = 0,
      .centered = nullptr,
      .product_grad = nullptr,
      .grad_dtype = dtype_of(in.z, "z"),
      .grad_z = want_z ? grad_z.mutable_data_ptr() : nullptr,
      .grad_masks = want_masks ? grad_masks.mutable_data_ptr() : nullptr,
  };
  if (!in.gram && want_z) {
    multiply_by_matrix(in, kept, p, grad_z, false, [&] {
      run_on(
          in.z, [&] { write_matrix_cpu(p); },
          [&](auto stream) { return kernels::variance_covariance_matrix_cuda(p, stream); });
    });
  }
  if (in.gram && (want_z || want_masks)) {
    each_column_chunk(in, kept, p, [&](std::int64_t first) {
      if (want_masks) {
        column_dots({.dtype = p.shape.dtype,
                     .x = p.centered,
                     .y = p.product_grad,
                     .subspaces = K,
                     .views = V,
                     .rows = N,
                     .dims = p.dims,
                     .stride = D,
                     .dots = element(dots, first)},
                    in.z);
      }
      if (!want_z) return;
      run_on(
          in.z, [&] { combine_cpu(p); },
          [&](auto stream) { return kernels::variance_covariance_combine_cuda(p, stream); });
    });
  }
  if (want_masks) {
    run_on(
        in.z,
        [&] {
          parallel_rows(K * D, 8 * V, [&](auto begin, auto end) {
            kernels::variance_covariance_masks_cpu(p, begin, end);
          });
        },
        [&](auto stream) { return kernels::variance_covariance_masks_cuda(p, stream); });
  }
  return {grad_z, grad_masks};
}

}  // namespace mast_ext
