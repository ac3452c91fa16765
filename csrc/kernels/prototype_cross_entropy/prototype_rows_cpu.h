// The steps of the CPU kernels on a chunk of a row of logits: maxima, exponentials, dots, partials
// and their merge, column sums, and the gradient. Functions that loop over elements are marked
// [[gnu::flatten]], because the compiler would not inline all calls in them otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/exponential_cpu.h"
#include "kernels/common/half_cpu.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy.h"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy_math.h"

namespace mast_ext::kernels::MAST_EXT_ISA::prototype_cpu {

namespace math = prototype_math;

inline constexpr std::int64_t kChunk = kPrototypeChunkCpu;
template <typename A>  // teachers whose dots one pass over a student's row computes
inline constexpr int kTeachers = kSpecializes<A> ? 4 : 1;
// Images whose column sums are added up separately before they are added to the total, so that sums
// over many images stay precise.
inline constexpr std::int64_t kSumImages = 32;

template <typename A>
A max_lanes(const vec<A> (&vectors)[kAccumulators]) {
  const vec<A> v = larger(larger(vectors[0], vectors[1]), larger(vectors[2], vectors[3]));
  A most = v[0];
  for (int i = 1; i < kLanes<A>; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Loads the first `left` elements, at most a whole vector; the remaining lanes are `fill`.
template <typename T>
inline vec<accum_t<T>> load_or(const T* p, std::int64_t left, accum_t<T> fill) {
  if (left >= kLanes<accum_t<T>>) return load_whole(p);
  vec<accum_t<T>> v = load_some(p, left);
  for (std::int64_t i = left; i < kLanes<accum_t<T>>; ++i) v[i] = fill;
  return v;
}

// The largest logit and the sum of exponentials of a row, over one chunk or all.
template <typename A>
struct RowStats {
  A max, sum;
};

// Consecutive rows of a chunk lie in different pages, and the processor's own prefetching stops at
// the end of a page.
template <typename T>
void prefetch(const T* p) {
  __builtin_prefetch(p);
}

// Writes e[c] = exp((row[c] - center[c] - max) / u), and 0 behind `count`. Adds the row to
// column_sums, if not null, or writes it there if `overwrite`. Prefetches `next`, the row that is
// read after this one.
template <typename T, typename A>
[[gnu::flatten]] RowStats<A> teacher_row(const T* row, const T* next, const A* center,
                                         std::int64_t count, Exponential<A> exp, A* e,
                                         A* column_sums, bool overwrite) {
  vec<A> max[kAccumulators];
  for (vec<A>& lane : max) lane = broadcast(kLowest<A>);
  each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t left) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i, c += kLanes<A>) {
      vec<A> y = load_or(row + c, left, kLowest<A>);
      if (column_sums != nullptr) {
        store(column_sums + c, overwrite ? y : load(column_sums + c) + y);
      }
      if (center != nullptr) y -= load_or(center + c, left, A{0});
      store(e + c, y);
      max[i] = larger(y, max[i]);
    }
  });
  const A most = max_lanes<A>(max), shift = math::shift_of(most);
  vec<A> sum{};
  each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t) {
    vec<A> x[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      prefetch(next + c + i * kLanes<A>);
      x[i] = load(e + c + i * kLanes<A>) - shift;
    }
    exp(x);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      store(e + c + i * kLanes<A>, x[i]);
      sum += x[i];
    }
  });
  return {most, sum_lanes<A>(sum)};
}

template <typename T, typename A = accum_t<T>>
[[gnu::flatten]] A student_max(const T* row, std::int64_t count) {
  vec<A> max[kAccumulators];
  for (vec<A>& lane : max) lane = broadcast(kLowest<A>);
  each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t left) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      max[i] = larger(load_or(row + c + i * kLanes<A>, left, kLowest<A>), max[i]);
    }
  });
  return max_lanes<A>(max);
}

