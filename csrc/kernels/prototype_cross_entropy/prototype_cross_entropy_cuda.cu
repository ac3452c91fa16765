// The CUDA kernels of prototype_cross_entropy. A warp takes one image's chunk of prototypes, 16 per
// lane: the teachers' exponentials stay in registers while it goes through the students' rows and
// loads each one ahead of its use. The warps of a thread block take different images of the same
// chunk and add up their column sums at the end; a second kernel merges the chunks. There are no
// atomic additions: every result has a fixed order of summation.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy.h"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy_math.h"
#include "kernels/prototype_cross_entropy/prototype_rows.cuh"

namespace mast_ext::kernels {
namespace {

namespace math = prototype_math;
using namespace prototype_cuda;

constexpr int kMergeThreads = 256;

// Writes the partial of an image's chunk, taking kTeachers teachers at a time.
template <typename T, int kTeachers, bool kWhole>
__device__ __forceinline__ void forward_chunk(const PrototypeCrossEntropy& p,
                                              const Inverses& inverses, std::int64_t b,
                                              std::int64_t chunk, const Columns<T, kWhole>& columns,
                                              float* column_sums) {
  const PrototypeLogits& in = p.logits;
  const math::PartialLayout layout{in.students, in.teachers};
  const bool in_sums = p.column_sums != nullptr;
  const std::int64_t first = chunk * kChunk;
  const float student_scale = inverses.student * kLog2E;
  const float teacher_scale = inverses.teacher * kLog2E;
  float* partials = static_cast<float*>(p.partials) + b * layout.size() * p.shares.chunks;
  const auto keep = [&](std::int64_t index, float value) {
    if (columns.lane == 0) partials[index * p.shares.chunks + chunk] = value;
  };
  StudentRows<T, kWhole> students{in, b, first, columns, {}};
  students.prefetch_first();
  for (std::int64_t t0 = 0; t0 < in.teachers; t0 += kTeachers) {
    float e[kTeachers][kColumns];
#pragma unroll
    for (int t = 0; t < kTeachers; ++t) {
      if (t0 + t >= in.teachers) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) e[t][i] = 0;
        continue;
      }
      RawRow<T> row;
      row.load(row_of<T>(in.teacher, t0 + t, b) + first, columns);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) e[t][i] = row[i];
      if (in_sums) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) column_sums[i * kWarpSize + columns.lane] += e[t][i];
      }
      subtract_center(in, first, columns, e[t]);
      const float max = row_max(e[t]), shift = math::shift_of(max);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        e[t][i] = exp2_fast((e[t][i] - shift) * teacher_scale);
        sum += e[t][i];
      }
      sum = group_sum<kWarpSize>(sum);
      keep(layout.teacher_max(t0 + t), max);
      keep(layout.teacher_sum(t0 + t), sum);
    }
    students.begin();
    for (std::int64_t s = 0; s < in.students; ++s) {
      const RawRow<T> row = students.take(s);
      float x[kColumns];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) x[i] = columns.has(i) ? row[i] : -INFINITY;
      const float max = row_max(x), shift = math::shift_of(max);
      float sum = 0, dots[kTeachers] = {};
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        // For a column that does not exist: its exponential is 0, and it is finite, so that its
        // product with e = 0 is 0.
        const float difference = columns.has(i) ? x[i] - shift : -1e30f;
        sum += exp2_fast(difference * student_scale);
#pragma unroll
        for (int t = 0; t < kTeachers; ++t) dots[t] += e[t][i] * difference;
      }
      if (t0 == 0) {
        sum = group_sum<kWarpSize>(sum);
        keep(layout.student_max(s), max);
        keep(layout.student_sum(s), sum);
      }
#pragma unroll
      for (int t = 0; t < kTeachers; ++t) {
        dots[t] = group_sum<kWarpSize>(dots[t]);
        if (t0 + t < in.teachers) keep(layout.dot(t0 + t, s), dots[t]);
      }
    }
  }
}

// Thread blocks that shall fit a multiprocessor, which limits the registers of a thread.
constexpr int blocks_per_multiprocessor(int teachers) { return teachers <= 2 ? 5 : 3; }

