// The CPU kernels of prototype_cross_entropy with separate forward and backward passes, which both
// take one chunk of an image after the other.
#include "kernels/common/isa.h"
#include "kernels/prototype_cross_entropy/prototype_rows_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

using namespace prototype_cpu;

template <typename T>
void forward_share(const PrototypeCrossEntropy& p, std::int64_t group, std::int64_t chunk) {
  using A = accum_t<T>;
  const PrototypeLogits& in = p.logits;
  const std::int64_t first = chunk * kChunk;
  const auto teacher = [&](std::int64_t t, std::int64_t b) {
    return row_of<T>(in.teacher, t, b) + first;
  };
  const auto student = [&](std::int64_t s, std::int64_t b) {
    return row_of<T>(in.student, s, b) + first;
  };
  A* e = scratch<A, struct Exponentials>(in.teachers * kChunk);
  sum_columns<A>(
      p, group, first, chunk_count(in, chunk), [&](std::int64_t b, A* sums, bool overwrite) {
        for (std::int64_t t = 0; t < in.teachers; ++t) {
          const T* next = t + 1 < in.teachers ? teacher(t + 1, b) : student(0, b);
          teacher_chunk<T>(p, b, t, chunk, next, e + t * kChunk, sums, overwrite && t == 0);
        }
        for (std::int64_t s = 0; s < in.students; ++s) {
          const T* next = s + 1 < in.students ? student(s + 1, b) : teacher(0, b + 1);
          student_chunk<T, A>(p, b, s, chunk, next, e, nullptr);
        }
      });
}

template <typename A>
void merge_image(const PrototypeCrossEntropy& p, std::int64_t b) {
  A* weights = scratch<A, struct Weights>(p.logits.teachers * p.shares.chunks);
  merge_teachers(p, b, weights);
  for (std::int64_t s = 0; s < p.logits.students; ++s) merge_student(p, b, s, weights);
}

template <typename T>
void backward_chunk(const PrototypeCrossEntropyBackward& p, std::int64_t b, std::int64_t chunk) {
  using A = accum_t<T>;
  const PrototypeLogits& in = p.logits;
  const std::int64_t first = chunk * kChunk, count = chunk_count(in, chunk);
  const Exponential<A> student_exp(in.student_temperature), teacher_exp(in.teacher_temperature);
  const A* center = in.center == nullptr ? nullptr : static_cast<const A*>(in.center) + first;
  const auto teacher = [&](std::int64_t t) { return row_of<T>(in.teacher, t, b) + first; };
  const auto student = [&](std::int64_t s) { return row_of<T>(in.student, s, b) + first; };
  const A* student_stats = static_cast<const A*>(p.student_stats) + b;
  const A* teacher_stats = static_cast<const A*>(p.teacher_stats) + b;
  A* e = scratch<A, struct Exponentials>(in.teachers * kChunk);
  A* scales = scratch<A, struct Scales>(in.teachers);
  for (std::int64_t t = 0; t < in.teachers; ++t) {
    const T *row = teacher(t), *next = t + 1 < in.teachers ? teacher(t + 1) : student(0);
    const A shift = math::shift_of(teacher_stats[t * in.batch]);
    scales[t] = 1 / teacher_stats[(in.teachers + t) * in.batch];
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
      for (int i = 0; i < N; ++i) store(e + t * kChunk + c + i * kLanes<A>, y[i]);
    });
  }
  for (std::int64_t s = 0; s < in.students; ++s) {
    const T *row = student(s), *next = s + 1 < in.students ? student(s + 1) : teacher(0) + count;
    const A shift = math::shift_of(student_stats[s * in.batch]);
    grad_chunk<T>(p, b, s, chunk, e, scales, 1 / student_stats[(in.students + s) * in.batch],
                  [&]<int N>(std::int64_t c, std::int64_t left, vec<A>(&x)[N]) {
#pragma GCC unroll 4
                    for (int i = 0; i < N; ++i) {
                      prefetch(next + c + i * kLanes<A>);
                      x[i] = load_or(row + c + i * kLanes<A>, left, shift) - shift;
                    }
                    student_exp(x);
                  });
  }
  if (p.streaming()) stores_done();
}

}  // namespace

void prototype_cross_entropy_cpu(const PrototypeCrossEntropy& p, std::int64_t begin,
                                 std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.logits.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) {
      forward_share<T>(p, i / p.shares.chunks, i % p.shares.chunks);
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
    auto* mean = static_cast<A*>(p.teacher_mean);
    const auto rows = static_cast<A>(p.logits.teachers * p.logits.batch);
    std::fill(mean + begin, mean + end, A{0});
    for (std::int64_t g = 0; g < p.shares.groups; ++g, sums += p.shares.columns()) {
      for (std::int64_t c = begin; c < end; ++c) mean[c] += sums[c];
    }
    for (std::int64_t c = begin; c < end; ++c) mean[c] /= rows;
  });
}

void prototype_cross_entropy_backward_cpu(const PrototypeCrossEntropyBackward& p,
                                          std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.logits.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) {
      backward_chunk<T>(p, i / p.shares.chunks, i % p.shares.chunks);
    }
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
#undef MAST_EXT_RANGE

}  // namespace mast_ext::kernels
