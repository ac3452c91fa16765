// What variance_covariance and cross_correlation_penalty share in host code: the passes of
// kernels/columns/columns.h, and matrix products of tiles.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "host/columns/forms.h"
#include "host/common/checks.h"
#include "host/common/chunk_limit.h"
#include "host/common/products.h"
#include "host/common/run_on.h"
#include "host/common/tensors.h"
#include "kernels/columns/columns.h"

namespace mast_ext {

// The dtype of matrix products: that of sums, except on CUDA for bfloat16 embeddings, which tensor
// cores multiply as they are. float16 would overflow: an element is a sum of up to D squares.
inline at::ScalarType product_type(const Tensor& z) {
  return uses_cuda_kernels(z) && z.scalar_type() == at::kBFloat16 ? at::kBFloat16
                                                                  : accumulation_type(z);
}

inline kernels::Columns::List columns_list(const Tensor& z) {
  const bool views = z.dim() == 3;
  return {.data = z.const_data_ptr(),
          .view_stride = views ? z.stride(0) : 0,
          .row_stride = z.stride(views ? 1 : 0)};
}

// Divides an axis of a product's operands into chunks, so that the operands take no more memory
// than the product, if that is large.
struct Chunks {
  std::int64_t length, step;

  // `other` is the length of the product's own axes; `whole` asks for a single chunk. Chunks are
  // longer on a GPU, where launches cost more than memory.
  Chunks(std::int64_t length_, std::int64_t other, bool whole, bool cuda)
      : length(length_),
        step(whole ? length_ : std::max<std::int64_t>(cuda ? chunk_limit(8192) : 1024, other)) {}

  bool single() const { return step >= length; }

  template <typename Body>  // body(first, count)
  void each(const Body& body) const {
    for (std::int64_t first = 0; first < length; first += step) {
      body(first, std::min(step, length - first));
    }
  }
};

inline void column_moments(const kernels::ColumnMoments& p, const Tensor& z) {
  run_on(
      z,
      [&] {
        parallel_rows(p.passes() * kernels::column_blocks(p.z.dim),
                      4 * p.z.rows * kernels::kColumnBlock,
                      [&](auto begin, auto end) { kernels::column_moments_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::column_moments_cuda(p, stream); });
}

inline void column_tile(const kernels::ColumnTile& p, const Tensor& z) {
  if (p.subspaces == 0) return;
  run_on(
      z,
      [&] {
        parallel_rows(p.z.views * p.rows, p.subspaces * p.dims,
                      [&](auto begin, auto end) { kernels::column_tile_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::column_tile_cuda(p, stream); });
}

inline void column_dots(const kernels::ColumnDots& p, const Tensor& z) {
  run_on(
      z,
      [&] {
        parallel_rows(p.subspaces * p.views * kernels::column_blocks(p.dims),
                      2 * p.rows * kernels::kColumnBlock,
                      [&](auto begin, auto end) { kernels::column_dots_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::column_dots_cuda(p, stream); });
}

// products[i] = x[i] y[i] for a batch of matrices if `first`, else +=.
inline void add_product(const Tensor& products, const Tensor& x, const Tensor& y, bool first) {
  if (products.size(0) == 0) return;
  if (!has_own_product(products.select(0, 0), x.select(0, 0), y.select(0, 0))) {
    products.baddbmm_(x, y, first ? 0 : 1);
    return;
  }
  for (std::int64_t i = 0; i < products.size(0); ++i) {
    multiply(products.select(0, i), x.select(0, i), y.select(0, i), !first);
  }
}

// products[i] = x[i] x[i]^T if `first`, else +=. Of a large product on the CPU only the blocks on
// and above the diagonal are computed; if `last`, they are copied to the others.
inline void add_gram(const Tensor& products, const Tensor& x, bool first, bool last) {
  const std::int64_t size = x.size(1);
  if (uses_cuda_kernels(x) || size < 256) {
    return add_product(products, x, x.transpose(1, 2), first);
  }
  const std::int64_t step = std::clamp<std::int64_t>(size / 8, 64, 256);
  for (std::int64_t at = 0; at < size; at += step) {
    const std::int64_t count = std::min(step, size - at);
    const Tensor columns = products.narrow(2, at, count);
    add_product(columns.narrow(1, 0, at + count), x.narrow(1, 0, at + count),
                x.narrow(1, at, count).transpose(1, 2), first);
    if (last)
      products.narrow(1, at, count)
          .narrow(2, 0, at)
          .copy_(columns.narrow(1, 0, at).transpose(1, 2));
  }
}

}  // namespace mast_ext
