#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/columns_cpu.h"
#include "kernels/common/exponential_cpu.h"
#include "kernels/common/half_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy.h"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

namespace math = prototype_math;

constexpr std::int64_t kStretch = kPrototypeStretchCpu;
constexpr int kTeachers = 4;             // that one sweep over a student's row serves
constexpr std::int64_t kSumImages = 32;  // whose column sums are taken by themselves first

template <typename A>
constexpr A kNothing = -std::numeric_limits<A>::infinity();

template <typename A>
A max_lanes(vec<A> v) {
  A most = v[0];
  for (int i = 1; i < kLanes<A>; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// `left` elements, at most a vector's, the lanes behind them holding `fill`.
template <typename T>
inline vec<accum_t<T>> load_or(const T* p, std::int64_t left, accum_t<T> fill) {
  if (left >= kLanes<accum_t<T>>) return load_whole(p);
  vec<accum_t<T>> v = load_some(p, left);
  for (std::int64_t i = left; i < kLanes<accum_t<T>>; ++i) v[i] = fill;
  return v;
}

template <typename T>
const T* row_of(const Views& views, std::int64_t v, std::int64_t b) {
  return static_cast<const T*>(views.data) + v * views.view_stride + b * views.batch_stride;
}

// A row's part in one stretch, or in all.
template <typename A>
struct RowStats {
  A max, sum;
};

// Rows of a stretch lie in different pages, whose ends stop the processor's own prefetching.
template <typename T>
void prefetch(const T* p) {
  __builtin_prefetch(p);
}

// e[c] = exp((row - center - max) / u), 0 behind `count`; adds the row to column_sums, if given.
// `next` is the row that will be read after this one.
template <typename T, typename A>
RowStats<A> teacher_row(const T* row, const T* next, const A* center, std::int64_t count,
                        Exponential<A> exp, A* e, A* column_sums) {
  vec<A> max = broadcast(kNothing<A>);
  each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t left) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i, c += kLanes<A>) {
      vec<A> y = load_or(row + c, left, kNothing<A>);
      if (column_sums != nullptr) store(column_sums + c, load(column_sums + c) + y);
      if (center != nullptr) y -= load_or(center + c, left, A{0});
      store(e + c, y);
      max = larger(y, max);
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
A student_max(const T* row, std::int64_t count) {
  vec<A> max[kAbreast];
  for (vec<A>& lane : max) lane = broadcast(kNothing<A>);
  each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t left) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      max[i] = larger(load_or(row + c + i * kLanes<A>, left, kNothing<A>), max[i]);
    }
  });
  return max_lanes<A>(larger(larger(max[0], max[1]), larger(max[2], max[3])));
}

