#include "kernels/columns/columns.h"

#include <cmath>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// Rows that are added up separately before they are added to the total, so that sums over many rows
// stay precise.
constexpr std::int64_t kSumRows = 256;

// Sums of a block of columns, which stay in the first-level cache. A block is wide, so that many
// neighboring elements of a row are read at a time: the distance of rows is often a power of two,
// and such addresses would evict each other from the cache.
template <typename A>
struct alignas(64) BlockSums {
  A total[kColumnBlock] = {}, part[kColumnBlock] = {};

  void flush() {
    for (std::int64_t d = 0; d < kColumnBlock; ++d) total[d] += part[d], part[d] = 0;
  }
};

// Adds term(n, d, left), a vector of a row's elements from d on, to `sums`, for rows [0, rows) and
// the `count` columns of a block.
template <typename A, typename Term>
void add_rows(std::int64_t rows, std::int64_t count, BlockSums<A>& sums, const Term& term) {
  for (std::int64_t first = 0; first < rows; first += kSumRows) {
    const std::int64_t last = std::min(rows, first + kSumRows);
    std::int64_t n = first;
    for (; n + 4 <= last; n += 4) {
      for (std::int64_t d = 0; d < count; d += kLanes<A>) {
        const std::int64_t left = count - d;
        const vec<A> sum = (term(n, d, left) + term(n + 1, d, left)) +
                           (term(n + 2, d, left) + term(n + 3, d, left));
        store(sums.part + d, load(sums.part + d) + sum);
      }
    }
    for (; n < last; ++n) {
      for (std::int64_t d = 0; d < count; d += kLanes<A>) {
        store(sums.part + d, load(sums.part + d) + term(n, d, count - d));
      }
    }
    sums.flush();
  }
}

template <typename T>
void differences(const ColumnMoments& p, std::int64_t d0) {
  using A = accum_t<T>;
  const Columns& z = p.z;
  const std::int64_t count = std::min(kColumnBlock, z.dim - d0);
  BlockSums<A> sums;
  add_rows<A>(z.rows, count, sums, [&](std::int64_t n, std::int64_t d, std::int64_t left) {
    const vec<A> x = load_some(row_of<T>(z, 0, n) + d0 + d, left);
    const vec<A> difference = x - load_some(row_of<T>(z, z.x_views, n) + d0 + d, left);
    return difference * difference;
  });
  std::copy(sums.total, sums.total + count, static_cast<A*>(p.differences) + d0);
}

template <typename T>
void moments(const ColumnMoments& p, std::int64_t v, std::int64_t d0) {
  using A = accum_t<T>;
  const Columns& z = p.z;
  const std::int64_t count = std::min(kColumnBlock, z.dim - d0), at = v * z.dim + d0;
  const auto element = [&](std::int64_t n, std::int64_t d, std::int64_t left) {
    return load_some(row_of<T>(z, v, n) + d0 + d, left);
  };
  const auto rows = static_cast<A>(z.rows);

  BlockSums<A> sum;
  add_rows<A>(z.rows, count, sum, element);
  alignas(64) A mean[kColumnBlock];
  for (std::int64_t d = 0; d < kColumnBlock; ++d) mean[d] = sum.total[d] / rows;
  BlockSums<A> squares;
  const auto centered = [&](std::int64_t n, std::int64_t d, std::int64_t left) {
    return element(n, d, left) - load(mean + d);
  };
  add_rows<A>(z.rows, count, squares, [&](std::int64_t n, std::int64_t d, std::int64_t left) {
    const vec<A> c = centered(n, d, left);
    return c * c;
  });
  alignas(64) A scale[kColumnBlock];
  for (std::int64_t d = 0; d < kColumnBlock; ++d) {
    scale[d] =
        p.scale == nullptr
            ? A{1}
            : 1 / std::sqrt(squares.total[d] / static_cast<A>(p.divisor) + static_cast<A>(p.eps));
  }
  std::copy(mean, mean + count, static_cast<A*>(p.mean) + at);
  std::copy(squares.total, squares.total + count, static_cast<A*>(p.sum_squares) + at);
  if (p.scale != nullptr) std::copy(scale, scale + count, static_cast<A*>(p.scale) + at);
  if (p.tile == nullptr) return;
  auto* tile = static_cast<A*>(p.tile) + v * z.rows * z.dim + d0;
  for (std::int64_t n = 0; n < z.rows; ++n) {
    for (std::int64_t d = 0; d < count; d += kLanes<A>) {
      store_some(tile + n * z.dim + d, centered(n, d, count - d) * load(scale + d), count - d);
    }
  }
}

}  // namespace

void column_moments_cpu(const ColumnMoments& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = column_blocks(p.z.dim);
  visit_dtype(p.z.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t v = i / blocks, d0 = i % blocks * kColumnBlock;
      v < p.z.views ? moments<T>(p, v, d0) : differences<T>(p, d0);
    }
  });
}

void column_tile_cpu(const ColumnTile& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.z.dtype, [&]<typename T>() {
    using A = accum_t<T>;
    constexpr int kLane = kLanes<A>;
    const std::int64_t per_subspace = p.z.views * p.rows * p.dims;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t v = i / p.rows, n = i % p.rows;
      const T* row = row_of<T>(p.z, v, p.first_row + n) + p.first_dim;
      const A* mean = static_cast<const A*>(p.mean) + v * p.z.dim + p.first_dim;
      A* out = static_cast<A*>(p.tile) + i * p.dims;
      for (std::int64_t d = 0; d < p.dims; d += kLane) {
        const std::int64_t left = p.dims - d;
        const vec<A> x = load_some(row + d, left) - load_some(mean + d, left);
        if (p.scale == nullptr) {
          store_some(out + d, x, left);
          continue;
        }
        const A* scale = static_cast<const A*>(p.scale) + v * p.view_stride + p.first_dim + d;
        for (std::int64_t k = 0; k < p.subspaces; ++k) {
          store_some(out + k * per_subspace + d, x * load_some(scale + k * p.subspace_stride, left),
                     left);
        }
      }
    }
  });
}

void column_dots_cpu(const ColumnDots& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = column_blocks(p.dims);
  visit_dtype(p.dtype, [&]<typename A>() {
    if constexpr (std::is_same_v<A, accum_t<A>>) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t kv = i / blocks, d0 = i % blocks * kColumnBlock;
        const std::int64_t count = std::min(kColumnBlock, p.dims - d0);
        const A* x = static_cast<const A*>(p.x) + kv % p.views * p.rows * p.dims + d0;
        const A* y = static_cast<const A*>(p.y) + kv * p.rows * p.dims + d0;
        BlockSums<A> sums;
        add_rows<A>(p.rows, count, sums, [&](std::int64_t n, std::int64_t d, std::int64_t left) {
          return load_some(x + n * p.dims + d, left) * load_some(y + n * p.dims + d, left);
        });
        A* dots = static_cast<A*>(p.dots) + kv * p.stride + d0;
        for (std::int64_t d = 0; d < count; ++d) {
          dots[d] = p.add ? dots[d] + sums.total[d] : sums.total[d];
        }
      }
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(column_moments_cpu,
                   (const ColumnMoments& p, std::int64_t begin, std::int64_t end), (p, begin, end))
MAST_EXT_CPU_ENTRY(column_tile_cpu, (const ColumnTile& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(column_dots_cpu, (const ColumnDots& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
