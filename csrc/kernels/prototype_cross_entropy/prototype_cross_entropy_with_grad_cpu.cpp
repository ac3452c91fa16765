// The CPU kernel that computes cross entropies and gradient in one pass over the logits: one image
// after the other, all chunks of it.
#include "kernels/common/isa.h"
#include "kernels/prototype_cross_entropy/prototype_rows_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

using namespace prototype_cpu;

// Rows are prefetched this many chunks ahead. With one chunk, loads would wait for memory.
constexpr std::int64_t kAhead = 2;

// Chunk `chunk` of a row, where chunks beyond the last one continue in the row that is read next.
template <typename T>
const T* ahead(const T* row, const T* next_row, std::int64_t chunk, std::int64_t chunks) {
  if (chunk < chunks) return row + chunk * kChunk;
  return next_row + std::min(chunk - chunks, chunks - 1) * kChunk;
}

// One image, row by row: the teachers' exponentials stay in the caches for all students, and a
// student's until its gradient is written.
template <typename T, typename A = accum_t<T>>
void forward_backward_image(const PrototypeCrossEntropy& p, const PrototypeCrossEntropyBackward& q,
                            std::int64_t b, A* sums, bool overwrite) {
  const PrototypeLogits& in = p.logits;
  const std::int64_t chunks = p.shares.chunks, teachers = in.teachers;
  A* e = scratch<A, struct TeacherExponentials>(chunks * teachers * kChunk);
  A* kept = scratch<A, struct StudentExponentials>(chunks * kChunk);
  A* weights = scratch<A, struct Weights>(teachers * chunks);
  A* scales = scratch<A, struct Scales>(chunks * teachers);
  const auto of_chunk = [&](std::int64_t i) { return e + i * teachers * kChunk; };

  for (std::int64_t i = 0; i < chunks; ++i) {
    for (std::int64_t t = 0; t < teachers; ++t) {
      const T* next =
          ahead(row_of<T>(in.teacher, t, b), row_of<T>(in.student, 0, b), i + kAhead, chunks);
      teacher_chunk<T>(p, b, t, i, next, of_chunk(i) + t * kChunk,
                       sums == nullptr ? nullptr : sums + i * kChunk, overwrite && t == 0);
    }
  }
  merge_teachers(p, b, weights);
  const A* teacher_sums = static_cast<const A*>(p.teacher_stats) + teachers * in.batch + b;
  for (std::int64_t i = 0; i < chunks; ++i) {
    for (std::int64_t t = 0; t < teachers; ++t) {
      scales[i * teachers + t] = weights[t * chunks + i] / teacher_sums[t * in.batch];
    }
  }

  const A inverse = static_cast<A>(1 / in.student_temperature);
  for (std::int64_t s = 0; s < in.students; ++s) {
    const T* row = row_of<T>(in.student, s, b);
    const T* next_row =
        s + 1 < in.students ? row_of<T>(in.student, s + 1, b) : row_of<T>(in.teacher, 0, b + 1);
    for (std::int64_t i = 0; i < chunks; ++i) {
      student_chunk<T>(p, b, s, i, ahead(row, next_row, i + kAhead, chunks), of_chunk(i),
                       kept + i * kChunk);
    }
    const RowStats<A> stats = merge_student(p, b, s, weights);
    const A* max = Partials<A>(p, b).student_max(s);
    for (std::int64_t i = chunks; i-- > 0;) {  // the last chunk is the one in the nearest cache
      const A scale = math::chunk_weight(max[i], stats.max, inverse) / stats.sum;
      grad_chunk<T>(q, b, s, i, of_chunk(i), scales + i * teachers, scale,
                    [&]<int N>(std::int64_t c, std::int64_t, vec<A>(&x)[N]) {
#pragma GCC unroll 4
                      for (int k = 0; k < N; ++k) {
                        x[k] = load(kept + i * kChunk + c + k * kLanes<A>);
                      }
                    });
    }
  }
  if (q.streaming()) stores_done();
}

}  // namespace

void prototype_cross_entropy_with_grad_cpu(const PrototypeCrossEntropy& p,
                                           const PrototypeCrossEntropyBackward& q,
                                           std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_dtype(p.logits.dtype, [&]<typename T>() {
    using A = accum_t<T>;
    for (std::int64_t group = begin; group < end; ++group) {
      sum_columns<A>(p, group, 0, p.logits.prototypes,
                     [&](std::int64_t b, A* sums, bool overwrite) {
                       forward_backward_image<T>(p, q, b, sums, overwrite);
                     });
    }
  });
}

void prototype_weighted_sum_cpu(const PrototypeCrossEntropy& p,
                                const PrototypeCrossEntropyBackward& q, void* sum) {
  const PrototypeLogits& in = p.logits;
  visit_accumulation(in.dtype, [&]<typename A>() {
    const auto* cross_entropy = static_cast<const A*>(p.cross_entropy);
    const auto* weights = static_cast<const A*>(q.grad);
    double total = 0;  // precise enough for the sum over a million tokens
    for (std::int64_t i = 0; i < in.teachers * in.students * in.batch; ++i) {
      if (weights[i] != 0) total += static_cast<double>(weights[i]) * cross_entropy[i];
    }
    *static_cast<A*>(sum) = static_cast<A>(total);
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(prototype_cross_entropy_with_grad_cpu,
                   (const PrototypeCrossEntropy& p, const PrototypeCrossEntropyBackward& q,
                    std::int64_t begin, std::int64_t end),
                   (p, q, begin, end))
MAST_EXT_CPU_ENTRY(prototype_weighted_sum_cpu,
                   (const PrototypeCrossEntropy& p, const PrototypeCrossEntropyBackward& q,
                    void* sum),
                   (p, q, sum))

}  // namespace mast_ext::kernels
