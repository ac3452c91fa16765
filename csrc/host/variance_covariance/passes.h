// variance_covariance in host code, for vicreg_terms, too: what is computed, and the passes over
// the batch around the matrix products.
#pragma once

#include <cstdint>

#include "host/columns/column_passes.h"
#include "host/common/caching_allocator.h"
#include "kernels/variance_covariance/variance_covariance.h"

namespace mast_ext {

// The checked arguments and the form that is cheaper for them.
struct VarianceCovarianceInputs {
  Tensor z, more, masks;  // undefined if not given
  std::int64_t views, rows, dim, subspaces;
  bool gram, keep;

  // `more` has the views behind those of z, of the same rows and dtype.
  VarianceCovarianceInputs(const Tensor& z_, const OptionalTensor& masks_,
                           const Tensor& more_ = {}) {
    TORCH_CHECK_VALUE(z_.dim() == 3 && z_.size(1) >= 2 && z_.size(2) >= 1,
                      "z must have shape [V, N, D] with N >= 2 and D >= 1, got ", z_.sizes());
    dtype_of(z_, "z");
    if (masks_) {
      check_masks(*masks_, z_, "z");
      masks = masks_->contiguous();
    }
    z = dense_rows(z_);
    if (more_.defined()) more = dense_rows(more_);
    views = z.size(0) + (more.defined() ? more.size(0) : 0);
    rows = z.size(1), dim = z.size(2);
    subspaces = masks.defined() ? masks.size(0) : 1;
    gram = prefers_gram(rows, dim, subspaces);
    keep = !(gram && masks.defined()) && views * rows * dim <= kKeptElements;
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
            .y = more.defined() ? columns_list(more) : kernels::Columns::List{},
            .x_views = z.size(0),
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

// What the forward keeps for the backward.
struct BatchProducts {
  Tensor mean, sum_squares, product, centered;

  // Dense: the caller of an op may pass copies that are not.
  BatchProducts contiguous() const {
    return {mean.contiguous(), sum_squares.contiguous(), product.contiguous(),
            centered.contiguous()};
  }
};

// The moments and matrix products; into `differences`, unless undefined, what kernels/columns says.
inline BatchProducts batch_products(const VarianceCovarianceInputs& in,
                                    const Tensor& differences = {}) {
  const auto V = in.views, N = in.rows, D = in.dim, K = in.subspaces;
  BatchProducts made{.mean = in.new_empty({V, D}),
                     .sum_squares = in.new_empty({V, D}),
                     .product = in.gram ? in.new_product({K, V, N, N}) : in.new_product({V, D, D}),
                     .centered = in.keep ? in.new_product({V, N, D}) : in.new_product({0})};
  const Chunks chunks = in.chunks();
  const bool masked = in.gram && in.masks.defined();
  Tensor whole = in.keep ? made.centered : Tensor();
  if (!in.keep && chunks.single() && !masked) whole = in.new_product({V, N, D});
  column_moments({.z = in.columns(),
                  .mean = made.mean.mutable_data_ptr(),
                  .sum_squares = made.sum_squares.mutable_data_ptr(),
                  .scale = nullptr,
                  .divisor = 1,
                  .eps = 0,
                  .tile = element(whole),
                  .differences = element(differences)},
                 in.z);
  chunks.each([&](std::int64_t first, std::int64_t count) {
    const Tensor tile = whole.defined() ? whole : in.tile(made.mean, first, count, masked);
    const bool last = first + count == chunks.length;
    if (in.gram) {
      add_gram(made.product.view({K * V, N, N}), tile.view({K * V, N, count}), first == 0, last);
    } else {
      add_gram(made.product, tile.transpose(1, 2), first == 0, last);
    }
  });
  return made;
}

// The sums of the product's rows [K, V, D], or [K, V, N] (Gram).
inline Tensor product_row_sums(const VarianceCovarianceInputs& in, const BatchProducts& batch) {
  const auto V = in.views, N = in.rows, D = in.dim, K = in.subspaces;
  Tensor row_sums = in.new_empty({K, V, in.gram ? N : D});
  const kernels::VarianceCovariance p{.shape = in.shape(batch.sum_squares, batch.product, 0),
                                      .row_sums = row_sums.mutable_data_ptr(),
                                      .variance = nullptr,
                                      .covariance = nullptr};
  run_on(
      in.z,
      [&] {
        parallel_rows(in.gram ? K * V * N : V * D, in.gram ? N : K * D, [&](auto begin, auto end) {
          kernels::variance_covariance_rows_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::variance_covariance_rows_cuda(p, stream); });
  return row_sums;
}

// grad_z = the product of the centered batch with the matrix that `write_matrix` writes to p.matrix
// (direct form), or += if `add`.
template <typename Write>
void multiply_by_matrix(const VarianceCovarianceInputs& in, const BatchProducts& kept,
                        kernels::VarianceCovarianceBackward& p, const Tensor& grad_z, bool add,
                        const Write& write_matrix) {
  Tensor matrix = in.new_product({in.views, in.dim, in.dim});
  p.matrix = matrix.mutable_data_ptr();
  write_matrix();
  in.chunks().each([&](std::int64_t first, std::int64_t count) {
    const Tensor tile = in.keep ? kept.centered : in.tile(kept.mean, first, count, false);
    Tensor rows = grad_z.narrow(1, first, count);
    if (rows.scalar_type() == matrix.scalar_type()) {
      add_product(rows, tile, matrix, !add);
    } else if (add) {
      rows.add_(tile.bmm(matrix));
    } else {
      rows.copy_(tile.bmm(matrix));
    }
  });
}

// Fills in the columns of p (Gram form), chunk by chunk, and calls combine(first) for each.
template <typename Combine>
void each_column_chunk(const VarianceCovarianceInputs& in, const BatchProducts& kept,
                       kernels::VarianceCovarianceBackward& p, const Combine& combine) {
  in.chunks().each([&](std::int64_t first, std::int64_t count) {
    const Tensor tile = in.keep ? kept.centered : in.tile(kept.mean, first, count, false);
    Tensor product_grad = in.new_product({in.subspaces, in.views, in.rows, count});
    for (std::int64_t k = 0; k < in.subspaces; ++k) {
      add_product(product_grad.select(0, k), kept.product.select(0, k), tile, true);
    }
    p.first_dim = first;
    p.dims = count;
    p.centered = tile.const_data_ptr();
    p.product_grad = product_grad.const_data_ptr();
    combine(first);
  });
}

inline void write_matrix_cpu(const kernels::VarianceCovarianceBackward& p) {
  const kernels::VarianceCovarianceShape& s = p.shape;
  parallel_rows(s.views * s.dim, (1 + s.subspaces) * s.dim, [&](auto begin, auto end) {
    kernels::variance_covariance_matrix_cpu(p, begin, end);
  });
}

inline void combine_cpu(const kernels::VarianceCovarianceBackward& p) {
  const kernels::VarianceCovarianceShape& s = p.shape;
  parallel_rows(s.views * s.rows, (1 + s.subspaces) * p.dims, [&](auto begin, auto end) {
    kernels::variance_covariance_combine_cpu(p, begin, end);
  });
}

}  // namespace mast_ext