// dots[t] = sum_c e_tc (x_c - shift) of kCount teachers; returns sum_c exp((x_c - shift) / r) if
// asked to, and keeps the summands, if given where.
template <int kCount, bool kSum, typename T, typename A>
A student_dots(const T* row, const T* next, std::int64_t count, A shift, Exponential<A> exp,
               const A* e, A* dots, A* kept) {
  constexpr A kFarOff = -1e30;  // 0 as an exponential, and finite, so 0 as a product with 0
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
        dot[t] += load(e + t * kStretch + c + i * kLanes<A>) * difference[i];
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

// With the sum where asked to, of 1 to kTeachers teachers.
template <typename T, typename A>
A student_block(std::int64_t teachers, bool with_sum, const T* row, const T* next,
                std::int64_t count, A shift, Exponential<A> exp, const A* e, A* dots, A* kept) {
  const auto run = [&]<int N>() {
    return with_sum ? student_dots<N, true>(row, next, count, shift, exp, e, dots, kept)
                    : student_dots<N, false>(row, next, count, shift, exp, e, dots, kept);
  };
  switch (teachers) {
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    case 3:
      return run.template operator()<3>();
    default:
      return run.template operator()<kTeachers>();
  }
}

// The partial of an image's stretch. The teachers' exponentials are left in `e`, the students' in
// `student_e`, if given, kStretch a row; the teacher's rows are added to `sums`, if given.
// `next_teacher` is the row that will be read after the image's last one.
template <typename T, typename A = accum_t<T>>
void forward_stretch(const PrototypeCrossEntropy& p, std::int64_t b, std::int64_t stretch, A* e,
                     A* student_e, A* sums, const T* next_teacher) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t first = stretch * kStretch, count = std::min(kStretch, in.prototypes - first);
  const math::PartialLayout layout{in.students, in.teachers};
  const std::int64_t stretches = p.shares.stretches;
  const Exponential<A> student_exp(in.student_temperature), teacher_exp(in.teacher_temperature);
  const A* center = in.center == nullptr ? nullptr : static_cast<const A*>(in.center) + first;
  A* to = static_cast<A*>(p.partials) + b * layout.size() * stretches + stretch;
  const auto teacher = [&](std::int64_t t) { return row_of<T>(in.teacher, t, b) + first; };
  const auto student = [&](std::int64_t s) { return row_of<T>(in.student, s, b) + first; };
  for (std::int64_t t = 0; t < in.teachers; ++t) {
    const T* next = t + 1 < in.teachers ? teacher(t + 1) : student(0);
    const RowStats<A> row =
        teacher_row(teacher(t), next, center, count, teacher_exp, e + t * kStretch, sums);
    to[layout.teacher_max(t) * stretches] = row.max;
    to[layout.teacher_sum(t) * stretches] = row.sum;
  }
  for (std::int64_t s = 0; s < in.students; ++s) {
    const T *row = student(s), *next = s + 1 < in.students ? student(s + 1) : next_teacher;
    const A max = student_max(row, count), shift = math::shift_of(max);
    to[layout.student_max(s) * stretches] = max;
    for (std::int64_t t = 0; t < in.teachers; t += kTeachers) {
      A dots[kTeachers];
      const std::int64_t block = std::min<std::int64_t>(in.teachers - t, kTeachers);
      const A sum =
          student_block(block, t == 0, row, next, count, shift, student_exp, e + t * kStretch, dots,
                        student_e == nullptr ? nullptr : student_e + s * kStretch);
      if (t == 0) to[layout.student_sum(s) * stretches] = sum;
      for (std::int64_t i = 0; i < block; ++i) to[layout.dot(t + i, s) * stretches] = dots[i];
    }
  }
}

// The column sums of prototypes [first, first + count) of a group, over its images [begin, end):
// `add(b, sums)` adds image b's. Those of a few images are taken by themselves first.
template <typename A, typename Add>
void sum_columns(const PrototypeCrossEntropy& p, std::int64_t group, std::int64_t first,
                 std::int64_t count, const Add& add) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t begin = group * p.shares.group;
  const std::int64_t end = std::min(begin + p.shares.group, in.batch);
  A* sums = nullptr;
  A* totals = static_cast<A*>(p.column_sums) + group * in.prototypes + first;
  if (p.column_sums != nullptr) {
    const std::int64_t whole_stretches = (count + kStretch - 1) / kStretch * kStretch;
    sums = scratch<A, struct Sums>(whole_stretches);
    std::fill(totals, totals + count, A{0});
    std::fill(sums, sums + whole_stretches, A{0});
  }
  for (std::int64_t b = begin; b < end; ++b) {
    add(b, sums);
    if (sums != nullptr && ((b + 1 - begin) % kSumImages == 0 || b + 1 == end)) {
      for (std::int64_t c = 0; c < count; ++c) totals[c] += sums[c], sums[c] = 0;
    }
  }
}

template <typename T>
void forward_share(const PrototypeCrossEntropy& p, std::int64_t group, std::int64_t stretch) {
  using A = accum_t<T>;
  const Views& teacher = p.logits.teacher;
  const std::int64_t first = stretch * kStretch;
  const std::int64_t count = std::min(kStretch, p.logits.prototypes - first);
  A* e = scratch<A, struct Exponentials>(p.logits.teachers * kStretch);
  sum_columns<A>(p, group, first, count, [&](std::int64_t b, A* sums) {
    forward_stretch<T, A>(p, b, stretch, e, nullptr, sums,
                          row_of<T>(teacher, 0, b) + teacher.batch_stride + first);
  });
}

// Joins what the stretches found of a row.
template <typename A>
RowStats<A> merge_row(const A* max, const A* sum, std::int64_t stretches, A inverse_temperature) {
  const A all = *std::max_element(max, max + stretches);
  A total = 0;
  for (std::int64_t i = 0; i < stretches; ++i) {
    total += sum[i] * math::stretch_weight(max[i], all, inverse_temperature);
  }
  return {all, total};
}

