// Elements of G are visited in squares of 32 x 32: a square below the diagonal is read with the one
// above it, which is transposed in shared memory. A thread block has 32 rows and walks the columns.
// There are no atomic additions: every sum has a fixed order.
#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/element_grid.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/gram_difference/gram_difference.h"
#include "kernels/gram_difference/gram_difference_math.h"

namespace mast_ext::kernels {
namespace {

constexpr int kSide = kWarpSize;  // of a square
static_assert(kSide == kGramRows);
constexpr int kWarps = 8;  // of a thread block; a warp has every eighth row of a square
constexpr int kThreads = kWarps * kWarpSize;

template <typename T>
__global__ void __launch_bounds__(kElementThreads) write_operands(GramOperands p) {
  const std::int64_t d = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (d >= p.dim) return;
  for_rows(p.images * p.rows, [&](std::int64_t i) {
    const std::int64_t image = i / p.rows, row = i % p.rows;
    const float x = static_cast<float>(row_of<T>(p.s, image, row)[d]);
    const float y = static_cast<float>(row_of<T>(p.t, image, row)[d]);
    float* z = static_cast<float*>(p.z) + i * 2 * p.dim;
    z[d] = x - y;
    z[p.dim + d] = x + y;
  });
}

// Calls body(position, element of G) for the elements of the calling thread, all threads of a block
// together. `image` and the first row are those of the block.
template <RemoveNegative remove, typename Body>
__device__ __forceinline__ void for_elements(const GramTile& p, std::int64_t image,
                                             std::int64_t first, const Body& body) {
  __shared__ float mirrored[kSide][kSide + 1];  // the padding avoids bank conflicts
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const std::int64_t start = image * p.rows * p.columns;
  const float* products = static_cast<const float*>(p.products) + start;
  const float* teacher = static_cast<const float*>(p.teacher) + start;
  for (std::int64_t column = 0; column < p.columns; column += kSide) {
    if (p.diagonal) {  // rows are columns
      for (int i = warp; i < kSide; i += kWarps) {
        if (column + i < p.columns && first + lane < p.rows) {
          mirrored[i][lane] = products[(column + i) * p.columns + first + lane];
        }
      }
      __syncthreads();
    }
    const std::int64_t j = column + lane;
    for (int i = warp; i < kSide; i += kWarps) {
      if (first + i >= p.rows || j >= p.columns) continue;
      const std::int64_t at = (first + i) * p.columns + j;
      const float sum = products[at] + (p.diagonal ? mirrored[lane][i] : 0.0f);
      const float y = remove == RemoveNegative::kNone ? 0.0f : teacher[at];
      body(start + at, gram_math::element<remove>(0.5f * sum, y));
    }
    if (p.diagonal) {  // the next square is written
      __syncthreads();
    }
  }
}

template <RemoveNegative remove>
__global__ void __launch_bounds__(kThreads) add_squares(GramTile p) {
  const std::int64_t blocks = (p.rows + kSide - 1) / kSide;
  const std::int64_t image = blockIdx.x / blocks, block = blockIdx.x % blocks;
  float sum = 0;
  for_elements<remove>(p, image, block * kSide,
                       [&](std::int64_t, const gram_math::Element<float>& g) {
                         sum += g.difference * g.difference;
                       });
  const double total = block_sum<kThreads>(static_cast<double>(sum));
  if (threadIdx.x != 0) return;
  double* to = p.sums + image * p.sums_stride + block;
  *to = (p.add ? *to : 0) + p.weight * total;
}

template <RemoveNegative remove>
__global__ void __launch_bounds__(kThreads) write_weights(GramTile p) {
  const std::int64_t blocks = (p.rows + kSide - 1) / kSide;
  const std::int64_t image = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const float scale = static_cast<float>(p.scale) * static_cast<const float*>(p.grad)[image];
  float* student = static_cast<float*>(p.student_weights);
  float* teacher = static_cast<float*>(p.teacher_weights);
  for_elements<remove>(p, image, block * kSide,
                       [&](std::int64_t at, const gram_math::Element<float>& g) {
                         if (student != nullptr) student[at] = scale * g.student;
                         if (teacher != nullptr) teacher[at] = -scale * g.teacher;
                       });
}

// In double, because the two products cancel where t is next to a rotation of s.
__global__ void __launch_bounds__(kThreads) add_traces(GramMoments p) {
  const std::int64_t blocks = (p.dim + kSide - 1) / kSide;
  const std::int64_t image = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const float* moments = static_cast<const float*>(p.moments) + image * 4 * p.dim * p.dim;
  double sum = 0;
  for (int i = warp; i < kSide; i += kWarps) {
    const std::int64_t d = block * kSide + i;
    if (d >= p.dim) break;
    const float *upper = moments + d * 2 * p.dim, *lower = moments + (p.dim + d) * 2 * p.dim;
    for (std::int64_t e = lane; e < p.dim; e += kWarpSize) {
      sum += static_cast<double>(upper[e]) * static_cast<double>(lower[p.dim + e]) +
             static_cast<double>(upper[p.dim + e]) * static_cast<double>(lower[e]);
    }
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) p.sums[blockIdx.x] = sum;
}

// Rows of (R^T, Q; P, R), which are the rows of the moments with their halves exchanged.
__global__ void __launch_bounds__(kElementThreads) write_matrices(GramMoments p) {
  const std::int64_t e = std::int64_t{blockIdx.x} * kElementThreads + threadIdx.x, dim = p.dim;
  if (e >= dim) return;
  float *student = static_cast<float*>(p.student_matrix),
        *teacher = static_cast<float*>(p.teacher_matrix);
  const auto* moments = static_cast<const float*>(p.moments);
  for_rows(p.images * 2 * dim, [&](std::int64_t row) {
    const std::int64_t image = row / (2 * dim);
    const bool upper = row - image * 2 * dim < dim;
    const float scale = static_cast<float>(p.scale) * static_cast<const float*>(p.grad)[image];
    const float* from = moments + (upper ? row + dim : row - dim) * 2 * dim + e;
    const float first = from[0], second = from[dim];
    if (student != nullptr) student[row * dim + e] = scale * (first + second);
    if (teacher != nullptr) teacher[row * dim + e] = scale * (first - second);
  });
}

// A warp for every image.
__global__ void __launch_bounds__(kThreads) finish(GramFinish p) {
  const std::int64_t image =
      std::int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  if (image >= p.images) return;
  double sum = 0;
  for (std::int64_t i = threadIdx.x % kWarpSize; i < p.blocks; i += kWarpSize) {
    sum += p.sums[image * p.blocks + i];
  }
  sum = group_sum<kWarpSize>(sum);
  if (threadIdx.x % kWarpSize != 0) return;
  // A rounding error can make the difference of two traces negative.
  static_cast<float*>(p.difference)[image] = static_cast<float>(sum < 0 ? 0 : p.scale * sum);
}

// Calls body.operator()<remove>().
template <typename Body>
int visit(const GramTile& p, const Body& body) {
  switch (p.remove) {
    case RemoveNegative::kTeacher:
      return body.template operator()<RemoveNegative::kTeacher>();
    case RemoveNegative::kBoth:
      return body.template operator()<RemoveNegative::kBoth>();
    case RemoveNegative::kNone:
      break;
  }
  return body.template operator()<RemoveNegative::kNone>();
}

unsigned tile_grid(const GramTile& p) { return blocks(p.images * gram_blocks(p.rows), 1); }

}  // namespace

int gram_operands_cuda(const GramOperands& p, cudaStream_t stream) {
  const dim3 grid = element_grid(p.images * p.rows, p.dim);
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    return launch(write_operands<T>, grid, kElementThreads, stream, p);
  });
}

int gram_tile_cuda(const GramTile& p, cudaStream_t stream) {
  return visit(p, [&]<RemoveNegative remove>() {
    return launch(add_squares<remove>, tile_grid(p), kThreads, stream, p);
  });
}

int gram_tile_backward_cuda(const GramTile& p, cudaStream_t stream) {
  return visit(p, [&]<RemoveNegative remove>() {
    return launch(write_weights<remove>, tile_grid(p), kThreads, stream, p);
  });
}

int gram_moments_cuda(const GramMoments& p, cudaStream_t stream) {
  return launch(add_traces, blocks(p.images * gram_blocks(p.dim), 1), kThreads, stream, p);
}

int gram_moments_backward_cuda(const GramMoments& p, cudaStream_t stream) {
  return launch(write_matrices, element_grid(p.images * 2 * p.dim, p.dim), kElementThreads, stream,
                p);
}

int gram_finish_cuda(const GramFinish& p, cudaStream_t stream) {
  return launch(finish, blocks(p.images, kWarps), kThreads, stream, p);
}

}  // namespace mast_ext::kernels
