#include "kernels/variance_covariance/variance_covariance.h"

#include "host/columns/column_passes.h"
#include "host/common/caching_allocator.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The checked arguments and the form that is cheaper for them.
struct VarianceCovarianceInputs {
  Tensor z, masks;  // masks are undefined if not given
  std::int64_t views, rows, dim, subspaces;
  bool gram, keep;

  VarianceCovarianceInputs(const Tensor& z_, const OptionalTensor& masks_) {
    TORCH_CHECK_VALUE(z_.dim() == 3 && z_.size(1) >= 2 && z_.size(2) >= 1,
                      "z must have shape [V, N, D] with N >= 2 and D >= 1, got ", z_.sizes());
    dtype_of(z_, "z");
    if (masks_) {
      check_masks(*masks_, z_, "z");
      masks = masks_->contiguous();
    }
    z = dense_rows(z_);
    views = z.size(0), rows = z.size(1), dim = z.size(2);
    subspaces = masks.defined() ? masks.size(0) : 1;
    gram = prefers_gram(rows, dim, subspaces);
    keep = !(gram && masks.defined()) && z.numel() <= kKeptElements;
  }

  Tensor new_empty(at::IntArrayRef shape) const {
    return z.new_empty(shape, z.options().dtype(accumulation_type(z)));
  }
  Tensor new_product(at::IntArrayRef shape) const { return new_result(z, shape, product_type(z)); }

  // Chunks of D (Gram) or N (direct).
  Chunks chunks() const {
    return {gram ? dim : rows, gram ? rows : dim, keep, uses_cuda_kernels(z)};
  }

  kernels::Columns columns() const {
    return {.dtype = dtype_of(z, "z"),
            .x = columns_list(z),
            .y = {},
            .x_views = views,
            .views = views,
            .rows = rows,
            .dim = dim};
  }

  kernels::VarianceCovarianceShape shape(const Tensor& sum_squares, const Tensor& product,
                                         double eps) const {
    return {.dtype = dtype_of(product, "product"),
            .gram = gram,
            .views = views,
            .rows = rows,
            .dim = dim,
            .subspaces = subspaces,
            .eps = eps,
            .masks = const_element(masks),
            .sum_squares = sum_squares.const_data_ptr(),
            .product = product.const_data_ptr()};
  }

