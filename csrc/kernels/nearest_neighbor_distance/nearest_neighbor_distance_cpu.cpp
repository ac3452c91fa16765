// A row of a tile is searched a vector of its elements at a time, and lanes are compared with each
// other only at its end. Columns are searched a vector of columns at a time, one per lane.
#include "kernels/nearest_neighbor_distance/nearest_neighbor_distance.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/hard_pairs/hardest_pair.h"
#include "kernels/hard_pairs/hardest_pair_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename A>
const A* elements(const void* data) {
  return static_cast<const A*>(data);
}

// `values`, with `otherwise` in the lanes from `count` on.
template <typename A>
vec<A> first_lanes(vec<A> values, std::int64_t count, A otherwise) {
  for (std::int64_t i = std::max<std::int64_t>(count, 0); i < kLanes<A>; ++i) values[i] = otherwise;
  return values;
}

template <typename A>
void tile_row(const NearestTile& p, std::int64_t r) {
  using Number = lane_number<A>;
  constexpr std::int64_t kLane = kLanes<A>;
  constexpr A kNan = static_cast<A>(NAN);
  const A* products = elements<A>(p.products) + r * p.stride;
  const std::int64_t row = p.first_row + r, own = row - p.first_column;
  HardestLanes<A> nearest;
  for (std::int64_t c = 0; c < p.columns; c += kLane) {
    vec<A> cosine = first_lanes(load_some(products + c, p.columns - c), p.columns - c, kNan);
    if (own >= c && own < c + kLane) cosine[own - c] = kNan;
    nearest.offer(static_cast<Number>(c), cosine);
  }
  A best = kNan;
  std::int64_t column = 0;
  for (std::int64_t lane = 0; lane < kLane; ++lane) {
    const std::int64_t offered = nearest.number[lane] + lane;
    const bool first_of_equals = nearest.score[lane] == best && offered < column;
    if (!is_harder<A>(nearest.score[lane], best) && !first_of_equals) continue;
    best = nearest.score[lane];
    column = offered;
  }
  A& known = static_cast<A*>(p.cosine)[row];
  if (!is_harder<A>(best, known)) return;
  known = best;
  p.index[row] = p.first_column + column;
}

template <typename A>
void tile_columns(const NearestTile& p, std::int64_t begin, std::int64_t end) {
  using Number = lane_number<A>;
  constexpr std::int64_t kLane = kLanes<A>;
  for (std::int64_t c = begin; c < end; c += kLane) {
    const std::int64_t count = std::min(kLane, end - c);
    HardestLanes<A> nearest;
    for (std::int64_t r = 0; r < p.rows; ++r) {
      nearest.offer(static_cast<Number>(r),
                    load_some(elements<A>(p.products) + r * p.stride + c, count));
    }
    for (std::int64_t lane = 0; lane < count; ++lane) {
      A& known = static_cast<A*>(p.cosine)[p.first_column + c + lane];
      if (!is_harder<A>(nearest.score[lane], known)) continue;
      known = nearest.score[lane];
      p.index[p.first_column + c + lane] = p.first_row + nearest.number[lane];
    }
  }
}

// G += weight * v_i
template <typename A>
void add_difference(const NearestNeighborDistanceBackward& p, std::int64_t i, A weight, A* sum) {
  const A* x = elements<A>(p.unit) + i * p.dim;
  const A* y = elements<A>(p.unit) + p.neighbor(i) * p.dim;
  const A eps = static_cast<A>(p.eps);
  for (std::int64_t d = 0; d < p.dim; d += kLanes<A>) {
    const std::int64_t left = p.dim - d;
    const vec<A> v = load_some(x + d, left) - load_some(y + d, left) + eps;
    store_some(sum + d, load_some(sum + d, left) + weight * v, left);
  }
}

