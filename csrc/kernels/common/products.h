// Products of float32 matrices for CPUs that have AVX-512 and are not Intel's. There MKL, the
// vendor library of PyTorch, runs 256-bit code at half of the processor's speed. On all others the
// host code calls the vendor library.
#pragma once

#include <cstdint>

namespace mast_ext::kernels {

// c = a b, or c += a b if `add`, with a [M, K], b [K, N] and c [M, N]. The rows of c are dense; a
// has one stride of 1, and so has b.
struct MatrixProduct {
  std::int64_t rows, columns, depth;  // M, N, K
  const float* a;
  std::int64_t a_row_stride, a_depth_stride;
  const float* b;
  std::int64_t b_depth_stride, b_column_stride;
  float* c;
  std::int64_t c_stride;
  bool add;
};

// Whether product_cpu() is faster than the vendor library on this CPU.
bool has_product_cpu();

// The columns of a panel and the rows of a register block. Where threads share a product, their
// columns or rows should begin at multiples of these.
inline constexpr std::int64_t kPanelColumns = 32, kBlockRows = 12;

// Computes all of p. Several threads may each compute some rows or columns of one matrix c: the
// order of summation of an element depends on K alone.
void product_cpu(const MatrixProduct& p);

}  // namespace mast_ext::kernels
