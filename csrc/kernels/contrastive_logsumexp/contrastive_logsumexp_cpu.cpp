// The CPU kernels that process a tile of products: sums of exponentials over its rows and columns,
// or, in place, the weights of the gradient. Threads share a tile by slices of kTileSlice rows, so
// that the results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/common/exponential_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/contrastive_logsumexp/contrastive_logsumexp.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename A>
const A* elements(const void* data) {
  return static_cast<const A*>(data);
}

template <typename A>
A largest_lane(vec<A> v) {
  A lanes[kLanes<A>];
  store(lanes, v);
  return *std::max_element(lanes, lanes + kLanes<A>);
}

// 0, 1, 2, ... in integers of A's size, as comparisons of vectors of A need them.
template <typename A>
using LaneNumber = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
template <typename A>
vec<LaneNumber<A>> lane_numbers() {
  vec<LaneNumber<A>> numbers;
  for (int i = 0; i < kLanes<A>; ++i) numbers[i] = i;
  return numbers;
}

template <typename A>
A shift_of(A max) {
  return max == kLowest<A> ? A{0} : max;
}

// The similarities of one row of a tile, a vector at a time.
template <typename A>
struct TileRow {
  const ContrastiveTile& tile;
  A* products;
  const A* column_scale;
  A inv_norm, scale;     // 1 / norm, 1 / (norm * temperature)
  std::int64_t partner;  // the positive's column, or -1
  bool exclude;

  TileRow(const ContrastiveTile& tile, std::int64_t row)
      : tile(tile),
        products(static_cast<A*>(tile.products) + row * tile.stride),
        column_scale(elements<A>(tile.column_scale)),
        inv_norm(elements<A>(tile.row_scale)[row]),
        scale(inv_norm / static_cast<A>(tile.temperature)),
        partner(row + tile.partner),
        exclude(tile.exclude) {
    if (!tile.has_positive || partner < 0 || partner >= tile.columns) {
      partner = -1;
      exclude = false;
    }
  }

  std::int64_t left(std::int64_t c) const { return tile.columns - c; }

  // Lanes behind the last column are 0.
  vec<A> column_scales(std::int64_t c) const { return load_some(column_scale + c, left(c)); }

  vec<A> similarity(std::int64_t c) const {
    return load_some(products + c, left(c)) * scale * column_scales(c);
  }

  // exp((cos - 1) / temperature) of N vectors from column c on. `left` is that of each_vector().
  template <int N>
  void exponentials(const Exponential<A>& exponential, std::int64_t c, std::int64_t left,
                    vec<A> (&e)[N]) const {
    for (int i = 0; i < N; ++i) {
      const std::int64_t at = c + i * kLanes<A>;
      e[i] = load_some(products + at, left) * inv_norm * load_some(column_scale + at, left) - A{1};
    }
    exponential(e);
  }

  // Writes them in the products' place, and reads them there.
  template <int N>
  void keep(std::int64_t c, std::int64_t left, const vec<A> (&e)[N]) const {
    for (int i = 0; i < N; ++i) store_some(products + c + i * kLanes<A>, e[i], left);
  }
  template <int N>
  void kept_exponentials(std::int64_t c, std::int64_t left, vec<A> (&e)[N]) const {
    for (int i = 0; i < N; ++i) e[i] = load_some(products + c + i * kLanes<A>, left);
  }

  // Sets lanes behind the last column, and that of an excluded positive, to 0.
  template <int N>
  void leave_out(std::int64_t c, std::int64_t left, vec<A> (&values)[N]) const {
    const vec<LaneNumber<A>> lanes = lane_numbers<A>();
    if (left < kLanes<A>) {
      values[0] = lanes < static_cast<LaneNumber<A>>(left) ? values[0] : vec<A>{};
    }
    const std::int64_t at = partner - c;
    if (!exclude || at < 0 || at >= N * kLanes<A>) return;
    for (int i = 0; i < N; ++i) {
      const auto lane = static_cast<LaneNumber<A>>(at - i * kLanes<A>);
      values[i] = lanes == lane ? vec<A>{} : values[i];
    }
  }

