// Forward: a thread has a slice, and every eighth row of a share of a view's rows; the sums of a
// group of knots are in its registers. Sums of the eight warps and of the shares are merged in a
// fixed order. Backward: a thread has a slice and some neighboring rows, which share the loads of
// coefficients.
#include <bit>

#include "kernels/common/launch.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/sliced_characteristic_sums/sliced_characteristic_sums.h"

namespace mast_ext::kernels {
namespace {

constexpr int kWarps = 8, kGroup = static_cast<int>(kKnotGroup);
static_assert(kSlicesPerBlock == kWarpSize);

// cosine = cos(x), sine = sin(x), as rotations_cpu.h has them, with the same limits: within 2 ulp
// of 1 for |x| < 1e5. Up to 4e6 the error is that of an angle that is off by less than an ulp of x;
// beyond, where neighboring floats are a quarter of a turn apart and more, results are those of
// some angle. NaN for NaN and infinity. sincosf() would be exact there as well, but its reduction
// of large angles has an array in memory and takes registers from the loops around it.
__device__ __forceinline__ void rotation(float x, float& cosine, float& sine) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kEighth = 0.79f;       // a little more than pi / 4
  const float shifted = fmaf(x, 0.636619772f, kRound);
  const auto quarters = std::bit_cast<unsigned>(shifted);
  const float turns = shifted - kRound;
  // pi / 2 in parts that are short enough for exact products with numbers of quarter turns.
  float r = fmaf(turns, -1.5703125f, x);
  r = fmaf(turns, -4.837512969970703125e-4f, r);
  r = fmaf(turns, -7.54978995489188216e-8f, r);
  // Comparisons with a NaN are false: it stays one.
  r = r > kEighth ? kEighth : r;
  r = r < -kEighth ? -kEighth : r;
  const float square = r * r;
  // Minimax polynomials on |r| <= pi / 4.
  float s = fmaf(square, -1.95152959e-4f, 8.33216087e-3f);
  s = fmaf(s, square, -1.66666546e-1f);
  s = fmaf(s, square * r, r);
  float c = fmaf(square, 2.44331571e-5f, -1.38873163e-3f);
  c = fmaf(c, square, 4.16666457e-2f);
  c = fmaf(c, square, -0.5f);
  c = fmaf(c, square, 1.0f);
  const bool odd = (quarters & 1) != 0;
  const auto with_sign = [](float magnitude, unsigned sign) {
    return std::bit_cast<float>(std::bit_cast<unsigned>(magnitude) ^ sign);
  };
  cosine = with_sign(odd ? s : c, ((quarters + 1) & 2) << 30);
  sine = with_sign(odd ? c : s, (quarters & 2) << 30);
}

// e^{i angle}
struct Rotation {
  float cosine, sine;

  __device__ __forceinline__ explicit Rotation(float angle) { rotation(angle, cosine, sine); }

  __device__ __forceinline__ void rotate(const Rotation& w) {
    const float c = cosine;
    cosine = c * w.cosine - sine * w.sine;
    sine = sine * w.cosine + c * w.sine;
  }
};

// The grid's x dimension has the blocks of slices of every view, y the shares.
__global__ void __launch_bounds__(kWarps* kWarpSize) add_rows(SlicedCharacteristicSums p) {
  __shared__ float partial[kWarps][2 * kGroup][kWarpSize];
  const ProjectionTile& tile = p.tile;
  const std::int64_t blocks = (tile.slices + kSlicesPerBlock - 1) / kSlicesPerBlock;
  const std::int64_t view = blockIdx.x / blocks, share = blockIdx.y;
  const std::int64_t m = blockIdx.x % blocks * kSlicesPerBlock + threadIdx.x;
  const bool inside = m < tile.slices;
  const std::int64_t last = tile.rows * (share + 1) / p.shares;
  const auto* x = static_cast<const float*>(p.projections) + view * tile.rows * tile.stride + m;
  const auto step = static_cast<float>(tile.grid.step);
  const bool to_parts = p.shares > 1, adds = p.add && !to_parts;
  float* to = static_cast<float*>(to_parts ? p.parts : p.sums) +
              ((to_parts ? share * tile.views : 0) + view) * tile.grid.knots * 2 * tile.slices;
  for (std::int64_t first = 0; first < tile.grid.knots; first += kGroup) {
    const int count = static_cast<int>(tile.grid.group_size(first));
    const auto t = static_cast<float>(tile.grid.t(first));
    float sums[2 * kGroup] = {};
    for (std::int64_t n = tile.rows * share / p.shares + threadIdx.y; inside && n < last;
         n += kWarps) {
      const float projection = x[n * tile.stride];
      const Rotation w(step * projection);
      Rotation at(t * projection);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k == count) break;
        sums[2 * k] += at.cosine;
        sums[2 * k + 1] += at.sine;
        at.rotate(w);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kGroup; ++i) partial[threadIdx.y][i][threadIdx.x] = sums[i];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.y); inside && i < 2 * count; i += kWarps) {
      float sum = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += partial[warp][i][threadIdx.x];
      float& slot = to[(2 * first + i) * tile.slices + m];
      slot = adds ? slot + sum : sum;
    }
    __syncthreads();  // the next group writes `partial` again
  }
}

