// The lanes of a warp have neighboring images, so that they read neighboring losses. The warps of a
// thread block divide the pairs (or tuples) of these images and merge their best ones at the end.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/select_hard_crops/select_hard_crops.h"

namespace mast_ext::kernels {
namespace {

constexpr int kImages = kWarpSize, kWarps = 8;

template <typename T>
struct Image {
  const SelectHardCrops& p;
  const T* losses;

  __device__ __forceinline__ float ce(std::int64_t teacher, std::int64_t student) const {
    return static_cast<float>(losses[p.at(teacher, student)]);
  }

  __device__ __forceinline__ float term(std::int64_t a, std::int64_t c, std::int64_t crop) const {
    return ce(a, crop) + ce(c, crop);
  }

  // Whether local l has one of the num_locals largest terms with (a, c).
  __device__ __forceinline__ bool chosen(std::int64_t a, std::int64_t c, std::int64_t l) const {
    const float own = term(a, c, p.globals + l);
    std::int64_t rank = 0;
#pragma unroll 4
    for (std::int64_t other = 0; other < p.locals; ++other) {
      const float term_of_other = term(a, c, p.globals + other);
      rank += other < l ? !is_harder(own, term_of_other) : is_harder(term_of_other, own);
    }
    return rank < p.num_locals;
  }

  __device__ float score(std::int64_t candidate) const {
    if (p.tuples != nullptr) {
      const std::int64_t* tuple = p.tuples + candidate * (2 + p.num_locals);
      float sum = ce(tuple[0], tuple[1]) + ce(tuple[1], tuple[0]);
      for (std::int64_t i = 0; i < p.num_locals; ++i) sum += term(tuple[0], tuple[1], tuple[2 + i]);
      return sum;
    }
    const std::int64_t a = p.even(candidate), c = p.odd(candidate);
    float sum = ce(a, c) + ce(c, a);
    for (std::int64_t l = 0; l < p.locals; ++l) {
      if (chosen(a, c, l)) sum += term(a, c, p.globals + l);
    }
    return sum;
  }

  __device__ void write(std::int64_t candidate, std::int64_t b) const {
    if (p.tuples != nullptr) {
      const std::int64_t width = 2 + p.num_locals;
      for (std::int64_t i = 0; i < width; ++i) {
        p.index[i * p.batch + b] = p.tuples[candidate * width + i];
      }
      return;
    }
    const std::int64_t a = p.even(candidate), c = p.odd(candidate);
    std::int64_t* to = p.index + b;
    to[0] = a;
    to[p.batch] = c;
    to += 2 * p.batch;
    for (std::int64_t l = 0; l < p.locals; ++l) {
      if (!chosen(a, c, l)) continue;
      *to = p.globals + l;
      to += p.batch;
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kImages* kWarps) select(SelectHardCrops p) {
  __shared__ float scores[kWarps][kImages];
  __shared__ std::int64_t candidates[kWarps][kImages];
  const std::int64_t b = std::int64_t{blockIdx.x} * kImages + threadIdx.x;
  const Image<T> image{p, static_cast<const T*>(p.ce) + b};
  float best = 0;
  std::int64_t best_candidate = -1;
  if (b < p.batch) {
    for (std::int64_t i = threadIdx.y; i < p.count; i += kWarps) {
      const float score = image.score(i);
      if (best_candidate >= 0 && !is_harder(score, best)) continue;
      best = score;
      best_candidate = i;
    }
  }
  scores[threadIdx.y][threadIdx.x] = best;
  candidates[threadIdx.y][threadIdx.x] = best_candidate;
  __syncthreads();
  if (threadIdx.y != 0 || b >= p.batch) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    const std::int64_t candidate = candidates[warp][threadIdx.x];
    if (candidate < 0) break;  // there are fewer candidates than warps
    const float score = scores[warp][threadIdx.x];
    const bool first_of_equals = candidate < best_candidate && !is_harder(best, score);
    if (!is_harder(score, best) && !first_of_equals) continue;
    best = score;
    best_candidate = candidate;
  }
  static_cast<float*>(p.score)[b] = best;
  image.write(best_candidate, b);
}

}  // namespace

int select_hard_crops_cuda(const SelectHardCrops& p, cudaStream_t stream) {
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    return launch(select<T>, blocks(p.batch, kImages), dim3(kImages, kWarps), stream, p);
  });
}

}  // namespace mast_ext::kernels