  A partner_similarity() const { return products[partner] * scale * column_scale[partner]; }

  // `values`, with `otherwise` in lanes behind the last column and in that of an excluded positive.
  vec<A> kept(vec<A> values, std::int64_t c, A otherwise) const {
    if (left(c) < kLanes<A>) {
      for (std::int64_t i = left(c); i < kLanes<A>; ++i) values[i] = otherwise;
    }
    if (exclude && partner >= c && partner < c + kLanes<A>) values[partner - c] = otherwise;
    return values;
  }
};

template <typename A, bool kColumns>
void fixed_shift_sums(const ContrastiveTileSums& p, std::int64_t slice) {
  const ContrastiveTile& tile = p.tile;
  const Exponential<A> exponential(tile.temperature);
  const std::int64_t end = std::min((slice + 1) * kTileSlice, tile.rows);
  A* column_sum = nullptr;
  if constexpr (kColumns) {
    column_sum = static_cast<A*>(p.slice_sum) + slice * tile.columns;
    std::fill(column_sum, column_sum + tile.columns, A{0});
  }
  for (std::int64_t r = slice * kTileSlice; r < end; ++r) {
    const TileRow<A> row(tile, r);
    vec<A> sum{};
    each_vector<A>(tile.columns, [&]<int N>(std::int64_t c, std::int64_t left) {
      vec<A> e[N];
      row.exponentials(exponential, c, left, e);
      if (tile.keeps_exponentials) row.keep(c, left, e);
      row.leave_out(c, left, e);
      for (int i = 0; i < N; ++i) {
        sum += e[i];
        if constexpr (kColumns) {
          A* to = column_sum + c + i * kLanes<A>;
          store_some(to, load_some(to, left) + e[i], left);
        }
      }
    });
    static_cast<A*>(p.row_sum)[r] += sum_lanes<A>(sum);
  }
}

template <typename A, bool kColumns>
void running_max_sums(const ContrastiveTileSums& p, std::int64_t slice) {
  const ContrastiveTile& tile = p.tile;
  const std::int64_t begin = slice * kTileSlice, end = std::min(begin + kTileSlice, tile.rows);
  A *column_sum = nullptr, *column_max = nullptr;
  if constexpr (kColumns) {
    column_sum = static_cast<A*>(p.slice_sum) + slice * tile.columns;
    column_max = static_cast<A*>(p.slice_max) + slice * tile.columns;
    std::fill(column_sum, column_sum + tile.columns, A{0});
    std::fill(column_max, column_max + tile.columns, kLowest<A>);
    for (std::int64_t r = begin; r < end; ++r) {
      const TileRow<A> row(tile, r);
      for (std::int64_t c = 0; c < tile.columns; c += kLanes<A>) {
        const vec<A> s = row.kept(row.similarity(c), c, kLowest<A>);
        store_some(column_max + c, larger(s, load_some(column_max + c, row.left(c))), row.left(c));
      }
    }
  }
  for (std::int64_t r = begin; r < end; ++r) {
    const TileRow<A> row(tile, r);
    vec<A> maxima = broadcast(kLowest<A>);
    for (std::int64_t c = 0; c < tile.columns; c += kLanes<A>) {
      maxima = larger(row.kept(row.similarity(c), c, kLowest<A>), maxima);
    }
    A& row_max = static_cast<A*>(p.row_max)[r];
    const A max = std::max(row_max, largest_lane<A>(maxima)), shift = shift_of(max);
    vec<A> sum{};
    for (std::int64_t c = 0; c < tile.columns; c += kLanes<A>) {
      const vec<A> s = row.similarity(c);
      sum += row.kept(exp(s - shift), c, A{0});
      if constexpr (kColumns) {
        const vec<A> column_shift = shift_of_lanes<A>(load_some(column_max + c, row.left(c)));
        const vec<A> e = row.kept(exp(s - column_shift), c, A{0});
        store_some(column_sum + c, load_some(column_sum + c, row.left(c)) + e, row.left(c));
      }
    }
    A& row_sum = static_cast<A*>(p.row_sum)[r];
    row_sum = row_sum * std::exp(row_max - shift) + sum_lanes<A>(sum);
    row_max = max;
  }
}