template <typename A>
void merge_image(const PrototypeCrossEntropy& p, std::int64_t b) {
  const PrototypeLogits& in = p.logits;
  const math::PartialLayout layout{in.students, in.teachers};
  const std::int64_t stretches = p.shares.stretches;
  const A student_inverse = static_cast<A>(1 / in.student_temperature);
  const A teacher_inverse = static_cast<A>(1 / in.teacher_temperature);
  const auto partial = [&](std::int64_t index) {
    return static_cast<const A*>(p.partials) + (b * layout.size() + index) * stretches;
  };
  A* student = static_cast<A*>(p.student_stats) + b;
  A* teacher = static_cast<A*>(p.teacher_stats) + b;
  A* cross_entropy = static_cast<A*>(p.cross_entropy) + b;
  for (std::int64_t s = 0; s < in.students; ++s) {
    const RowStats<A> row = merge_row(partial(layout.student_max(s)),
                                      partial(layout.student_sum(s)), stretches, student_inverse);
    student[s * in.batch] = row.max;
    student[(in.students + s) * in.batch] = row.sum;
  }
  A* weights = scratch<A, struct Weights>(stretches);
  for (std::int64_t t = 0; t < in.teachers; ++t) {
    const A *max = partial(layout.teacher_max(t)), *sum = partial(layout.teacher_sum(t));
    const RowStats<A> row = merge_row(max, sum, stretches, teacher_inverse);
    teacher[t * in.batch] = row.max;
    teacher[(in.teachers + t) * in.batch] = row.sum;
    for (std::int64_t i = 0; i < stretches; ++i) {
      weights[i] = math::stretch_weight(max[i], row.max, teacher_inverse);
    }
    for (std::int64_t s = 0; s < in.students; ++s) {
      const A *dots = partial(layout.dot(t, s)), *shifts = partial(layout.student_max(s));
      const A shift = math::shift_of(student[s * in.batch]);
      A dot = 0;
      for (std::int64_t i = 0; i < stretches; ++i) {
        dot += weights[i] * (dots[i] + (math::shift_of(shifts[i]) - shift) * sum[i]);
      }
      cross_entropy[(t * in.students + s) * in.batch] =
          std::log(student[(in.students + s) * in.batch]) - dot / row.sum * student_inverse;
    }
  }
}

// weight * x_c - sum_t weights[t] e_tc of kCount teachers, or of any number where kCount is 0;
// exponentials(c, left, x) gives x, the student's.
template <int kCount, bool kPast, typename T, typename A, typename Exponentials>
void write_grad(std::int64_t count, A weight, const A* e, const A* weights, std::int64_t teachers,
                const Exponentials& exponentials, T* to) {
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
        grad[i] -= load(e + t * kStretch + c + i * kLanes<A>) * weights[t];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      if (left < kLanes<A>) {
        store_some(to + c, grad[i], left);
      } else if constexpr (kPast) {
        store_past_caches(to + c + i * kLanes<A>, grad[i]);
      } else {
        store_whole(to + c + i * kLanes<A>, grad[i]);
      }
    }
  });
}

// An image's stretch of the gradient, from exponentials: `e` holds the teachers', and
// exponentials(s, c, left, x) gives student s's. Times teacher_scale(t) and student_scale(s) they
// are probabilities.
template <typename T, typename A, typename StudentScale, typename TeacherScale,
          typename Exponentials>
void grad_stretch(const PrototypeCrossEntropyBackward& p, std::int64_t b, std::int64_t first,
                  const A* e, const StudentScale& student_scale, const TeacherScale& teacher_scale,
                  const Exponentials& exponentials) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t count = std::min(kStretch, in.prototypes - first);
  const A student_inverse = static_cast<A>(1 / in.student_temperature);
  const A* grad = static_cast<const A*>(p.grad) + b;
  A* scales = scratch<A, struct Scales>(2 * in.teachers);
  A* weights = scales + in.teachers;
  for (std::int64_t t = 0; t < in.teachers; ++t) scales[t] = teacher_scale(t);
  const bool past_caches = p.large && in.prototypes * sizeof(T) % kVectorBytes == 0;
  for (std::int64_t s = 0; s < in.students; ++s) {
    A weight = 0;
    for (std::int64_t t = 0; t < in.teachers; ++t) {
      const A g = grad[(t * in.students + s) * in.batch] * student_inverse;
      weight += g;
      weights[t] = g * scales[t];
    }
    weight *= student_scale(s);
    T* to = static_cast<T*>(p.grad_student) + (s * in.batch + b) * in.prototypes + first;
    const auto of_student = [&]<int N>(std::int64_t c, std::int64_t left, vec<A>(&x)[N]) {
      exponentials(s, c, left, x);
    };
    const auto run = [&]<int kCount>() {
      if constexpr (std::is_same_v<T, A>) {
        if (past_caches) {
          return write_grad<kCount, true>(count, weight, e, weights, in.teachers, of_student, to);
        }
      }
      write_grad<kCount, false>(count, weight, e, weights, in.teachers, of_student, to);
    };
    switch (in.teachers) {
      case 1:
        run.template operator()<1>();
        break;
      case 2:
        run.template operator()<2>();
        break;
      case 4:
        run.template operator()<4>();
        break;
      default:
        run.template operator()<0>();
    }
  }
  if (past_caches) stores_done();
}