constexpr int kMergeThreads = 128;

__global__ void __launch_bounds__(kMergeThreads) add_shares(SlicedCharacteristicSums p) {
  const std::int64_t count = p.tile.views * p.tile.grid.knots * 2 * p.tile.slices;
  const std::int64_t i = std::int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  if (i >= count) return;
  const auto* parts = static_cast<const float*>(p.parts) + i;
  float& slot = static_cast<float*>(p.sums)[i];
  float sum = p.add ? slot : 0.0f;
#pragma unroll 4
  for (std::int64_t share = 0; share < p.shares; ++share) sum += parts[share * count];
  slot = sum;
}

constexpr int kRows = 8, kSliceThreads = 128;

// The grid's x dimension has the blocks of slices of every group of rows of every view.
__global__ void __launch_bounds__(kSliceThreads) differentiate(SlicedCharacteristicSumsBackward p) {
  const ProjectionTile& tile = p.tile;
  const std::int64_t blocks = (tile.slices + kSliceThreads - 1) / kSliceThreads;
  const std::int64_t groups = (tile.rows + kRows - 1) / kRows;
  const std::int64_t m = blockIdx.x % blocks * kSliceThreads + threadIdx.x;
  if (m >= tile.slices) return;
  const std::int64_t view = blockIdx.x / blocks / groups;
  const std::int64_t first_row = blockIdx.x / blocks % groups * kRows;
  const std::int64_t rows = tile.rows - first_row;  // kRows of these, or fewer
  const std::int64_t first = (view * tile.rows + first_row) * tile.stride + m;
  const float* x = static_cast<const float*>(p.projections) + first;
  float* to = static_cast<float*>(p.grad) + first;
  const float* grad_sums =
      static_cast<const float*>(p.grad_sums) + view * tile.grid.knots * 2 * tile.slices + m;
  const auto step = static_cast<float>(tile.grid.step);
  float projection[kRows], w_cosine[kRows], w_sine[kRows], grad[kRows] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    projection[i] = i < rows ? x[i * tile.stride] : 0.0f;
    const Rotation w(step * projection[i]);
    w_cosine[i] = w.cosine, w_sine[i] = w.sine;
  }
  // The real part of the polynomial in w with coefficients t_k (G_k1 + i G_k0), by Horner's method.
  for (std::int64_t begin = 0; begin < tile.grid.knots; begin += kGroup) {
    float real[kRows] = {}, imaginary[kRows] = {};
    for (std::int64_t k = begin + tile.grid.group_size(begin) - 1; k >= begin; --k) {
      const auto t = static_cast<float>(tile.grid.t(k));
      const float of_cosine = t * grad_sums[2 * k * tile.slices];
      const float of_sine = t * grad_sums[(2 * k + 1) * tile.slices];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float r = real[i], s = imaginary[i];
        real[i] = r * w_cosine[i] - s * w_sine[i] + of_sine;
        imaginary[i] = s * w_cosine[i] + r * w_sine[i] + of_cosine;
      }
    }
    const auto t = static_cast<float>(tile.grid.t(begin));
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Rotation at(t * projection[i]);
      grad[i] += real[i] * at.cosine - imaginary[i] * at.sine;
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i < rows) to[i * tile.stride] = grad[i];
  }
}

}  // namespace

int sliced_characteristic_sums_cuda(const SlicedCharacteristicSums& p, cudaStream_t stream) {
  const ProjectionTile& tile = p.tile;
  const dim3 grid(blocks(tile.views * ((tile.slices + kSlicesPerBlock - 1) / kSlicesPerBlock), 1),
                  static_cast<unsigned>(p.shares));
  const cudaError_t error = launch(add_rows, grid, dim3(kWarpSize, kWarps), stream, p);
  if (error != cudaSuccess || p.shares == 1) return error;
  const std::int64_t sums = tile.views * tile.grid.knots * 2 * tile.slices;
  return launch(add_shares, blocks(sums, kMergeThreads), kMergeThreads, stream, p);
}

int sliced_characteristic_sums_backward_cuda(const SlicedCharacteristicSumsBackward& p,
                                             cudaStream_t stream) {
  const ProjectionTile& tile = p.tile;
  const std::int64_t groups = tile.views * ((tile.rows + kRows - 1) / kRows);
  const std::int64_t columns = (tile.slices + kSliceThreads - 1) / kSliceThreads;
  return launch(differentiate, blocks(groups * columns, 1), kSliceThreads, stream, p);
}

}  // namespace mast_ext::kernels