template <typename T>
void backward_row(const NearestNeighborDistanceBackward& p, std::int64_t i) {
  using A = accum_t<T>;
  A* grad_unit = scratch<A, struct GradUnit>(p.dim);
  std::fill(grad_unit, grad_unit + p.dim, A{0});
  add_difference<A>(p, i, p.coefficient<A>(i), grad_unit);
  for (std::int64_t k = p.first_follower(i); k < p.rows && p.sorted_index[k] == i; ++k) {
    add_difference<A>(p, p.order[k], -p.coefficient<A>(p.order[k]), grad_unit);
  }
  const A* unit = elements<A>(p.unit) + i * p.dim;
  const A scale = elements<A>(p.inv_norm)[i];
  const bool clamped = scale >= static_cast<A>(1 / p.eps);
  const A projection = clamped ? A{0} : dot(unit, grad_unit, p.dim);
  T* grad = static_cast<T*>(p.grad_x) + i * p.dim;
  for (std::int64_t d = 0; d < p.dim; d += kLanes<A>) {
    const std::int64_t left = p.dim - d;
    const vec<A> along = load_some(unit + d, left) * projection;
    store_some(grad + d, (load_some(grad_unit + d, left) - along) * scale, left);
  }
}

}  // namespace

void unit_rows_cpu(const UnitRows& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.dtype, [&]<typename T>() {
    using A = accum_t<T>;
    for (std::int64_t i = begin; i < end; ++i) {
      const T* x = elements<T>(p.x) + i * p.row_stride;
      vec<A> squares{};
      for (std::int64_t d = 0; d < p.dim; d += kLanes<A>) {
        const vec<A> value = load_some(x + d, p.dim - d);
        squares += value * value;
      }
      const A norm = std::sqrt(sum_lanes<A>(squares)), least = static_cast<A>(p.eps);
      const A scale = norm < least ? static_cast<A>(1 / p.eps) : 1 / norm;
      static_cast<A*>(p.inv_norm)[i] = scale;
      A* unit = static_cast<A*>(p.unit) + i * p.dim;
      for (std::int64_t d = 0; d < p.dim; d += kLanes<A>) {
        store_some(unit + d, load_some(x + d, p.dim - d) * scale, p.dim - d);
      }
    }
  });
}

void nearest_tile_rows_cpu(const NearestTile& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t r = begin; r < end; ++r) tile_row<A>(p, r);
  });
}

void nearest_tile_columns_cpu(const NearestTile& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() { tile_columns<A>(p, begin, end); });
}

void neighbor_distances_cpu(const NeighborDistances& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    const A eps = static_cast<A>(p.eps);
    for (std::int64_t i = begin; i < end; ++i) {
      const A cosine = elements<A>(p.cosine)[i];
      if (cosine != cosine) p.index[i] = i == 0;
      const A *x = elements<A>(p.unit) + i * p.dim, *y = elements<A>(p.unit) + p.index[i] * p.dim;
      vec<A> squares{};
      for (std::int64_t d = 0; d < p.dim; d += kLanes<A>) {
        const std::int64_t left = p.dim - d;
        const vec<A> v =
            first_lanes(load_some(x + d, left) - load_some(y + d, left) + eps, left, A{0});
        squares += v * v;
      }
      static_cast<A*>(p.distance)[i] = std::sqrt(sum_lanes<A>(squares));
    }
  });
}

void nearest_neighbor_distance_backward_cpu(const NearestNeighborDistanceBackward& p,
                                            std::int64_t begin, std::int64_t end) {
  visit_dtype(p.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) backward_row<T>(p, i);
  });
}

}  // namespace MAST_EXT_ISA

#define MAST_EXT_RANGE(Params) (const Params& p, std::int64_t begin, std::int64_t end)
MAST_EXT_CPU_ENTRY(unit_rows_cpu, MAST_EXT_RANGE(UnitRows), (p, begin, end))
MAST_EXT_CPU_ENTRY(nearest_tile_rows_cpu, MAST_EXT_RANGE(NearestTile), (p, begin, end))
MAST_EXT_CPU_ENTRY(nearest_tile_columns_cpu, MAST_EXT_RANGE(NearestTile), (p, begin, end))
MAST_EXT_CPU_ENTRY(neighbor_distances_cpu, MAST_EXT_RANGE(NeighborDistances), (p, begin, end))
MAST_EXT_CPU_ENTRY(nearest_neighbor_distance_backward_cpu,
                   MAST_EXT_RANGE(NearestNeighborDistanceBackward), (p, begin, end))
#undef MAST_EXT_RANGE

}  // namespace mast_ext::kernels
