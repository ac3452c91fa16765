// What a step of few images spends its time on are launches: one thread block makes all three terms
// and their sum, and one launch of the backward writes all that a matrix product is not needed for.
#include "kernels/columns/column_packets.cuh"
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/grouped_means/grouped_means_cuda.cuh"
#include "kernels/variance_covariance/variance_covariance_cuda.cuh"
#include "kernels/vicreg_terms/vicreg_terms.h"
#include "kernels/weighted_terms/weighted_terms_cuda.cuh"

namespace mast_ext::kernels {
namespace {

using namespace variance_covariance_cuda;

// The squares of a small product's elements, without the diagonals of the direct form.
template <typename P>
__device__ __forceinline__ double sum_of_squares(const VarianceCovarianceShape& s) {
  constexpr int kLoads = 8;  // at once
  const P* product = static_cast<const P*>(s.product);
  const int side = static_cast<int>(s.gram ? s.rows : s.dim);
  const int count = static_cast<int>(s.views) * side * side;
  double sum = 0;
  for (int first = static_cast<int>(threadIdx.x); first < count; first += kLoads * kFinishThreads) {
    float values[kLoads], some = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = first + i * kFinishThreads;
      values[i] = at < count ? static_cast<float>(product[at]) : 0;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = first + i * kFinishThreads;
      const bool diagonal = at / side % side == at % side;
      some += s.gram || !diagonal ? values[i] * values[i] : 0;
    }
    sum += some;
  }
  return block_sum<kFinishThreads>(sum);
}

// The sum of the numbers, or of the means of groups.
__device__ __forceinline__ double sum_of_invariance(const VicregTerms& p) {
  if (p.invariance != nullptr) {
    return sum_of_all<kFinishThreads>(static_cast<const float*>(p.invariance), p.numbers);
  }
  double sum = 0;
  for (std::int64_t d = threadIdx.x; d < p.groups.in.dim; d += kFinishThreads) {
    sum += write_mean(p.groups, d);
  }
  return block_sum<kFinishThreads>(sum);
}

template <typename P>
__global__ void __launch_bounds__(kFinishThreads) finish_terms(VicregTerms p) {
  const VarianceCovarianceShape& s = p.batch.shape;
  const double invariance = sum_of_invariance(p);
  double hinges = 0, pairs = p.batch.row_sums == nullptr ? sum_of_squares<P>(s) : 0;
  for (std::int64_t v = 0; v < s.views; ++v) {
    const ViewSums sums = view_sums(p.batch, 0, v);
    hinges += sums.hinges;
    pairs += sums.pairs;
  }
  if (threadIdx.x != 0) return;
  const double sums[] = {invariance, hinges / static_cast<double>(s.dim),
                         pairs * math::covariance_scale<double>(s)};
  double total = 0;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const double term = p.scales[i] * sums[i];
    static_cast<float*>(p.terms)[i] = static_cast<float>(term);
    total += p.weights[i] * term;
  }
  *static_cast<float*>(p.total) = static_cast<float>(total);
}

// The gradients of the numbers and of the groups' weights, by all threads of the grid.
__device__ __forceinline__ void fill_invariance(const VicregTermsBackward& p) {
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  const std::int64_t first = std::int64_t{blockIdx.x} * kPacketThreads + thread;
  const std::int64_t step = std::int64_t{gridDim.x} * kPacketThreads;
  if (p.grad_invariance != nullptr) {
    const double grad = *static_cast<const float*>(p.grad);
    const float value = static_cast<float>(grad * p.invariance_factor);
    for (std::int64_t i = first; i < p.numbers; i += step) {
      static_cast<float*>(p.grad_invariance)[i] = value;
    }
  }
  if (p.means.grad_weights == nullptr) return;
  const std::int64_t dim = p.means.in.dim;
  for (std::int64_t i = first; i < p.means.in.groups * dim; i += step) {
    const float counts = static_cast<const float*>(p.means.in.counts)[i / dim];
    static_cast<float*>(p.means.grad_weights)[i] =
        MeanSlope<float>(p.means, i % dim).of_weight(p.means, i, counts);
  }
}

// How the differences of the views pull at x, in N dimensions from d on.
template <typename T, int N>
struct Pull {
  std::int64_t d;
  float factor[N];  // of all rows, or of those of a group whose weight is 1

