#include "kernels/cross_correlation_penalty/cross_correlation_penalty.h"

#include "host/columns/column_passes.h"
#include "host/common/caching_allocator.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The checked arguments and the form that is cheaper for them.
struct CrossCorrelationInputs {
  Tensor a, b;
  std::int64_t rows, dim;
  bool gram, keep, small;
  double divisor, eps;

  CrossCorrelationInputs(const Tensor& a_, const Tensor& b_, std::string_view variant) {
    TORCH_CHECK_VALUE(a_.dim() == 2 && a_.size(0) >= 2 && a_.size(1) >= 1,
                      "a must have shape [N, D] with N >= 2 and D >= 1, got ", a_.sizes());
    dtype_of(a_, "a");
    check_shape(b_, "b", a_.sizes());
    check_like(b_, "b", a_, "a");
    const bool official = variant == "official";
    TORCH_CHECK_VALUE(official || variant == "paper",
                      "variant must be 'official' or 'paper', got '", std::string(variant), "'");
    a = dense_rows(a_);
    b = dense_rows(b_);
    rows = a.size(0), dim = a.size(1);
    divisor = static_cast<double>(official ? rows : rows - 1);
    eps = official ? 1e-5 : 0;
    gram = prefers_gram(rows, dim, 1);
    keep = 2 * a.numel() <= kKeptElements;
    static_assert(2 * kernels::kSmallElements <= kKeptElements);
    small = uses_cuda_kernels(a) && !gram && kernels::is_small(rows, dim);
  }

  Tensor new_empty(at::IntArrayRef shape) const {
    return a.new_empty(shape, a.options().dtype(accumulation_type(a)));
  }
  Tensor new_product(at::IntArrayRef shape) const { return new_result(a, shape, product_type(a)); }

  // Chunks of D (Gram) or N (direct).
  Chunks chunks() const {
    return {gram ? dim : rows, gram ? rows : dim, keep, uses_cuda_kernels(a)};
  }

  kernels::Columns columns() const {
    return {.dtype = dtype_of(a, "a"),
            .x = columns_list(a),
            .y = columns_list(b),
            .x_views = 1,
            .views = 2,
            .rows = rows,
            .dim = dim};
  }

  // The standardized chunk [2, N, count] (Gram) or [2, count, D] (direct).
  Tensor tile(const Tensor& mean, const Tensor& scale, std::int64_t first,
              std::int64_t count) const {
    const std::int64_t tile_rows = gram ? rows : count, dims = gram ? count : dim;
    Tensor out = new_product({2, tile_rows, dims});
    column_tile({.z = columns(),
                 .mean = mean.const_data_ptr(),
                 .scale = scale.const_data_ptr(),
                 .subspaces = 1,
                 .subspace_stride = 0,
                 .view_stride = dim,
                 .first_row = gram ? 0 : first,
                 .rows = tile_rows,
                 .first_dim = gram ? first : 0,
                 .dims = dims,
                 .tile = out.mutable_data_ptr()},
                a);
    return out;
  }