// From logits.
template <typename T>
void backward_stretch(const PrototypeCrossEntropyBackward& p, std::int64_t b, std::int64_t first) {
  using A = accum_t<T>;
  const PrototypeLogits& in = p.logits;
  const std::int64_t count = std::min(kStretch, in.prototypes - first);
  const Exponential<A> student_exp(in.student_temperature), teacher_exp(in.teacher_temperature);
  const A* center = in.center == nullptr ? nullptr : static_cast<const A*>(in.center) + first;
  const auto teacher = [&](std::int64_t t) { return row_of<T>(in.teacher, t, b) + first; };
  const auto student = [&](std::int64_t s) { return row_of<T>(in.student, s, b) + first; };
  const A* student_stats = static_cast<const A*>(p.student_stats) + b;
  const A* teacher_stats = static_cast<const A*>(p.teacher_stats) + b;
  A* e = scratch<A, struct Exponentials>(in.teachers * kStretch);
  for (std::int64_t t = 0; t < in.teachers; ++t) {
    const T *row = teacher(t), *next = t + 1 < in.teachers ? teacher(t + 1) : student(0);
    const A shift = math::shift_of(teacher_stats[t * in.batch]);
    each_vector<A>(count, [&]<int N>(std::int64_t c, std::int64_t left) {
      vec<A> y[N];
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        const std::int64_t at = c + i * kLanes<A>;
        prefetch(next + at);
        y[i] = load_or(row + at, left, shift);
        if (center != nullptr) y[i] -= load_or(center + at, left, A{0});
        y[i] -= shift;
      }
      teacher_exp(y);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) store(e + t * kStretch + c + i * kLanes<A>, y[i]);
    });
  }
  grad_stretch<T>(
      p, b, first, e,
      [&](std::int64_t s) { return 1 / student_stats[(in.students + s) * in.batch]; },
      [&](std::int64_t t) { return 1 / teacher_stats[(in.teachers + t) * in.batch]; },
      [&]<int N>(std::int64_t s, std::int64_t c, std::int64_t left, vec<A>(&x)[N]) {
        const T *row = student(s),
                *next = s + 1 < in.students ? student(s + 1) : teacher(0) + count;
        const A shift = math::shift_of(student_stats[s * in.batch]);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
          prefetch(next + c + i * kLanes<A>);
          x[i] = load_or(row + c + i * kLanes<A>, left, shift) - shift;
        }
        student_exp(x);
      });
}

// From the exponentials that forward_stretch() kept.
template <typename T, typename A>
void kept_backward_stretch(const PrototypeCrossEntropy& forward,
                           const PrototypeCrossEntropyBackward& p, std::int64_t b,
                           std::int64_t stretch, const A* e) {
  const PrototypeLogits& in = p.logits;
  const math::PartialLayout layout{in.students, in.teachers};
  const std::int64_t stretches = p.shares.stretches;
  const A* partials =
      static_cast<const A*>(forward.partials) + b * layout.size() * stretches + stretch;
  const A student_inverse = static_cast<A>(1 / in.student_temperature);
  const A teacher_inverse = static_cast<A>(1 / in.teacher_temperature);
  const A* student = static_cast<const A*>(p.student_stats) + b;
  const A* teacher = static_cast<const A*>(p.teacher_stats) + b;
  grad_stretch<T>(
      p, b, stretch * kStretch, e,
      [&](std::int64_t s) {
        const A max = partials[layout.student_max(s) * stretches];
        return math::stretch_weight(max, student[s * in.batch], student_inverse) /
               student[(in.students + s) * in.batch];
      },
      [&](std::int64_t t) {
        const A max = partials[layout.teacher_max(t) * stretches];
        return math::stretch_weight(max, teacher[t * in.batch], teacher_inverse) /
               teacher[(in.teachers + t) * in.batch];
      },
      [&]<int N>(std::int64_t s, std::int64_t c, std::int64_t, vec<A>(&x)[N]) {
        const A* row = e + (in.teachers + s) * kStretch + c;
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) x[i] = load(row + i * kLanes<A>);
      });
}

