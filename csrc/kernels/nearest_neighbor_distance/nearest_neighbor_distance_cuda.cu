// The search is in nearest_search.cuh. There are no atomic operations: every result has a fixed
// order of computation.
#include <cmath>
#include <limits>

#include "kernels/common/dtype_cuda.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/packets.cuh"
#include "kernels/common/reductions.cuh"
#include "kernels/nearest_neighbor_distance/nearest_neighbor_distance.h"
#include "kernels/nearest_neighbor_distance/nearest_search.cuh"

namespace mast_ext::kernels {
namespace {

constexpr int kThreads = 128;  // of the kernels that give a row a warp or a thread block
constexpr int kPacket = 8;     // elements that a thread takes at once

// The rows of x. kAligned: rows are whole packets that may be loaded as such.
template <typename T, bool kAligned>
struct Rows {
  const T* x;
  std::int64_t stride;
  int dim;

  __device__ __forceinline__ explicit Rows(const UnitRows& p)
      : x(static_cast<const T*>(p.x)), stride(p.row_stride), dim(static_cast<int>(p.dim)) {}

  // Elements d to d + 8 of row i; zeros behind its end.
  __device__ __forceinline__ void read(std::int64_t i, int d, float (&to)[kPacket]) const {
    const T* from = x + i * stride + d;
    if constexpr (kAligned) {
      constexpr int kVector = 16 / sizeof(T);
      if (d >= dim) {
#pragma unroll
        for (float& value : to) value = 0;
        return;
      }
#pragma unroll
      for (int v = 0; v < kPacket; v += kVector) {
        float values[kVector];
        kernels::read<kVector>(from + v, values);
#pragma unroll
        for (int e = 0; e < kVector; ++e) to[v + e] = values[e];
      }
    } else {
#pragma unroll
      for (int e = 0; e < kPacket; ++e) to[e] = d + e < dim ? static_cast<float>(from[e]) : 0.0f;
    }
  }

  // Of row i, whose inverse norm is r, normalized. The product is rounded as it is: see
  // NearestNeighborDistanceBackward.
  __device__ __forceinline__ void read_unit(std::int64_t i, float r, int d,
                                            float (&to)[kPacket]) const {
    read(i, d, to);
#pragma unroll
    for (float& value : to) value = __fmul_rn(value, r);
  }

  __device__ __forceinline__ bool has(int d) const { return kAligned || d < dim; }