  kernels::CrossCorrelationShape shape(double lambda, const Tensor& product, const Tensor& dots,
                                       const Tensor& row_sums) const {
    return {.dtype = dtype_of(product, "product"),
            .gram = gram,
            .rows = rows,
            .dim = dim,
            .lambda = lambda,
            .divisor = divisor,
            .product = product.const_data_ptr(),
            .dots = dots.const_data_ptr(),
            .row_sums = row_sums.const_data_ptr()};
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cross_correlation_penalty(const Tensor& a, const Tensor& b, double lambda,
                          std::string_view variant) {
  const PlainTensors plain;
  const CrossCorrelationInputs in(a, b, variant);
  const auto N = in.rows, D = in.dim;
  Tensor penalty = in.new_empty({});
  Tensor mean = in.new_empty({2, D}), scale = in.new_empty({2, D}), dots = in.new_empty({D});
  Tensor sum_squares = in.new_empty({2, D});
  Tensor product = in.gram ? in.new_product({2, N, N}) : in.new_product({1, D, D});
  Tensor row_sums = in.new_empty({in.gram ? N : D});
  Tensor column_sums = in.new_empty({in.small ? D : 0});
  Tensor standard = in.new_product({in.keep ? 2 : 0, N, D});

  const Chunks chunks = in.chunks();
  Tensor whole = in.keep ? standard : Tensor();
  if (!in.keep && chunks.single()) whole = in.new_product({2, N, D});
  column_moments({.z = in.columns(),
                  .mean = mean.mutable_data_ptr(),
                  .sum_squares = sum_squares.mutable_data_ptr(),
                  .scale = scale.mutable_data_ptr(),
                  .divisor = in.divisor,
                  .eps = in.eps,
                  .tile = element(whole)},
                 in.a);
  if (in.small) {
    add_product(product, standard.narrow(0, 0, 1).transpose(1, 2), standard.narrow(0, 1, 1), true);
    Tensor matrices = in.new_product({2, D, D});
    const kernels::CrossCorrelationSmall p{.shape = in.shape(lambda, product, dots, row_sums),
                                           .tile = standard.const_data_ptr(),
                                           .dots = dots.mutable_data_ptr(),
                                           .row_sums = row_sums.mutable_data_ptr(),
                                           .column_sums = column_sums.mutable_data_ptr(),
                                           .matrices = matrices.mutable_data_ptr(),
                                           .penalty = penalty.mutable_data_ptr()};
    run_on(
        in.a, [] {}, [&](auto stream) { return kernels::cross_correlation_small_cuda(p, stream); });
    return {penalty, mean, scale, matrices, dots, row_sums, column_sums, standard};
  }
  chunks.each([&](std::int64_t first, std::int64_t count) {
    const Tensor tile = whole.defined() ? whole : in.tile(mean, scale, first, count);
    const Tensor a_tile = tile.narrow(0, 0, 1), b_tile = tile.narrow(0, 1, 1);
    if (in.gram) {
      const bool last = first + count == chunks.length;
      add_gram(product.narrow(0, 0, 1), b_tile, first == 0, last);
      add_gram(product.narrow(0, 1, 1), a_tile, first == 0, last);
    } else {
      add_product(product, a_tile.transpose(1, 2), b_tile, first == 0);
    }
    column_dots({.dtype = dtype_of(tile, "tile"),
                 .x = a_tile.const_data_ptr(),
                 .y = b_tile.const_data_ptr(),
                 .subspaces = 1,
                 .views = 1,
                 .rows = in.gram ? N : count,
                 .dims = in.gram ? count : D,
                 .stride = D,
                 .dots = element(dots, in.gram ? first : 0),
                 .add = !in.gram && first > 0},
                in.a);
  });

  const kernels::CrossCorrelationPenalty p{.shape = in.shape(lambda, product, dots, row_sums),
                                           .product = product.mutable_data_ptr(),
                                           .row_sums = row_sums.mutable_data_ptr(),
                                           .penalty = penalty.mutable_data_ptr()};
  run_on(
      in.a,
      [&] {
        const std::int64_t rows = in.gram ? N : D;
        parallel_rows(rows, rows, [&](auto begin, auto end) {
          kernels::cross_correlation_rows_cpu(p, begin, end);
        });
        kernels::cross_correlation_finish_cpu(p, 0, 1);
      },
      [&](auto stream) { return kernels::cross_correlation_penalty_cuda(p, stream); });
  return {penalty, mean, scale, product, dots, row_sums, column_sums, standard};
}

std::tuple<Tensor, Tensor> cross_correlation_penalty_backward(
    const Tensor& grad_penalty, const Tensor& a, const Tensor& b, const Tensor& mean_,
    const Tensor& scale_, const Tensor& product_, const Tensor& dots_, const Tensor& row_sums_,
    const Tensor& column_sums_, const Tensor& standard_, double lambda, std::string_view variant,
    std::array<bool, 2> wanted) {
  const PlainTensors plain;
  const CrossCorrelationInputs in(a, b, variant);
  const auto N = in.rows, D = in.dim;
  check_shape(grad_penalty, "grad_penalty", {});
  check_like(grad_penalty, "grad_penalty", mean_, "mean");
  // The forward returns dense tensors, but a caller of the op may pass copies that are not.
  const Tensor mean = mean_.contiguous(), scale = scale_.contiguous();
  const Tensor product = product_.contiguous(), dots = dots_.contiguous();
  const Tensor row_sums = row_sums_.contiguous(), standard = standard_.contiguous();
  const Tensor column_sums = column_sums_.contiguous();
  const auto new_grad = [&](bool want) {
    return want ? new_result(in.a, {N, D}) : in.a.new_empty({0});
  };
  Tensor grad_a = new_grad(wanted[0]), grad_b = new_grad(wanted[1]);
  if (!wanted[0] && !wanted[1]) return {grad_a, grad_b};
  const Tensor projections = in.gram    ? in.new_empty({2, D})
                             : in.small ? column_sums
                                        : in.new_empty({D});
  const Tensor matrix = in.gram || in.small ? Tensor() : in.new_product({1, D, D});

  kernels::CrossCorrelationPenaltyBackward p{
      .shape = in.shape(lambda, product, dots, row_sums),
      .small = in.small,
      .grad_penalty = grad_penalty.const_data_ptr(),
      .scale = scale.const_data_ptr(),
      .projections = projections.const_data_ptr(),
      .matrix = element(matrix),
      .first_row = 0,
      .tile_rows = N,
      .first_dim = 0,
      .dims = D,
      .tile = nullptr,
      .product_grad = nullptr,
      .grad_dtype = dtype_of(in.a, "a"),
      .grad_a = wanted[0] ? grad_a.mutable_data_ptr() : nullptr,
      .grad_b = wanted[1] ? grad_b.mutable_data_ptr() : nullptr,
  };
  if (matrix.defined()) {
    if (wanted[1]) {
      column_dots({.dtype = p.shape.dtype,
                   .x = p.shape.product,
                   .y = p.shape.product,
                   .subspaces = 1,
                   .views = 1,
                   .rows = D,
                   .dims = D,
                   .stride = D,
                   .dots = projections.mutable_data_ptr()},
                  in.a);
    }
    run_on(
        in.a,
        [&] {
          parallel_rows(D, D, [&](auto begin, auto end) {
            kernels::cross_correlation_matrix_cpu(p, begin, end);
          });
        },
        [&](auto stream) { return kernels::cross_correlation_matrix_cuda(p, stream); });
  }
  in.chunks().each([&](std::int64_t first, std::int64_t count) {
    const Tensor tile = in.keep ? standard : in.tile(mean, scale, first, count);
    Tensor product_grad = in.new_product(tile.sizes());
    const std::int64_t begin = wanted[0] ? 0 : 1, views = wanted[0] + wanted[1];
    if (in.gram) {
      const Tensor own = tile.narrow(0, begin, views),
                   own_product_grad = product_grad.narrow(0, begin, views);
      add_product(own_product_grad, product.narrow(0, begin, views), own, true);
      column_dots({.dtype = p.shape.dtype,
                   .x = own.const_data_ptr(),
                   .y = own_product_grad.const_data_ptr(),
                   .subspaces = 1,
                   .views = views,
                   .rows = N,
                   .dims = count,
                   .stride = D,
                   .dots = element(projections, begin * D + first)},
                  in.a);
      p.first_dim = first;
      p.dims = count;
    } else if (in.small) {
      add_product(product_grad, tile, product, true);
    } else {
      if (wanted[0]) {
        add_product(product_grad.narrow(0, 0, 1), tile.narrow(0, 1, 1), matrix.transpose(1, 2),
                    true);
      }
      if (wanted[1]) add_product(product_grad.narrow(0, 1, 1), tile.narrow(0, 0, 1), matrix, true);
      p.first_row = first;
      p.tile_rows = count;
    }
    p.tile = tile.const_data_ptr();
    p.product_grad = product_grad.const_data_ptr();
    run_on(
        in.a,
        [&] {
          parallel_rows(2 * p.tile_rows, 3 * p.dims, [&](auto first_row, auto last_row) {
            kernels::cross_correlation_combine_cpu(p, first_row, last_row);
          });
        },
        [&](auto stream) { return kernels::cross_correlation_combine_cuda(p, stream); });
  });
  return {grad_a, grad_b};
}

}  // namespace mast_ext