// Writes dots[t] = sum_c e_tc (x_c - shift) of kCount teachers. If kSum, returns
// sum_c exp((x_c - shift) / r) and writes the summands to `kept`, if not null.
template <int kCount, bool kSum, typename T, typename A>
[[gnu::flatten]] A student_dots(const T* row, const T* next, std::int64_t count, A shift,
                                Exponential<A> exp, const A* e, A* dots, A* kept) {
  constexpr A kFarOff = -1e30;  // its exponential is 0; finite, so that its product with e = 0 is 0
  vec<A> sum{}, dot[kCount] = {};
  each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t left) {
    vec<A> difference[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      prefetch(next + c + i * kLanes<A>);
      difference[i] = load_or(row + c + i * kLanes<A>, left, shift) - shift;
    }
    for (std::int64_t i = left; i < kLanes<A>; ++i) difference[0][i] = kFarOff;
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        dot[t] += load(e + t * kChunk + c + i * kLanes<A>) * difference[i];
      }
    }
    if constexpr (kSum) {
      exp(difference);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        if (kept != nullptr) store(kept + c + i * kLanes<A>, difference[i]);
        sum += difference[i];
      }
    }
  });
  for (int t = 0; t < kCount; ++t) dots[t] = sum_lanes<A>(dot[t]);
  return sum_lanes<A>(sum);
}

// student_dots() with the number of teachers, 1 to kTeachers, and kSum as arguments.
template <typename T, typename A>
A student_block(std::int64_t teachers, bool with_sum, const T* row, const T* next,
                std::int64_t count, A shift, Exponential<A> exp, const A* e, A* dots, A* kept) {
  const auto run = [&]<int N>() {
    return with_sum ? student_dots<N, true>(row, next, count, shift, exp, e, dots, kept)
                    : student_dots<N, false>(row, next, count, shift, exp, e, dots, kept);
  };
  if constexpr (kTeachers<A> == 1) {
    return run.template operator()<1>();
  } else {
    switch (teachers) {
      case 1:
        return run.template operator()<1>();
      case 2:
        return run.template operator()<2>();
      case 3:
        return run.template operator()<3>();
      default:
        return run.template operator()<4>();
    }
  }
}

// The partials of image b of all chunks: an array [chunks] of every value in PartialLayout.
template <typename A>
class Partials {
 public:
  Partials(const PrototypeCrossEntropy& p, std::int64_t b)
      : layout_{p.logits.students, p.logits.teachers},
        chunks_(p.shares.chunks),
        data_(static_cast<A*>(p.partials) + b * layout_.size() * chunks_) {}

  A* student_max(std::int64_t s) const { return at(layout_.student_max(s)); }
  A* student_sum(std::int64_t s) const { return at(layout_.student_sum(s)); }
  A* teacher_max(std::int64_t t) const { return at(layout_.teacher_max(t)); }
  A* teacher_sum(std::int64_t t) const { return at(layout_.teacher_sum(t)); }
  A* dot(std::int64_t t, std::int64_t s) const { return at(layout_.dot(t, s)); }

 private:
  A* at(std::int64_t index) const { return data_ + index * chunks_; }

  math::PartialLayout layout_;
  std::int64_t chunks_;
  A* data_;
};

inline std::int64_t chunk_count(const PrototypeLogits& in, std::int64_t chunk) {
  return std::min(kChunk, in.prototypes - chunk * kChunk);
}

// Writes the partial of teacher t of image b. `next`, `e`, `sums` and `overwrite` are those of
// teacher_row().
template <typename T, typename A = accum_t<T>>
void teacher_chunk(const PrototypeCrossEntropy& p, std::int64_t b, std::int64_t t,
                   std::int64_t chunk, const T* next, A* e, A* sums, bool overwrite) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t first = chunk * kChunk;
  const A* center = in.center == nullptr ? nullptr : static_cast<const A*>(in.center) + first;
  const Partials<A> to(p, b);
  const RowStats<A> row =
      teacher_row(row_of<T>(in.teacher, t, b) + first, next, center, chunk_count(in, chunk),
                  Exponential<A>(in.teacher_temperature), e, sums, overwrite);
  to.teacher_max(t)[chunk] = row.max;
  to.teacher_sum(t)[chunk] = row.sum;
}