template <typename A>
void positives(const ContrastiveTileSums& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t last = std::min(end * kTileSlice, p.tile.rows);
  for (std::int64_t r = begin * kTileSlice; r < last; ++r) {
    const TileRow<A> row(p.tile, r);
    if (row.partner < 0) continue;
    const A similarity = row.partner_similarity();
    static_cast<A*>(p.positive)[r] = similarity;
    if (p.column_positive != nullptr) {
      static_cast<A*>(p.column_positive)[row.partner] = similarity;
    }
  }
}

template <typename A>
A positive_grad(const ContrastiveAnchor& anchor, std::int64_t at) {
  return anchor.grad_positive == nullptr ? A{0} : elements<A>(anchor.grad_positive)[at];
}

template <typename A, bool kFixedShift, bool kRow, bool kColumn>
void weights(const ContrastiveTileWeights& p, std::int64_t begin, std::int64_t end) {
  const ContrastiveTile& tile = p.tile;
  const A shift = static_cast<A>(1 / tile.temperature);
  const Exponential<A> exponential(tile.temperature);
  A* column_factor = scratch<A, struct ColumnFactors>(kColumn ? tile.columns : 0);
  if constexpr (kColumn && kFixedShift) {
    for (std::int64_t c = 0; c < tile.columns; c += kLanes<A>) {
      const std::int64_t left = tile.columns - c;
      store_some(column_factor + c,
                 exp(shift - load_some(elements<A>(p.column.lse) + c, left)) *
                     load_some(elements<A>(p.column.grad_lse) + c, left),
                 left);
    }
  }
  for (std::int64_t r = begin; r < end; ++r) {
    const TileRow<A> row(tile, r);
    const A positive =
        row.partner < 0 ? A{0}
                        : (positive_grad<A>(p.row, r) + positive_grad<A>(p.column, row.partner)) *
                              row.scale * row.column_scale[row.partner];
    A row_factor{}, row_lse{}, row_grad{};
    if constexpr (kRow) {
      row_lse = elements<A>(p.row.lse)[r];
      row_grad = elements<A>(p.row.grad_lse)[r];
      // exp(s - row_lse) row_grad = exp(s - shift) row_factor
      row_factor = std::exp(shift - row_lse) * row_grad;
    }
    A* weights = static_cast<A*>(p.weights) + r * p.stride;
    if constexpr (kFixedShift) {
      each_vector<A>(tile.columns, [&]<int N>(std::int64_t c, std::int64_t left) {
        vec<A> w[N];
        tile.keeps_exponentials ? row.kept_exponentials(c, left, w)
                                : row.exponentials(exponential, c, left, w);
        for (int i = 0; i < N; ++i) {
          const std::int64_t at = c + i * kLanes<A>;
          vec<A> factor = broadcast(row_factor);
          if constexpr (kColumn) factor += load_some(column_factor + at, left);
          w[i] *= factor * (row.scale * load_some(row.column_scale + at, left));
        }
        row.leave_out(c, left, w);  // after the factor, which is NaN of an empty sum
        for (int i = 0; i < N; ++i) store_some(weights + c + i * kLanes<A>, w[i], left);
      });
    } else {
      for (std::int64_t c = 0; c < tile.columns; c += kLanes<A>) {
        const std::int64_t left = row.left(c);
        const vec<A> s = row.similarity(c);
        vec<A> w{};
        if constexpr (kRow) w += exp(s - row_lse) * row_grad;
        if constexpr (kColumn) {
          w += exp(s - load_some(elements<A>(p.column.lse) + c, left)) *
               load_some(elements<A>(p.column.grad_lse) + c, left);
        }
        w = row.kept(w * row.scale * row.column_scales(c), c, A{0});
        store_some(weights + c, w, left);
      }
    }
    if (row.partner >= 0) weights[row.partner] += positive;
  }
}