  // The inverse norm of row i, to all lanes of the warp that calls it.
  __device__ __forceinline__ float inverse_norm(std::int64_t i, double eps) const {
    float squares = 0;
    for (int d = static_cast<int>(threadIdx.x) % kWarpSize * kPacket; d < dim;
         d += kWarpSize * kPacket) {
      float values[kPacket];
      read(i, d, values);
#pragma unroll
      for (const float value : values) squares += value * value;
    }
    const float norm = sqrtf(group_sum<kWarpSize>(squares));
    return norm < static_cast<float>(eps) ? static_cast<float>(1 / eps) : 1 / norm;
  }
};

__device__ __forceinline__ std::int64_t row_of_warp() {
  return (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
}
__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// The numbers that the search multiplies.
template <typename T>
using plane_t = std::conditional_t<std::is_same_v<T, float>, c10::Half, T>;
template <typename T>
inline constexpr int kPlanes = std::is_same_v<T, float> ? 2 : 1;

// Writes y, s and r of every row, each by a warp.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) write_planes(UnitRows p, NearestSearch search) {
  using Number = plane_t<T>;
  const std::int64_t i = row_of_warp();
  if (i >= search.padded_rows) return;  // the same for all lanes of a warp
  const Rows<T, kAligned> rows(p);
  const bool exists = i < p.rows;
  const float r = exists ? rows.inverse_norm(i, p.eps) : 0.0f;
  // r = s power; NaN stays NaN in y, because a row whose norm is NaN has one.
  const unsigned bits = std::bit_cast<unsigned>(r);
  const float power = std::bit_cast<float>(bits & 0x7f800000u);
  if (lane_of_warp() == 0) {
    search.scale[i] =
        exists ? std::bit_cast<float>((bits & 0x007fffffu) | 0x3f800000u) : static_cast<float>(NAN);
    if (exists) static_cast<float*>(p.inv_norm)[i] = r;
  }
  for (int d = lane_of_warp() * kPacket; d < search.depth; d += kWarpSize * kPacket) {
    float values[kPacket] = {};
    if (exists) rows.read(i, d, values);
#pragma unroll
    for (float& value : values) {
      value *= power;
      if constexpr (std::is_same_v<Number, c10::Half>) value *= 32768;
    }
#pragma unroll
    for (int plane = 0; plane < kPlanes<T>; ++plane) {
      auto* const to =
          static_cast<Number*>(search.planes) + (plane * search.padded_rows + i) * search.depth + d;
      write<kPacket>(values, to);
#pragma unroll
      for (float& value : values) value -= static_cast<float>(static_cast<Number>(value));
    }
  }
}

// Merges the candidates of every row and measures the distance to the best, each by a warp.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    measure(UnitRows x, NearestSearch search, NeighborDistances p) {
  const std::int64_t i = row_of_warp();
  if (i >= p.rows) return;
  const int lane = lane_of_warp();
  NearestCandidate best{-INFINITY, 0};
  for (std::int64_t slot = lane; slot < search.slots; slot += kWarpSize) {
    const NearestCandidate found = search.candidates[slot * search.padded_rows + i];
    nearest::offer(best, found.product, found.row);
  }
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    nearest::merge(best, {__shfl_xor_sync(0xffffffffu, best.product, offset),
                          __shfl_xor_sync(0xffffffffu, best.row, offset)});
  }
  const std::int64_t neighbor = best.product == -INFINITY ? i == 0 : best.row;
  const Rows<T, kAligned> rows(x);
  const auto* const inv_norm = static_cast<const float*>(x.inv_norm);
  const float r = inv_norm[i], r_neighbor = inv_norm[neighbor];
  float squares = 0;
  for (int d = lane * kPacket; d < rows.dim; d += kWarpSize * kPacket) {
    float own[kPacket], other[kPacket];
    rows.read_unit(i, r, d, own);
    rows.read_unit(neighbor, r_neighbor, d, other);
#pragma unroll
    for (int e = 0; e < kPacket; ++e) {
      const float v = own[e] - other[e] + static_cast<float>(p.eps);
      if (rows.has(d + e)) squares += v * v;
    }
  }
  squares = group_sum<kWarpSize>(squares);
  if (lane != 0) return;
  p.index[i] = neighbor;
  static_cast<float*>(p.distance)[i] = sqrtf(squares);
}

// Writes r of every row, and where its followers begin, each by a warp. If the order is to be
// found, writes the row at its place, too.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    prepare(UnitRows x, NearestNeighborDistanceBackward p, NearestFollowers followers) {
  const std::int64_t i = row_of_warp();
  if (i > p.rows) return;
  const int lane = lane_of_warp();
  std::int64_t begin;
  if (followers.order == nullptr) {
    begin = p.first_follower(i);
  } else {
    const std::int64_t neighbor = i < p.rows ? p.index[i] : 0;
    int before_followers = 0, before_row = 0;
#pragma unroll 4
    for (std::int64_t k = lane; k < p.rows; k += kWarpSize) {
      const std::int64_t other = p.index[k];
      before_followers += other < i;
      before_row += other < neighbor || (other == neighbor && k < i);
    }
    begin = group_sum<kWarpSize>(before_followers);
    before_row = group_sum<kWarpSize>(before_row);
    if (lane == 0 && i < p.rows) followers.order[before_row] = i;
  }
  if (lane == 0) followers.first[i] = begin;
  if (i == p.rows) return;
  const float r = Rows<T, kAligned>(x).inverse_norm(i, x.eps);
  if (lane == 0) static_cast<float*>(x.inv_norm)[i] = r;
}