  // The centered chunk [V, N, count] (Gram) or [V, count, D] (direct); if `masked`, the former
  // times every mask, [K, V, N, count].
  Tensor tile(const Tensor& mean, std::int64_t first, std::int64_t count, bool masked) const {
    const std::int64_t first_row = gram ? 0 : first, first_dim = gram ? first : 0;
    const std::int64_t tile_rows = gram ? rows : count, dims = gram ? count : dim;
    Tensor out = masked ? new_product({subspaces, views, tile_rows, dims})
                        : new_product({views, tile_rows, dims});
    column_tile({.z = columns(),
                 .mean = mean.const_data_ptr(),
                 .scale = masked ? masks.const_data_ptr() : nullptr,
                 .subspaces = masked ? subspaces : 1,
                 .subspace_stride = dim,
                 .view_stride = 0,
                 .first_row = first_row,
                 .rows = tile_rows,
                 .first_dim = first_dim,
                 .dims = dims,
                 .tile = out.mutable_data_ptr()},
                z);
    return out;
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> variance_covariance(
    const Tensor& z, const OptionalTensor& masks, double eps) {
  const PlainTensors plain;
  const VarianceCovarianceInputs in(z, masks);
  TORCH_CHECK_VALUE(eps >= 0, "eps must not be negative, got ", eps);
  const auto V = in.views, N = in.rows, D = in.dim, K = in.subspaces;
  Tensor variance = in.new_empty({K, V}), covariance = in.new_empty({K, V});
  Tensor mean = in.new_empty({V, D}), sum_squares = in.new_empty({V, D});
  Tensor product = in.gram ? in.new_product({K, V, N, N}) : in.new_product({V, D, D});
  Tensor row_sums = in.new_empty({K, V, in.gram ? N : D});
  Tensor centered = in.keep ? in.new_product({V, N, D}) : in.new_product({0});

  const Chunks chunks = in.chunks();
  const bool masked = in.gram && in.masks.defined();
  Tensor whole = in.keep ? centered : Tensor();
  if (!in.keep && chunks.single() && !masked) whole = in.new_product({V, N, D});
  column_moments({.z = in.columns(),
                  .mean = mean.mutable_data_ptr(),
                  .sum_squares = sum_squares.mutable_data_ptr(),
                  .scale = nullptr,
                  .divisor = 1,
                  .eps = 0,
                  .tile = element(whole)},
                 in.z);
  chunks.each([&](std::int64_t first, std::int64_t count) {
    const Tensor tile = whole.defined() ? whole : in.tile(mean, first, count, masked);
    const bool last = first + count == chunks.length;
    if (in.gram) {
      add_gram(product.view({K * V, N, N}), tile.view({K * V, N, count}), first == 0, last);
    } else {
      add_gram(product, tile.transpose(1, 2), first == 0, last);
    }
  });

  const kernels::VarianceCovariance p{.shape = in.shape(sum_squares, product, eps),
                                      .row_sums = row_sums.mutable_data_ptr(),
                                      .variance = variance.mutable_data_ptr(),
                                      .covariance = covariance.mutable_data_ptr()};
  run_on(
      in.z,
      [&] {
        parallel_rows(in.gram ? K * V * N : V * D, in.gram ? N : K * D, [&](auto begin, auto end) {
          kernels::variance_covariance_rows_cpu(p, begin, end);
        });
        parallel_rows(K * V, 8 * D, [&](auto begin, auto end) {
          kernels::variance_covariance_finish_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::variance_covariance_cuda(p, stream); });
  return {variance, covariance, mean, sum_squares, product, row_sums, centered};
}

std::tuple<Tensor, Tensor> variance_covariance_backward(
    const Tensor& grad_variance_, const Tensor& grad_covariance_, const Tensor& z,
    const OptionalTensor& masks, const Tensor& mean_, const Tensor& sum_squares_,
    const Tensor& product_, const Tensor& row_sums_, const Tensor& centered_, double eps,
    std::array<bool, 2> wanted) {
  const PlainTensors plain;
  const VarianceCovarianceInputs in(z, masks);
  const auto V = in.views, N = in.rows, D = in.dim, K = in.subspaces;
  for (const auto& [grad, name] : {std::pair(&grad_variance_, "grad_variance"),
                                   std::pair(&grad_covariance_, "grad_covariance")}) {
    check_shape(*grad, name, {K, V});
    check_like(*grad, name, mean_, "mean");
  }
  const Tensor grad_variance = grad_variance_.contiguous();
  const Tensor grad_covariance = grad_covariance_.contiguous();
  // The forward returns dense tensors, but a caller of the op may pass copies that are not.
  const Tensor mean = mean_.contiguous(), sum_squares = sum_squares_.contiguous();
  const Tensor product = product_.contiguous(), row_sums = row_sums_.contiguous();
  const Tensor centered = centered_.contiguous();
  const bool want_z = wanted[0], want_masks = wanted[1] && in.masks.defined();
  Tensor grad_z = want_z ? new_result(in.z, {V, N, D}) : in.z.new_empty({0});
  Tensor grad_masks = want_masks ? in.new_empty({K, D}) : in.new_empty({0});
  Tensor dots = in.gram && want_masks ? in.new_empty({K, V, D}) : Tensor();

  kernels::VarianceCovarianceBackward p{
      .shape = in.shape(sum_squares, product, eps),
      .grad_variance = grad_variance.const_data_ptr(),
      .grad_covariance = grad_covariance.const_data_ptr(),
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
  const auto tile_at = [&](std::int64_t first, std::int64_t count) {
    return in.keep ? centered : in.tile(mean, first, count, false);
  };

  if (!in.gram && want_z) {
    Tensor matrix = in.new_product({V, D, D});
    p.matrix = matrix.mutable_data_ptr();
    run_on(
        in.z,
        [&] {
          parallel_rows(V * D, (1 + K) * D, [&](auto begin, auto end) {
            kernels::variance_covariance_matrix_cpu(p, begin, end);
          });
        },
        [&](auto stream) { return kernels::variance_covariance_matrix_cuda(p, stream); });
    in.chunks().each([&](std::int64_t first, std::int64_t count) {
      const Tensor tile = tile_at(first, count);
      Tensor rows = grad_z.narrow(1, first, count);
      if (rows.scalar_type() == matrix.scalar_type()) {
        add_product(rows, tile, matrix, true);
      } else {
        rows.copy_(tile.bmm(matrix));
      }
    });
  }
  if (in.gram && (want_z || want_masks)) {
    in.chunks().each([&](std::int64_t first, std::int64_t count) {
      const Tensor tile = tile_at(first, count);
      Tensor product_grad = in.new_product({K, V, N, count});
      for (std::int64_t k = 0; k < K; ++k) {
        add_product(product_grad.select(0, k), product.select(0, k), tile, true);
      }
      p.first_dim = first;
      p.dims = count;
      p.centered = tile.const_data_ptr();
      p.product_grad = product_grad.const_data_ptr();
      if (want_masks) {
        column_dots({.dtype = p.shape.dtype,
                     .x = p.centered,
                     .y = p.product_grad,
                     .subspaces = K,
                     .views = V,
                     .rows = N,
                     .dims = count,
                     .stride = D,
                     .dots = element(dots, first)},
                    in.z);
      }
      if (!want_z) return;
      run_on(
          in.z,
          [&] {
            parallel_rows(V * N, (1 + K) * count, [&](auto begin, auto end) {
              kernels::variance_covariance_combine_cpu(p, begin, end);
            });
          },
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