// Writes the partial of student s of image b, computed with the teachers' exponentials e [T,
// kChunk]. Writes the student's exponentials to `kept`, if not null.
template <typename T, typename A = accum_t<T>>
void student_chunk(const PrototypeCrossEntropy& p, std::int64_t b, std::int64_t s,
                   std::int64_t chunk, const T* next, const A* e, A* kept) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t count = chunk_count(in, chunk);
  const Exponential<A> exp(in.student_temperature);
  const T* row = row_of<T>(in.student, s, b) + chunk * kChunk;
  const Partials<A> to(p, b);
  const A max = student_max(row, count), shift = math::shift_of(max);
  to.student_max(s)[chunk] = max;
  for (std::int64_t t = 0; t < in.teachers; t += kTeachers<A>) {
    A dots[kTeachers<A>];
    const std::int64_t block = std::min<std::int64_t>(in.teachers - t, kTeachers<A>);
    const A sum =
        student_block(block, t == 0, row, next, count, shift, exp, e + t * kChunk, dots, kept);
    if (t == 0) to.student_sum(s)[chunk] = sum;
    for (std::int64_t i = 0; i < block; ++i) to.dot(t + i, s)[chunk] = dots[i];
  }
}

// Merges the stats of a row's chunks.
template <typename A>
RowStats<A> merge_row(const A* max, const A* sum, std::int64_t chunks, A inverse_temperature) {
  const A all = *std::max_element(max, max + chunks);
  A total = 0;
  for (std::int64_t i = 0; i < chunks; ++i) {
    total += sum[i] * math::chunk_weight(max[i], all, inverse_temperature);
  }
  return {all, total};
}

// Writes the stats of image b's teachers, and the weights [T, chunks] of the chunks in their rows.
template <typename A>
void merge_teachers(const PrototypeCrossEntropy& p, std::int64_t b, A* weights) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t chunks = p.shares.chunks;
  const A inverse = static_cast<A>(1 / in.teacher_temperature);
  const Partials<A> partials(p, b);
  A* stats = static_cast<A*>(p.teacher_stats) + b;
  for (std::int64_t t = 0; t < in.teachers; ++t, weights += chunks) {
    const A* max = partials.teacher_max(t);
    const RowStats<A> row = merge_row(max, partials.teacher_sum(t), chunks, inverse);
    stats[t * in.batch] = row.max;
    stats[(in.teachers + t) * in.batch] = row.sum;
    for (std::int64_t i = 0; i < chunks; ++i) {
      weights[i] = math::chunk_weight(max[i], row.max, inverse);
    }
  }
}

// Writes the stats and cross entropies of student s of image b; needs the results of
// merge_teachers().
template <typename A>
RowStats<A> merge_student(const PrototypeCrossEntropy& p, std::int64_t b, std::int64_t s,
                          const A* weights) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t chunks = p.shares.chunks;
  const A inverse = static_cast<A>(1 / in.student_temperature);
  const Partials<A> partials(p, b);
  const A* max = partials.student_max(s);
  const RowStats<A> row = merge_row(max, partials.student_sum(s), chunks, inverse);
  A* stats = static_cast<A*>(p.student_stats) + b;
  stats[s * in.batch] = row.max;
  stats[(in.students + s) * in.batch] = row.sum;
  const A* teacher_sums = static_cast<const A*>(p.teacher_stats) + in.teachers * in.batch + b;
  A* cross_entropy = static_cast<A*>(p.cross_entropy) + b;
  const A shift = math::shift_of(row.max);
  for (std::int64_t t = 0; t < in.teachers; ++t, weights += chunks) {
    const A *dots = partials.dot(t, s), *sum = partials.teacher_sum(t);
    A dot = 0;
    for (std::int64_t i = 0; i < chunks; ++i) {
      dot += weights[i] * (dots[i] + (math::shift_of(max[i]) - shift) * sum[i]);
    }
    cross_entropy[(t * in.students + s) * in.batch] =
        std::log(row.sum) - dot / teacher_sums[t * in.batch] * inverse;
  }
  return row;
}