template <typename T, int kTeachers>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor(kTeachers))
    forward(PrototypeCrossEntropy p, Inverses inverses, bool aligned) {
  __shared__ float column_sums[kWarps][kChunk];
  const PrototypeLogits& in = p.logits;
  const std::int64_t chunk = blockIdx.x % p.shares.chunks;
  const std::int64_t group = blockIdx.x / p.shares.chunks;
  const std::int64_t begin = group * p.shares.group, first = chunk * kChunk;
  const std::int64_t end = begin + p.shares.group < in.batch ? begin + p.shares.group : in.batch;
  const int count = in.prototypes - first < kChunk ? in.prototypes - first : kChunk;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (p.column_sums != nullptr) {
    for (int i = 0; i < kColumns; ++i) column_sums[warp][i * kWarpSize + lane] = 0;
  }
  const auto run = [&]<bool kWhole>() {
    const Columns<T, kWhole> columns{lane, count};
    for (std::int64_t b = begin + warp; b < end; b += kWarps) {
      if (b + kWarps < end) {
        for (std::int64_t t = 0; t < in.teachers; ++t) {
          prefetch(row_of<T>(in.teacher, t, b + kWarps) + first, columns);
        }
      }
      forward_chunk<T, kTeachers>(p, inverses, b, chunk, columns, column_sums[warp]);
    }
    if (p.column_sums == nullptr) return;
    __syncthreads();
    float* to = static_cast<float*>(p.column_sums) + group * p.shares.columns() + first;
    for (int i = warp; i < kColumns; i += kWarps) {
      float sum = 0;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) {
        sum += column_sums[other][i * kWarpSize + lane];
      }
      if (columns.has(i)) to[columns.at(i)] = sum;
    }
  };
  if (aligned && count == kChunk) {
    run.template operator()<true>();
  } else {
    run.template operator()<false>();
  }
}

// The stats of a row, merged from its chunks; all lanes of the warp get them.
struct RowStats {
  float max, sum;

  __device__ __forceinline__ RowStats(const float* maxima, const float* sums, std::int64_t chunks,
                                      float inverse_temperature) {
    const int lane = threadIdx.x % kWarpSize;
    max = -INFINITY;
    for (std::int64_t i = lane; i < chunks; i += kWarpSize) max = fmaxf(max, maxima[i]);
    max = group_max<kWarpSize>(max);
    sum = 0;
    for (std::int64_t i = lane; i < chunks; i += kWarpSize) {
      sum += sums[i] * math::chunk_weight(maxima[i], max, inverse_temperature);
    }
    sum = group_sum<kWarpSize>(sum);
  }
};

// Thread blocks [0, B) merge the chunks of an image, a row or a pair per warp; the others merge the
// groups' column sums.
__global__ void __launch_bounds__(kMergeThreads) merge(PrototypeCrossEntropy p, Inverses inverses) {
  const PrototypeLogits& in = p.logits;
  if (blockIdx.x >= in.batch) {
    const std::int64_t c = (blockIdx.x - in.batch) * blockDim.x + threadIdx.x;
    if (c >= in.prototypes) return;
    const float* sums = static_cast<const float*>(p.column_sums) + c;
    float sum = 0;
#pragma unroll 4
    for (std::int64_t g = 0; g < p.shares.groups; ++g) sum += sums[g * p.shares.columns()];
    static_cast<float*>(p.teacher_mean)[c] = sum / static_cast<float>(in.teachers * in.batch);
    return;
  }
  const std::int64_t b = blockIdx.x, chunks = p.shares.chunks;
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  const math::PartialLayout layout{in.students, in.teachers};
  const auto partial = [&](std::int64_t index) {
    return static_cast<const float*>(p.partials) + (b * layout.size() + index) * chunks;
  };
  float* student = static_cast<float*>(p.student_stats) + b;
  float* teacher = static_cast<float*>(p.teacher_stats) + b;
  for (std::int64_t row = warp; row < in.students + in.teachers; row += warps) {
    const bool is_student = row < in.students;
    const std::int64_t v = is_student ? row : row - in.students;
    const RowStats stats(partial(is_student ? layout.student_max(v) : layout.teacher_max(v)),
                         partial(is_student ? layout.student_sum(v) : layout.teacher_sum(v)),
                         chunks, is_student ? inverses.student : inverses.teacher);
    if (lane == 0) {
      float* to = is_student ? student : teacher;
      to[v * in.batch] = stats.max;
      to[(v + (is_student ? in.students : in.teachers)) * in.batch] = stats.sum;
    }
  }
  __syncthreads();
  for (std::int64_t pair = warp; pair < in.teachers * in.students; pair += warps) {
    const std::int64_t t = pair / in.students, s = pair % in.students;
    const float *maxima = partial(layout.teacher_max(t)), *sums = partial(layout.teacher_sum(t));
    const float *shifts = partial(layout.student_max(s)), *dots = partial(layout.dot(t, s));
    const float max = teacher[t * in.batch], shift = math::shift_of(student[s * in.batch]);
    float dot = 0;
    for (std::int64_t i = lane; i < chunks; i += kWarpSize) {
      dot += math::chunk_weight(maxima[i], max, inverses.teacher) *
             (dots[i] + (math::shift_of(shifts[i]) - shift) * sums[i]);
    }
    dot = group_sum<kWarpSize>(dot);
    if (lane == 0) {
      static_cast<float*>(p.cross_entropy)[pair * in.batch + b] =
          std::log(student[(in.students + s) * in.batch]) -
          dot / teacher[(in.teachers + t) * in.batch] * inverses.student;
    }
  }
}

