// Rows that are normalized are read once from memory: their probabilities, one exponential each,
// are added to the columns while a row is in the cache. If a column's sum is so small that terms
// may have underflowed, its chunk of columns is computed again, by an online log-sum-exp.
#include "kernels/prototype_column_logsumexp/prototype_column_logsumexp.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/common/exponential_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

constexpr double kLeastSum = 1e-30;  // 2^26 terms that underflow do not change a sum this large

template <typename T>
struct Row {
  using A = accum_t<T>;

  const PrototypeColumns& p;
  const T* x;
  A scale;        // 1 / temperature
  A shift = 0;    // row_max, if rows are normalized
  A log_sum = 0;  // row_sum, if rows are normalized

  Row(const PrototypeColumns& p, std::int64_t n)
      : p(p),
        x(static_cast<const T*>(p.logits) + n * p.row_stride),
        scale(static_cast<A>(1 / p.temperature)) {}

  // x - center of the `left` prototypes from c on, at most a whole vector; -inf in other lanes.
  vec<A> centered(std::int64_t c, std::int64_t left) const {
    vec<A> value = load_some(x + c, left);
    if (p.center != nullptr) value -= load_some(static_cast<const A*>(p.center) + c, left);
    for (std::int64_t i = left; i < kLanes<A>; ++i) value[i] = kLowest<A>;
    return value;
  }

  // The maximum is subtracted first: near it, where the probability is, the difference is exact.
  vec<A> z(std::int64_t c) const {
    return (centered(c, p.prototypes - c) - shift) * scale - log_sum;
  }
};

// Adds the softmax of row n to `sum`.
template <typename T>
void add_probabilities(const PrototypeColumns& p, std::int64_t n, accum_t<T>* exponentials,
                       accum_t<T>* sum) {
  using A = accum_t<T>;
  const Row<T> row(p, n);
  const Exponential<A> exp(p.temperature);
  vec<A> maxima = broadcast(kLowest<A>);
  each_vector<A>(p.prototypes, [&]<int N>(std::int64_t c, std::int64_t left) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) maxima = larger(row.centered(c + i * kLanes<A>, left), maxima);
  });
  A lanes[kLanes<A>];
  store(lanes, maxima);
  const A max = *std::max_element(lanes, lanes + kLanes<A>);
  vec<A> totals{};
  each_vector<A>(p.prototypes, [&]<int N>(std::int64_t c, std::int64_t left) {
    vec<A> e[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) e[i] = row.centered(c + i * kLanes<A>, left) - max;
    exp(e);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      store(exponentials + c + i * kLanes<A>, e[i]);
      totals += e[i];
    }
  });
  const A total = sum_lanes<A>(totals), inverse = 1 / total;
  each_vector<A>(p.prototypes, [&]<int N>(std::int64_t c, std::int64_t left) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i, c += kLanes<A>) {
      store_some(sum + c, load_some(sum + c, left) + load(exponentials + c) * inverse, left);
    }
  });
  static_cast<A*>(p.row_max)[n] = max;
  static_cast<A*>(p.row_sum)[n] = std::log(total);
}

// Online log-sum-exp of a chunk of columns: running maxima, and sums of exp(z - max).
template <typename A>
struct alignas(64) LogSums {
  A max[kPrototypeChunk], sum[kPrototypeChunk];
};

