// Products of float32 matrices on CPUs with 512-bit vectors that are not Intel's: there the vendor
// library of PyTorch (MKL) runs 256-bit code, at half of what the processor can do. Elsewhere the
// host code calls the vendor's.
#pragma once

#include <cstdint>

namespace mast_ext::kernels {

// c (+)= a b, with a [M, K], b [K, N], and c [M, N] whose rows are dense. One stride of a and one
// of b is 1.
struct Product {
  std::int64_t rows, columns, depth;  // M, N, K
  const float* a;
  std::int64_t a_row_stride, a_depth_stride;
  const float* b;
  std::int64_t b_depth_stride, b_column_stride;
  float* c;
  std::int64_t c_stride;
  bool add;
};

// Whether product_cpu is the faster one here.
bool has_product_cpu();

// Columns are computed in panels of this width, rows in blocks of this height: shares of the work
// should begin at a multiple of them.
inline constexpr std::int64_t kPanelColumns = 32, kBlockRows = 12;

// Computes all of p; several calls may share a matrix c by rows or columns. An element is summed in
// an order that depends on K alone.
void product_cpu(const Product& p);

}  // namespace mast_ext::kernels
