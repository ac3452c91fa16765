// A product blocked for registers and cache. The accumulators of kBlockRows x kPanelColumns
// elements of c stay in registers along K. Their columns of b are first copied into a dense panel,
// which stays in the first-level cache for all rows; elements of a are read in place.
#include "kernels/common/products.h"

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/simd.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

constexpr std::int64_t kDepth = 256;  // rows of a panel, which then has 32 KiB
constexpr int kVectors = kPanelColumns / kLanes<float>;

// Transposes a square matrix whose rows are vectors: exchanges blocks of 1, 2, 4, ... elements
// across the diagonal.
inline void transpose(vec<float> (&rows)[kLanes<float>]) {
  constexpr int kSide = kLanes<float>;
#pragma GCC unroll 4
  for (int width = 1; width < kSide; width *= 2) {
    vec<std::int32_t> low, high;  // lanes of (a, b) that make up the two results
    for (int i = 0; i < kSide; ++i) {
      low[i] = (i & width) == 0 ? i : kSide + i - width;
      high[i] = (i & width) == 0 ? i + width : kSide + i;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) {
      if ((i & width) != 0) continue;
      const vec<float> a = rows[i], b = rows[i + width];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + width] = __builtin_shuffle(a, b, high);
    }
  }
}

// panel[k, j] = b[depth + k, column + j], zero behind the last column.
void fill_panel(const MatrixProduct& p, std::int64_t column, std::int64_t depth, std::int64_t count,
                float* panel) {
  const float* from = p.b + depth * p.b_depth_stride + column * p.b_column_stride;
  const std::int64_t columns = std::min(kPanelColumns, p.columns - column);
  if (columns < kPanelColumns) std::fill(panel, panel + count * kPanelColumns, 0.0f);
  if (p.b_column_stride == 1) {
    for (std::int64_t k = 0; k < count; ++k) {
      std::copy_n(from + k * p.b_depth_stride, columns, panel + k * kPanelColumns);
    }
    return;
  }
  constexpr std::int64_t kSide = kLanes<float>;
  for (std::int64_t k = 0; k < count; k += kSide) {
    for (std::int64_t j = 0; j < columns; j += kSide) {
      const float* lines = from + j * p.b_column_stride + k;
      float* to = panel + k * kPanelColumns + j;
      if (count - k >= kSide && columns - j >= kSide) {
        vec<float> square[kSide];
        for (int i = 0; i < kSide; ++i) square[i] = load(lines + i * p.b_column_stride);
        transpose(square);
        for (int i = 0; i < kSide; ++i) store(to + i * kPanelColumns, square[i]);
        continue;
      }
      for (std::int64_t t = 0; t < std::min(kSide, columns - j); ++t) {
        for (std::int64_t i = 0; i < std::min(kSide, count - k); ++i) {
          to[i * kPanelColumns + t] = lines[t * p.b_column_stride + i];
        }
      }
    }
  }
}

// c[Rows, panel] = a[Rows, count] panel, or += if `add`. kDenseDepth: a has its stride of 1 along
// K; otherwise along the rows.
template <int Rows, bool kDenseDepth>
void multiply(const float* a, std::int64_t a_stride, const float* panel, std::int64_t count,
              float* c, std::int64_t c_stride, std::int64_t columns, bool add) {
  vec<float> sum[Rows][kVectors] = {};
  for (std::int64_t k = 0; k < count; ++k) {
    vec<float> b[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) b[j] = load(panel + k * kPanelColumns + j * kLanes<float>);
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      const float x = kDenseDepth ? a[i * a_stride + k] : a[k * a_stride + i];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] += x * b[j];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      float* to = c + i * c_stride + j * kLanes<float>;
      const std::int64_t left = columns - j * kLanes<float>;
      if (left >= kLanes<float>) {
        store(to, add ? load(to) + sum[i][j] : sum[i][j]);
        continue;
      }
      for (std::int64_t t = 0; t < left; ++t) to[t] = add ? to[t] + sum[i][j][t] : sum[i][j][t];
    }
  }
}

template <bool kDenseDepth>
void product(const MatrixProduct& p) {
  const std::int64_t a_stride = kDenseDepth ? p.a_row_stride : p.a_depth_stride;
  float* panel = scratch<float, struct Panel>(kDepth * kPanelColumns);
  for (std::int64_t depth = 0; depth < p.depth; depth += kDepth) {
    const std::int64_t count = std::min(kDepth, p.depth - depth);
    const bool add = p.add || depth > 0;
    for (std::int64_t column = 0; column < p.columns; column += kPanelColumns) {
      fill_panel(p, column, depth, count, panel);
      const float* a = p.a + depth * (kDenseDepth ? 1 : a_stride);
      float* c = p.c + column;
      std::int64_t row = 0;
      const auto block = [&]<int Rows>() {
        for (; row + Rows <= p.rows; row += Rows) {
          multiply<Rows, kDenseDepth>(a + row * (kDenseDepth ? a_stride : 1), a_stride, panel,
                                      count, c + row * p.c_stride, p.c_stride, p.columns - column,
                                      add);
        }
      };
      block.template operator()<kBlockRows>();
      block.template operator()<4>();
      block.template operator()<1>();
    }
  }
}

}  // namespace

void product_cpu(const MatrixProduct& p) {
  if (p.depth == 0 && !p.add) {
    for (std::int64_t i = 0; i < p.rows; ++i) std::fill_n(p.c + i * p.c_stride, p.columns, 0.0f);
  }
  p.a_depth_stride == 1 ? product<true>(p) : product<false>(p);
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(product_cpu, (const MatrixProduct& p), (p))

// Weak: every copy defines it, and some builds link only one.
__attribute__((weak)) bool has_product_cpu() {
  return isa_in_use() == Isa::kAvx512 && !__builtin_cpu_is("intel");
}

}  // namespace mast_ext::kernels