// A thread block per row.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward(UnitRows x, NearestNeighborDistanceBackward p, const std::int64_t* first) {
  const Rows<T, kAligned> rows(x);
  const std::int64_t i = blockIdx.x, neighbor = p.neighbor(i);
  const std::int64_t begin = first[i], end = first[i + 1];
  const auto* const inv_norm = static_cast<const float*>(p.inv_norm);
  const float r = inv_norm[i], r_neighbor = inv_norm[neighbor];
  const float coefficient = p.coefficient<float>(i), eps = static_cast<float>(p.eps);

  // Elements d to d + 8 of u_i and of G_i.
  const auto read = [&](int d, float (&own)[kPacket], float (&sum)[kPacket]) {
    float other[kPacket];
    rows.read_unit(i, r, d, own);
    rows.read_unit(neighbor, r_neighbor, d, other);
#pragma unroll
    for (int e = 0; e < kPacket; ++e) sum[e] = coefficient * (own[e] - other[e] + eps);
#pragma unroll 4
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int64_t follower = p.order[k];
      const float its_coefficient = p.coefficient<float>(follower);
      rows.read_unit(follower, inv_norm[follower], d, other);
#pragma unroll
      for (int e = 0; e < kPacket; ++e) sum[e] -= its_coefficient * (other[e] - own[e] + eps);
    }
  };

  constexpr int kStep = kThreads * kPacket;
  const int mine = static_cast<int>(threadIdx.x) * kPacket;
  float own[kPacket], sum[kPacket], dot = 0;
  for (int d = mine; d < rows.dim; d += kStep) {
    read(d, own, sum);
#pragma unroll
    for (int e = 0; e < kPacket; ++e) dot += own[e] * sum[e];
  }
  dot = block_sum<kThreads>(dot);
  if (r >= static_cast<float>(1 / p.eps)) dot = 0;
  T* const grad = static_cast<T*>(p.grad_x) + i * p.dim;
  for (int d = mine; d < rows.dim; d += kStep) {
    if (rows.dim > kStep) read(d, own, sum);  // else they are what they were
#pragma unroll
    for (int e = 0; e < kPacket; ++e) sum[e] = (sum[e] - own[e] * dot) * r;
    if constexpr (kAligned) {
      constexpr int kVector = 16 / sizeof(T);
#pragma unroll
      for (int v = 0; v < kPacket; v += kVector) {
        float values[kVector];
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[e] = sum[v + e];
        write<kVector>(values, grad + d + v);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kPacket; ++e) {
        if (rows.has(d + e)) grad[d + e] = static_cast<T>(sum[e]);
      }
    }
  }
}

// Thread blocks that give every row a warp.
unsigned warps_for(std::int64_t rows) { return blocks(rows, kThreads / kWarpSize); }

// Calls body.operator()<T, kAligned>().
template <typename Body>
cudaError_t visit_rows(const UnitRows& p, Body&& body) {
  return visit_cuda_dtype(p.dtype, [&]<typename T>() {
    const bool is_aligned = aligned(p.x, 16) && p.dim % kPacket == 0 &&
                            p.row_stride * static_cast<std::int64_t>(sizeof(T)) % 16 == 0;
    return is_aligned ? body.template operator()<T, true>() : body.template operator()<T, false>();
  });
}

template <typename Number, int kPlanes, int kTile>
cudaError_t search_in_tiles(const NearestSearch& p, cudaStream_t stream) {
  for (int pair = 0; pair < p.span * p.span; ++pair) {
    const cudaError_t error =
        launch_shared(nearest::search<Number, kPlanes, kTile>,
                      blocks(nearest::search_blocks(p.slots), 1), nearest::kSearchThreads,
                      nearest::SearchTile<Number, kPlanes, kTile>::kSharedBytes, stream, p, pair);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

int nearest_neighbor_distance_cuda(const UnitRows& rows, const NearestSearch& search,
                                   const NeighborDistances& distances, cudaStream_t stream) {
  // Rows are counted in 32 bits; there is no time for the products of so many.
  if (search.padded_rows > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidValue;
  cudaError_t error = visit_rows(rows, [&]<typename T, bool kAligned>() {
    return launch(write_planes<T, kAligned>, warps_for(search.padded_rows), kThreads, stream, rows,
                  search);
  });
  if (error != cudaSuccess) return error;
  error = visit_cuda_dtype(rows.dtype, [&]<typename T>() {
    using Number = plane_t<T>;
    return search.tile == kNearestTile
               ? search_in_tiles<Number, kPlanes<T>, kNearestTile>(search, stream)
               : search_in_tiles<Number, kPlanes<T>, kSmallNearestTile>(search, stream);
  });
  if (error != cudaSuccess) return error;
  return visit_rows(rows, [&]<typename T, bool kAligned>() {
    return launch(measure<T, kAligned>, warps_for(rows.rows), kThreads, stream, rows, search,
                  distances);
  });
}

int nearest_neighbor_distance_backward_cuda(const UnitRows& rows,
                                            const NearestNeighborDistanceBackward& p,
                                            const NearestFollowers& followers,
                                            cudaStream_t stream) {
  return visit_rows(rows, [&]<typename T, bool kAligned>() {
    const cudaError_t error =
        launch(prepare<T, kAligned>, warps_for(p.rows + 1), kThreads, stream, rows, p, followers);
    if (error != cudaSuccess) return error;
    return launch(backward<T, kAligned>, blocks(p.rows, 1), kThreads, stream, rows, p,
                  followers.first);
  });
}

}  // namespace mast_ext::kernels