// Sums prototypes [first, first + count) over the images of a group. add(b, sums, overwrite) adds
// the rows of image b to `sums` in whole vectors, or writes them there if `overwrite`.
template <typename A, typename Add>
void sum_columns(const PrototypeCrossEntropy& p, std::int64_t group, std::int64_t first,
                 std::int64_t count, const Add& add) {
  const std::int64_t begin = group * p.shares.group;
  const std::int64_t end = std::min(begin + p.shares.group, p.logits.batch);
  A *totals = nullptr, *sums = nullptr;
  if (p.column_sums != nullptr) {
    totals = static_cast<A*>(p.column_sums) + group * p.shares.columns() + first;
    sums = end - begin <= kSumImages ? totals : scratch<A, struct Sums>(padded(count));
  }
  for (std::int64_t b = begin; b < end; ++b) {
    const std::int64_t nth = b - begin;
    add(b, sums, nth % kSumImages == 0);
    if (sums == totals || ((nth + 1) % kSumImages != 0 && b + 1 < end)) continue;
    if (nth < kSumImages) {
      std::copy(sums, sums + count, totals);
    } else {
      for (std::int64_t c = 0; c < count; ++c) totals[c] += sums[c];
    }
  }
}

// Writes weight * x_c - sum_t weights[t] e_tc. exponentials(c, left, x) computes the exponentials x
// of the student. kCount is the number of teachers if the compiler shall know it, else 0.
template <int kCount, bool kStreaming, typename T, typename A, typename Exponentials>
[[gnu::flatten]] void write_grad(std::int64_t count, A weight, const A* e, const A* weights,
                                 std::int64_t teachers, const Exponentials& exponentials, T* to) {
  if constexpr (kCount > 0) teachers = kCount;
  each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t left) {
    vec<A> grad[N];
    exponentials(c, left, grad);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) grad[i] *= weight;
#pragma GCC unroll 4
    for (std::int64_t t = 0; t < teachers; ++t) {
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        grad[i] -= load(e + t * kChunk + c + i * kLanes<A>) * weights[t];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      if (left < kLanes<A>) {
        store_some(to + c, grad[i], left);
      } else if constexpr (kStreaming) {
        stream_store(to + c + i * kLanes<A>, grad[i]);
      } else {
        store_whole(to + c + i * kLanes<A>, grad[i]);
      }
    }
  });
}

// Writes a chunk of a student's gradient, from the exponentials `e` [T, kChunk] of the teachers and
// those of the student, which exponentials(c, left, x) computes. Multiplied by teacher_scales [T]
// and student_scale, exponentials are probabilities.
template <typename T, typename A, typename Exponentials>
void grad_chunk(const PrototypeCrossEntropyBackward& p, std::int64_t b, std::int64_t s,
                std::int64_t chunk, const A* e, const A* teacher_scales, A student_scale,
                const Exponentials& exponentials) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t count = chunk_count(in, chunk);
  const A inverse = static_cast<A>(1 / in.student_temperature);
  const A* grad = static_cast<const A*>(p.grad) + s * in.batch + b;
  A* weights = scratch<A, struct GradWeights>(in.teachers);
  A weight = 0;
  for (std::int64_t t = 0; t < in.teachers; ++t) {
    const A g = grad[t * in.students * in.batch] * inverse;
    weight += g;
    weights[t] = g * teacher_scales[t];
  }
  weight *= student_scale;
  T* to = row_of<T>(p.grad_student, s, b) + chunk * kChunk;
  const auto run = [&]<int kCount>() {
    if constexpr (std::is_same_v<T, A> && kSpecializes<A>) {
      if (p.streaming()) {
        return write_grad<kCount, true>(count, weight, e, weights, in.teachers, exponentials, to);
      }
    }
    write_grad<kCount, false>(count, weight, e, weights, in.teachers, exponentials, to);
  };
  if constexpr (kSpecializes<A>) {
    if (in.teachers == 1) return run.template operator()<1>();
    if (in.teachers == 2) return run.template operator()<2>();
    if (in.teachers == 4) return run.template operator()<4>();
  }
  run.template operator()<0>();
}

}  // namespace mast_ext::kernels::MAST_EXT_ISA::prototype_cpu