  __device__ __forceinline__ Pull(const VicregTermsBackward& p, std::int64_t d_) : d(d_) {
    const float all = *static_cast<const float*>(p.grad) * static_cast<float>(p.difference_factor);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      factor[i] = p.group == nullptr ? all : 2 * MeanSlope<float>(p.means, d + i).share;
    }
  }

  __device__ __forceinline__ void of_row(const VicregTermsBackward& p, std::int64_t n,
                                         float (&pull)[N]) const {
    RawPacket<T, N> x, y;
    x.load(row_of<T>(p.z, 0, n) + d);
    y.load(row_of<T>(p.z, 1, n) + d);
    float weight[N];
#pragma unroll
    for (int i = 0; i < N; ++i) weight[i] = 1;
    if (p.group != nullptr) {
      const std::int64_t g = p.group[n];
      if (g < 0 || g >= p.means.in.groups) {
#pragma unroll
        for (int i = 0; i < N; ++i) pull[i] = 0;
        return;
      }
      read<N>(static_cast<const float*>(p.means.in.weights) + g * p.z.dim + d, weight);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) pull[i] = weight[i] * factor[i] * (x[i] - y[i]);
  }
};

// The first thread blocks write the matrix, those beyond them the differences.
template <typename T, typename P, int N>
__global__ void __launch_bounds__(kPacketThreads)
    matrix_and_differences(VicregTermsBackward p, PacketGrid grid) {
  fill_invariance(p);
  if (blockIdx.x < grid.grid.x) return write_matrix<P, N>(p.batch, grid);
  const std::int64_t first = std::int64_t{blockIdx.x - grid.grid.x} * blockDim.y + threadIdx.y;
  const std::int64_t step = std::int64_t{gridDim.x - grid.grid.x} * blockDim.y;
  T* const grad_x = static_cast<T*>(p.batch.grad_z);
  T* const grad_y = grad_x + p.z.rows * p.z.dim;
  for (std::int64_t d = std::int64_t{threadIdx.x} * N; d < p.z.dim; d += blockDim.x * N) {
    const Pull<T, N> of(p, d);
    for (std::int64_t n = first; n < p.z.rows; n += step) {
      float pull[N], push[N];
      of.of_row(p, n, pull);
#pragma unroll
      for (int i = 0; i < N; ++i) push[i] = -pull[i];
      write<N>(pull, grad_x + n * p.z.dim + d);
      write<N>(push, grad_y + n * p.z.dim + d);
    }
  }
}

template <typename T, typename P, int N>
__global__ void __launch_bounds__(kPacketThreads)
    combine_with_differences(VicregTermsBackward p, PacketGrid grid) {
  fill_invariance(p);
  combine_rows<T, P, N>(p.batch, grid, [&](std::int64_t view, std::int64_t d) {
    return [&p, view, of = Pull<T, N>(p, d)](std::int64_t n, float (&sum)[N]) {
      if (p.difference_factor == 0) return;
      float pull[N];
      of.of_row(p, n, pull);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += view == 0 ? pull[i] : -pull[i];
    };
  });
}

// Whether views and weights of groups can be read in packets of N dimensions.
template <typename T>
bool reads_packets(const VicregTermsBackward& p, int N) {
  return in_packets(p.z, sizeof(T), N) && aligned(p.means.in.weights, sizeof(float) * N);
}

}  // namespace

int vicreg_terms_finish_cuda(const VicregTerms& p, cudaStream_t stream) {
  return visit_product_dtype(p.batch.shape.dtype, [&]<typename T, typename P>() {
    return launch(finish_terms<P>, 1, kFinishThreads, stream, p);
  });
}

int vicreg_terms_matrix_cuda(const VicregTermsBackward& p, cudaStream_t stream) {
  const VarianceCovarianceShape& s = p.batch.shape;
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = aligned(s.product, 16) && aligned(p.batch.matrix, 16) &&
                         aligned(p.batch.grad_z, sizeof(T) * N) && reads_packets<T>(p, N);
    const PacketGrid grid = packet_grid(s.views, s.dim, packets ? s.dim / N : s.dim);
    constexpr unsigned kMostBlocks = 1024;
    const unsigned rows = blocks(s.rows, grid.block.y);
    const unsigned more = p.difference_factor == 0 ? 0 : rows < kMostBlocks ? rows : kMostBlocks;
    const dim3 all = grid.grid.x + more;
    return packets ? launch(matrix_and_differences<T, P, N>, all, grid.block, stream, p, grid)
                   : launch(matrix_and_differences<T, P, 1>, all, grid.block, stream, p, grid);
  });
}

int vicreg_terms_combine_cuda(const VicregTermsBackward& p, cudaStream_t stream) {
  return visit_product_dtype(p.z.dtype, [&]<typename T, typename P>() {
    constexpr int N = 16 / sizeof(P);
    const bool packets = combines_in_packets<T, P>(p.batch) && reads_packets<T>(p, N);
    const PacketGrid grid = combine_grid(p.batch, packets ? N : 1);
    return packets
               ? launch(combine_with_differences<T, P, N>, grid.grid, grid.block, stream, p, grid)
               : launch(combine_with_differences<T, P, 1>, grid.grid, grid.block, stream, p, grid);
  });
}

}  // namespace mast_ext::kernels
