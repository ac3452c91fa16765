// Matrix products on CPU and GPU: by the vendor library or, where that is faster, by our own kernel
// (kernels/common/products.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "host/common/run_on.h"
#include "host/common/tensors.h"
#include "kernels/common/products.h"

namespace mast_ext {

inline bool has_own_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  constexpr std::int64_t kWorthwhile = 1 << 15;
  const auto readable = [](const Tensor& t) { return t.stride(0) == 1 || t.stride(1) == 1; };
  return !uses_cuda_kernels(out) && out.scalar_type() == at::kFloat && kernels::has_product_cpu() &&
         out.stride(1) == 1 && readable(a) && readable(b) && out.numel() * a.size(1) >= kWorthwhile;
}

// out = a b, or out += a b if `add`, with out [M, N].
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  if (!has_own_product(out, a, b)) {
    out.addmm_(a, b, add ? 1 : 0);
    return;
  }
  const std::int64_t rows = out.size(0), columns = out.size(1), depth = a.size(1);
  const kernels::MatrixProduct whole{.rows = rows,
                                     .columns = columns,
                                     .depth = depth,
                                     .a = a.const_data_ptr<float>(),
                                     .a_row_stride = a.stride(0),
                                     .a_depth_stride = a.stride(1),
                                     .b = b.const_data_ptr<float>(),
                                     .b_depth_stride = b.stride(0),
                                     .b_column_stride = b.stride(1),
                                     .c = out.mutable_data_ptr<float>(),
                                     .c_stride = out.stride(0),
                                     .add = add};
  // Threads divide the longer side of `out`. Each copies the panels of b that it needs.
  const bool by_rows = rows >= columns;
  const std::int64_t unit = by_rows ? kernels::kBlockRows : kernels::kPanelColumns;
  const std::int64_t length = by_rows ? rows : columns;
  const auto share = [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = begin * unit, count = std::min(end * unit, length) - first;
    kernels::MatrixProduct part = whole;
    (by_rows ? part.rows : part.columns) = count;
    if (by_rows) {
      part.a += first * part.a_row_stride;
      part.c += first * part.c_stride;
    } else {
      part.b += first * part.b_column_stride;
      part.c += first;
    }
    kernels::product_cpu(part);
  };
  parallel_rows((length + unit - 1) / unit, unit * depth * (by_rows ? columns : rows) / 16, share,
                /*turns=*/1);
}

}  // namespace mast_ext