// Adds row n + R, for every R, to the `count` columns from `first` on.
template <typename T, std::size_t... R>
void add_rows(const PrototypeColumns& p, std::int64_t n, std::int64_t first, std::int64_t count,
              LogSums<accum_t<T>>& to, std::index_sequence<R...>) {
  using A = accum_t<T>;
  const Exponential<A> exp(1.0);
  Row<T> rows[] = {Row<T>(p, n + static_cast<std::int64_t>(R))...};
  if (p.normalize_rows) {
    ((rows[R].shift = static_cast<const A*>(p.row_max)[n + static_cast<std::int64_t>(R)]), ...);
    ((rows[R].log_sum = static_cast<const A*>(p.row_sum)[n + static_cast<std::int64_t>(R)]), ...);
  }
  for (std::int64_t c = 0; c < count; c += kLanes<A>) {
    const vec<A> z[] = {rows[R].z(first + c)...}, before = load(to.max + c);
    vec<A> largest = before;
    ((largest = larger(z[R], largest)), ...);
    const vec<A> shift = shift_of_lanes<A>(largest);
    vec<A> e[] = {before - shift, (z[R] - shift)...};
    exp(e);
    vec<A> sum = load(to.sum + c) * e[0];
    ((sum += e[R + 1]), ...);
    store(to.sum + c, sum);
    store(to.max + c, largest);
  }
}

constexpr std::int64_t kRows = 4;  // added at a time by log_columns()

// Computes a chunk of columns by online log-sum-exp.
template <typename T>
void log_columns(const PrototypeColumns& p, std::int64_t first, std::int64_t count) {
  using A = accum_t<T>;
  LogSums<A> sums;
  std::fill_n(sums.max, kPrototypeChunk, kLowest<A>);
  std::fill_n(sums.sum, kPrototypeChunk, A{0});
  std::int64_t n = 0;
  for (; n + kRows <= p.rows; n += kRows) {
    add_rows<T>(p, n, first, count, sums, std::make_index_sequence<kRows>());
  }
  for (; n < p.rows; ++n) add_rows<T>(p, n, first, count, sums, std::make_index_sequence<1>());
  A* column = static_cast<A*>(p.column) + first;
  for (std::int64_t c = 0; c < count; c += kLanes<A>) {
    store_some(column + c, shift_of_lanes<A>(load(sums.max + c)) + log(load(sums.sum + c)),
               count - c);
  }
}

// Computes a chunk of columns from the slices' sums. Returns false if one of them is too small.
template <typename A>
bool merge_slices(const PrototypeColumns& p, std::int64_t first, std::int64_t count) {
  alignas(64) A total[kPrototypeChunk] = {};
  for (std::int64_t at = 0; at < p.slices; ++at) {
    const A* sum = static_cast<const A*>(p.partial_sum) + at * p.prototypes + first;
    for (std::int64_t c = 0; c < count; ++c) total[c] += sum[c];
  }
  const auto enough = [](A sum) { return sum >= static_cast<A>(kLeastSum); };
  if (!std::all_of(total, total + count, enough)) return false;
  A* column = static_cast<A*>(p.column) + first;
  for (std::int64_t c = 0; c < count; c += kLanes<A>) {
    store_some(column + c, log(load(total + c)), count - c);
  }
  return true;
}

}  // namespace

void prototype_column_slices_cpu(const PrototypeColumns& p, std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.dtype, [&]<typename T>() {
    using A = accum_t<T>;
    A* exponentials = scratch<A, struct Exponentials>(padded(p.prototypes));
    for (std::int64_t at = begin; at < end; ++at) {
      A* sum = static_cast<A*>(p.partial_sum) + at * p.prototypes;
      std::fill(sum, sum + p.prototypes, A{0});
      for (std::int64_t n = at * p.rows / p.slices; n < (at + 1) * p.rows / p.slices; ++n) {
        add_probabilities<T>(p, n, exponentials, sum);
      }
    }
  });
}

void prototype_column_chunks_cpu(const PrototypeColumns& p, std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = i * kPrototypeChunk;
      const std::int64_t count = std::min(kPrototypeChunk, p.prototypes - first);
      if (p.normalize_rows && merge_slices<accum_t<T>>(p, first, count)) continue;
      log_columns<T>(p, first, count);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(prototype_column_slices_cpu,
                   (const PrototypeColumns& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(prototype_column_chunks_cpu,
                   (const PrototypeColumns& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
