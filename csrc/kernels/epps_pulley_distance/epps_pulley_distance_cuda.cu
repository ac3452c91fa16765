// Forward: a thread block has a view, whose sums are few enough that a second launch, to add up
// what several blocks have found, would take longer; a warp has every 32nd row. Backward: a block
// has a row.
#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/epps_pulley_distance/epps_pulley_distance.h"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarpSize;
constexpr int kGradThreads = 256;

__global__ void __launch_bounds__(kThreads) measure(EppsPulleyDistance p) {
  constexpr int kLoads = 8;  // added in float: many GPUs have few units for double
  const EppsPulleySums& in = p.in;
  const auto images = number_of_images<float>(in);
  const float* x = static_cast<const float*>(in.sums) + blockIdx.x * in.rows_of_view() * in.slices;
  double total = 0;
  for (std::int64_t row = threadIdx.x / kWarpSize; row < in.rows_of_view(); row += kWarps) {
    const EppsPulleyRow<float> of(in, row, images);
    double sum = 0;
    for (std::int64_t m = threadIdx.x % kWarpSize; m < in.slices; m += kLoads * kWarpSize) {
      float part = 0;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const std::int64_t at = m + i * kWarpSize;
        const float difference = at < in.slices ? of.difference(x[row * in.slices + at]) : 0.0f;
        part += difference * difference;
      }
      sum += part;
    }
    total += of.weight * sum;
  }
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) {
    static_cast<float*>(p.distance)[blockIdx.x] =
        static_cast<float>(images / static_cast<double>(in.slices) * total);
  }
}

__global__ void __launch_bounds__(kGradThreads) write_grads(EppsPulleyDistanceBackward p) {
  const EppsPulleySums& in = p.in;
  const std::int64_t view = blockIdx.x / in.rows_of_view(), row = blockIdx.x % in.rows_of_view();
  const EppsPulleyRow<float> of(in, row, number_of_images<float>(in));
  const float grad = static_cast<const float*>(p.grad)[view];
  const float factor = 2 * grad * of.weight / static_cast<float>(in.slices);
  const float* x = static_cast<const float*>(in.sums) + blockIdx.x * in.slices;
  float* const to = static_cast<float*>(p.grad_sums) + blockIdx.x * in.slices;
#pragma unroll 4
  for (std::int64_t m = threadIdx.x; m < in.slices; m += kGradThreads) {
    to[m] = factor * of.difference(x[m]);
  }
}

}  // namespace

int epps_pulley_distance_cuda(const EppsPulleyDistance& p, cudaStream_t stream) {
  if (p.in.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  return launch(measure, blocks(p.in.views, 1), kThreads, stream, p);
}

int epps_pulley_distance_backward_cuda(const EppsPulleyDistanceBackward& p, cudaStream_t stream) {
  if (p.in.dtype != DType::kFloat32) return cudaErrorInvalidValue;
  return launch(write_grads, blocks(p.in.views * p.in.rows_of_view(), 1), kGradThreads, stream, p);
}

}  // namespace mast_ext::kernels