// Computes a teacher's probabilities e = exp((y - center - shift) / u) / sum.
template <typename T, bool kWhole>
__device__ __forceinline__ void probabilities(const PrototypeCrossEntropyBackward& p,
                                              float inverse_temperature, std::int64_t t,
                                              std::int64_t b, std::int64_t first,
                                              const Columns<T, kWhole>& columns,
                                              float (&e)[kColumns]) {
  const PrototypeLogits& in = p.logits;
  const float* stats = static_cast<const float*>(p.teacher_stats) + t * in.batch + b;
  const float scale = inverse_temperature * kLog2E;
  const float shift = math::shift_of(stats[0]), inverse = 1 / stats[in.teachers * in.batch];
  RawRow<T> row;
  row.load(row_of<T>(in.teacher, t, b) + first, columns);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) e[i] = row[i];
  subtract_center(in, first, columns, e);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) e[i] = exp2_fast((e[i] - shift) * scale) * inverse;
}

// Writes the gradient of an image's chunk. The probabilities of up to kTeachers teachers stay in
// registers; those of more teachers (kMany) are computed again for every student.
template <typename T, int kTeachers, bool kMany, bool kWhole>
__device__ __forceinline__ void backward_chunk(const PrototypeCrossEntropyBackward& p,
                                               const Inverses& inverses, std::int64_t b,
                                               std::int64_t first,
                                               const Columns<T, kWhole>& columns) {
  const PrototypeLogits& in = p.logits;
  const float scale = inverses.student * kLog2E;
  const float* stats = static_cast<const float*>(p.student_stats) + b;
  const float* grads = static_cast<const float*>(p.grad) + b;
  float q[kTeachers][kColumns];
  const auto load_teachers = [&](std::int64_t t0) {
#pragma unroll
    for (int t = 0; t < kTeachers; ++t) {
      if (t0 + t < in.teachers) {
        probabilities(p, inverses.teacher, t0 + t, b, first, columns, q[t]);
      } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) q[t][i] = 0;
      }
    }
  };
  StudentRows<T, kWhole> students{in, b, first, columns, {}};
  students.prefetch_first();
  students.begin();
  if constexpr (!kMany) load_teachers(0);
  for (std::int64_t s = 0; s < in.students; ++s) {
    const RawRow<T> row = students.take(s);
    float weight = 0, grad[kColumns] = {};
    for (std::int64_t t0 = 0; t0 < in.teachers; t0 += kTeachers) {
      if constexpr (kMany) load_teachers(t0);
#pragma unroll
      for (int t = 0; t < kTeachers; ++t) {
        if (t0 + t >= in.teachers) break;
        const float g = grads[((t0 + t) * in.students + s) * in.batch] * inverses.student;
        weight += g;
#pragma unroll
        for (int i = 0; i < kColumns; ++i) grad[i] -= g * q[t][i];
      }
    }
    weight /= stats[(in.students + s) * in.batch];
    const float shift = math::shift_of(stats[s * in.batch]);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      grad[i] += weight * exp2_fast((row[i] - shift) * scale);
    }
    store_row(grad, row_of<T>(p.grad_student, s, b) + first, columns);
  }
}