// body(first, second), with the two flags as compile-time constants.
template <typename Body>
void visit_flags(bool first, bool second, Body&& body) {
  const auto inner = [&](auto one) {
    second ? body(one, std::true_type{}) : body(one, std::false_type{});
  };
  first ? inner(std::true_type{}) : inner(std::false_type{});
}

template <typename T, typename G>
void rows_of_slice(const ContrastiveRows& p, std::int64_t slice) {
  using A = accum_t<T>;
  const std::int64_t dim = p.z.dim;
  const A* mask = elements<A>(p.mask);
  A* weight = scratch<A, struct Weights>(dim);
  for (std::int64_t d = 0; d < dim; ++d) {
    weight[d] = mask == nullptr ? A{1} : mask[d] * mask[d];
  }
  A* grad_mask = p.grad_mask == nullptr ? nullptr : static_cast<A*>(p.grad_mask) + slice * dim;
  A dots{0};
  for (std::int64_t i = slice * p.count / p.slices; i < (slice + 1) * p.count / p.slices; ++i) {
    const std::int64_t at = p.first + i, v = at / p.z.rows, n = at % p.z.rows;
    const T* z = elements<T>(p.z.data) + v * p.z.view_stride + n * p.z.row_stride;
    const A* products = elements<A>(p.products) + i * dim;
    vec<A> sum{};
    for (std::int64_t d = 0; d < dim; d += kLanes<A>) {
      const std::int64_t left = dim - d;
      sum += load_some(z + d, left) * load_some(weight + d, left) * load_some(products + d, left);
    }
    const A dot = sum_lanes<A>(sum), inv_norm = elements<A>(p.inv_norm)[at];
    const A projection =  // h
        inv_norm >= static_cast<A>(1 / kSmallestNorm) ? A{0} : inv_norm * inv_norm * dot;
    dots += dot;
    G* grad = p.grad == nullptr ? nullptr : static_cast<G*>(p.grad) + at * dim;
    for (std::int64_t d = 0; d < dim; d += kLanes<A>) {
      const std::int64_t left = dim - d;
      const vec<A> x = load_some(z + d, left),
                   product_grad = load_some(products + d, left) - x * projection;
      if (grad_mask != nullptr) {
        const vec<A> grad_m = load_some(mask + d, left) * x * product_grad;
        store_some(grad_mask + d, load_some(grad_mask + d, left) + grad_m, left);
      }
      if (grad == nullptr) continue;
      vec<A> value = product_grad * load_some(weight + d, left);
      if (p.add) value += load_some(grad + d, left);
      store_some(grad + d, value, left);
    }
  }
  static_cast<A*>(p.dots)[slice] += dots;
}

}  // namespace

void inverse_norms_cpu(const InverseNorms& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.z.dtype, [&]<typename T>() {
    using A = accum_t<T>;
    const std::int64_t dim = p.z.dim;
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t v = at / p.z.rows, n = at % p.z.rows;
      const T* z = elements<T>(p.z.data) + v * p.z.view_stride + n * p.z.row_stride;
      for (std::int64_t k = 0; k < p.subspaces; ++k) {
        const A* mask = p.masks == nullptr ? nullptr : elements<A>(p.masks) + k * dim;
        vec<A> sum{};
        for (std::int64_t d = 0; d < dim; d += kLanes<A>) {
          vec<A> x = load_some(z + d, dim - d);
          if (mask != nullptr) x *= load_some(mask + d, dim - d);
          sum += x * x;
        }
        const A norm = std::sqrt(sum_lanes<A>(sum)), least = static_cast<A>(kSmallestNorm);
        static_cast<A*>(p.inv_norm)[k * p.z.views * p.z.rows + at] =
            norm < least ? static_cast<A>(1 / kSmallestNorm) : 1 / norm;
      }
    }
  });
}