// All of a group's images, one after the other: what the gradient needs of an image is still in the
// caches, the last stretch the nearest.
template <typename T>
void forward_backward_group(const PrototypeCrossEntropy& p, const PrototypeCrossEntropyBackward& q,
                            std::int64_t group) {
  using A = accum_t<T>;
  const PrototypeLogits& in = p.logits;
  const std::int64_t stretches = p.shares.stretches, views = in.teachers + in.students;
  A* kept = scratch<A, struct Kept>(stretches * views * kStretch);
  sum_columns<A>(p, group, 0, in.prototypes, [&](std::int64_t b, A* sums) {
    const T* first_row = row_of<T>(in.teacher, 0, b);
    for (std::int64_t i = 0; i < stretches; ++i) {
      A* e = kept + i * views * kStretch;
      forward_stretch(p, b, i, e, e + in.teachers * kStretch,
                      sums == nullptr ? nullptr : sums + i * kStretch,
                      first_row + (i + 1) * kStretch);
    }
    merge_image<A>(p, b);
    for (std::int64_t i = stretches; i-- > 0;) {
      kept_backward_stretch<T>(p, q, b, i, kept + i * views * kStretch);
    }
  });
}

}  // namespace

void prototype_cross_entropy_cpu(const PrototypeCrossEntropy& p, std::int64_t begin,
                                 std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.logits.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) {
      forward_share<T>(p, i / p.shares.stretches, i % p.shares.stretches);
    }
  });
}

void prototype_cross_entropy_merge_cpu(const PrototypeCrossEntropy& p, std::int64_t begin,
                                       std::int64_t end) {
  visit_accumulation(p.logits.dtype, [&]<typename A>() {
    for (std::int64_t b = begin; b < end; ++b) merge_image<A>(p, b);
  });
}

void prototype_mean_cpu(const PrototypeCrossEntropy& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.logits.dtype, [&]<typename A>() {
    const auto* sums = static_cast<const A*>(p.column_sums);
    const auto rows = static_cast<A>(p.logits.teachers * p.logits.batch);
    for (std::int64_t c = begin; c < end; ++c) {
      A sum = 0;
      for (std::int64_t g = 0; g < p.shares.groups; ++g) sum += sums[g * p.logits.prototypes + c];
      static_cast<A*>(p.teacher_mean)[c] = sum / rows;
    }
  });
}

void prototype_cross_entropy_backward_cpu(const PrototypeCrossEntropyBackward& p,
                                          std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.logits.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) {
      backward_stretch<T>(p, i / p.shares.stretches, i % p.shares.stretches * kStretch);
    }
  });
}

void prototype_cross_entropy_with_grad_cpu(const PrototypeCrossEntropy& p,
                                           const PrototypeCrossEntropyBackward& q,
                                           std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.logits.dtype, [&]<typename T>() {
    for (std::int64_t group = begin; group < end; ++group) forward_backward_group<T>(p, q, group);
  });
}

}  // namespace MAST_EXT_ISA

#define MAST_EXT_RANGE(Params) (const Params& p, std::int64_t begin, std::int64_t end)
MAST_EXT_CPU_ENTRY(prototype_cross_entropy_cpu, MAST_EXT_RANGE(PrototypeCrossEntropy),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(prototype_cross_entropy_merge_cpu, MAST_EXT_RANGE(PrototypeCrossEntropy),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(prototype_mean_cpu, MAST_EXT_RANGE(PrototypeCrossEntropy), (p, begin, end))
MAST_EXT_CPU_ENTRY(prototype_cross_entropy_backward_cpu,
                   MAST_EXT_RANGE(PrototypeCrossEntropyBackward), (p, begin, end))
MAST_EXT_CPU_ENTRY(prototype_cross_entropy_with_grad_cpu,
                   (const PrototypeCrossEntropy& p, const PrototypeCrossEntropyBackward& q,
                    std::int64_t begin, std::int64_t end),
                   (p, q, begin, end))
#undef MAST_EXT_RANGE

}  // namespace mast_ext::kernels