template <typename T, int kTeachers, bool kMany>
__global__ void __launch_bounds__(kThreads, kMany            ? 2
                                            : kTeachers == 1 ? 5
                                            : kTeachers == 2 ? 4
                                                             : 3)
    backward(PrototypeCrossEntropyBackward p, Inverses inverses, std::int64_t chunks,
             bool aligned) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  const std::int64_t b = i / chunks, first = i % chunks * kChunk;
  if (b >= p.logits.batch) return;
  const std::int64_t left = p.logits.prototypes - first;
  const int lane = threadIdx.x % kWarpSize;
  if (aligned && left >= kChunk) {
    backward_chunk<T, kTeachers, kMany>(p, inverses, b, first, Columns<T, true>{lane, kChunk});
  } else {
    const int count = left < kChunk ? static_cast<int>(left) : kChunk;
    backward_chunk<T, kTeachers, kMany>(p, inverses, b, first, Columns<T, false>{lane, count});
  }
}

// Whether whole chunks of all rows can be read or written 16 bytes at a time.
template <typename T, typename Void>
bool is_aligned(const ListedViews<Void>& views, std::int64_t count) {
  auto bits = static_cast<std::uintptr_t>(views.turn_stride) * sizeof(T);
  for (std::int64_t v = 0; v < count && v < views.kMost; ++v) {
    bits |= reinterpret_cast<std::uintptr_t>(views.data[v]) |
            static_cast<std::uintptr_t>(views.batch_strides[v]) * sizeof(T);
  }
  return bits % 16 == 0;
}

template <typename T>
bool is_aligned(const PrototypeLogits& p) {
  return is_aligned<T>(p.student, p.students) && is_aligned<T>(p.teacher, p.teachers) &&
         reinterpret_cast<std::uintptr_t>(p.center) % 16 == 0;
}

}  // namespace

int prototype_cross_entropy_cuda(const PrototypeCrossEntropy& p, cudaStream_t stream) {
  const PrototypeLogits& in = p.logits;
  return visit_cuda_dtype(in.dtype, [&]<typename T>() {
    const bool aligned = is_aligned<T>(in);
    const auto run = [&]<int kTeachers>() {
      return launch(forward<T, kTeachers>, blocks(p.shares.count(), 1), kThreads, stream, p,
                    Inverses(in), aligned);
    };
    const cudaError_t error = in.teachers == 1   ? run.template operator()<1>()
                              : in.teachers == 2 ? run.template operator()<2>()
                                                 : run.template operator()<4>();
    if (error != cudaSuccess) return error;
    const std::int64_t pairs = in.teachers * in.students, warps = kMergeThreads / kWarpSize;
    const auto threads = static_cast<unsigned>(pairs < warps ? pairs : warps) * kWarpSize;
    const std::int64_t columns = p.column_sums == nullptr ? 0 : in.prototypes;
    return launch(merge, blocks(in.batch + blocks(columns, threads), 1), threads, stream, p,
                  Inverses(in));
  });
}

int prototype_cross_entropy_backward_cuda(const PrototypeCrossEntropyBackward& p,
                                          cudaStream_t stream) {
  const PrototypeLogits& in = p.logits;
  return visit_cuda_dtype(in.dtype, [&]<typename T>() {
    const bool aligned = is_aligned<T>(in) && is_aligned<T>(p.grad_student, in.students);
    const std::int64_t chunks = (in.prototypes + kChunk - 1) / kChunk;
    const auto run = [&]<int kTeachers, bool kMany>() {
      return launch(backward<T, kTeachers, kMany>, blocks(in.batch * chunks, kWarps), kThreads,
                    stream, p, Inverses(in), chunks, aligned);
    };
    return in.teachers == 1   ? run.template operator()<1, false>()
           : in.teachers == 2 ? run.template operator()<2, false>()
           : in.teachers <= 4 ? run.template operator()<4, false>()
                              : run.template operator()<4, true>();
  });
}

}  // namespace mast_ext::kernels