void contrastive_rows_cpu(const ContrastiveRows& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.z.dtype, [&]<typename T>() {
    for (std::int64_t slice = begin; slice < end; ++slice) {
      p.grad_dtype == p.z.dtype ? rows_of_slice<T, T>(p, slice)
                                : rows_of_slice<T, accum_t<T>>(p, slice);
    }
  });
}

void contrastive_tile_sums_cpu(const ContrastiveTileSums& p, std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_accumulation(p.tile.dtype, [&]<typename A>() {
    if (p.positive != nullptr) positives<A>(p, begin, end);  // of products that the sums replace
    visit_flags(p.tile.fixed_shift, p.column_sum != nullptr, [&](auto fixed, auto columns) {
      for (std::int64_t slice = begin; slice < end; ++slice) {
        fixed ? fixed_shift_sums<A, columns>(p, slice) : running_max_sums<A, columns>(p, slice);
      }
    });
  });
}

void contrastive_tile_columns_cpu(const ContrastiveTileSums& p, std::int64_t begin,
                                  std::int64_t end) {
  visit_accumulation(p.tile.dtype, [&]<typename A>() {
    const std::int64_t columns = p.tile.columns;
    const std::int64_t slices = (p.tile.rows + kTileSlice - 1) / kTileSlice;
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      const A* sums = elements<A>(p.slice_sum) + slice * columns;
      for (std::int64_t c = begin; c < end; ++c) {
        A& sum = static_cast<A*>(p.column_sum)[c];
        if (p.tile.fixed_shift) {
          sum += sums[c];
          continue;
        }
        A& running = static_cast<A*>(p.column_max)[c];
        const A found = elements<A>(p.slice_max)[slice * columns + c];
        const A max = std::max(running, found), shift = shift_of(max);
        sum = sum * std::exp(running - shift) + sums[c] * std::exp(shift_of(found) - shift);
        running = max;
      }
    }
  });
}

void contrastive_tile_weights_cpu(const ContrastiveTileWeights& p, std::int64_t begin,
                                  std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_accumulation(p.tile.dtype, [&]<typename A>() {
    const std::int64_t first = begin * kTileSlice, last = std::min(end * kTileSlice, p.tile.rows);
    visit_flags(p.row.grad_lse != nullptr, p.column.grad_lse != nullptr,
                [&](auto row, auto column) {
                  p.tile.fixed_shift ? weights<A, true, row, column>(p, first, last)
                                     : weights<A, false, row, column>(p, first, last);
                });
  });
}

}  // namespace MAST_EXT_ISA

#define MAST_EXT_RANGE(Params) (const Params& p, std::int64_t begin, std::int64_t end)
MAST_EXT_CPU_ENTRY(inverse_norms_cpu, MAST_EXT_RANGE(InverseNorms), (p, begin, end))
MAST_EXT_CPU_ENTRY(contrastive_rows_cpu, MAST_EXT_RANGE(ContrastiveRows), (p, begin, end))
MAST_EXT_CPU_ENTRY(contrastive_tile_sums_cpu, MAST_EXT_RANGE(ContrastiveTileSums), (p, begin, end))
MAST_EXT_CPU_ENTRY(contrastive_tile_columns_cpu, MAST_EXT_RANGE(ContrastiveTileSums),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(contrastive_tile_weights_cpu, MAST_EXT_RANGE(ContrastiveTileWeights),
                   (p, begin, end))
#undef MAST_EXT_RANGE

}  // namespace mast_ext::kernels
