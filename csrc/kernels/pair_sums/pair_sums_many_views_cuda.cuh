// The backward of pair sums for so many views that an image does not fit in shared memory: a kernel
// for the gradients of views, and one for those of the weights.
#pragma once

#include "kernels/pair_sums/pair_sums_coefficients_cuda.cuh"

namespace mast_ext::kernels::pair_sums_cuda {

// Finds `other`, the partner-th view that `view` is paired with, and the row of this pair.
__device__ __forceinline__ void partner_of(const PairRows& rows, std::int32_t view,
                                           std::int32_t partner, std::int32_t& other,
                                           std::int32_t& row) {
  if (rows.self) {
    other = partner;
    row = rows.pair(view, partner);
    return;
  }
  const bool is_x = view < rows.x_views;
  if (partner == (is_x ? rows.y_views : rows.x_views)) {  // the last one: the view with itself
    other = view;
    row = rows.norm(view);
  } else if (is_x) {
    other = rows.x_views + partner;
    row = rows.pair(view, partner);
  } else {
    other = partner;
    row = rows.pair(partner, view - rows.x_views);
  }
}

// Gradients of embeddings and log-variances. One thread per (image, N elements of D) has all views.
template <typename T, typename Values>
__global__ void __launch_bounds__(kThreads)
    grad_views(PairSums p, Coefficients coefficients, PairSumsGrad grad) {
  constexpr int kPartners = 4, N = 1;
  const std::int64_t packets = p.dim / N;
  const std::int64_t own = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (own >= p.batch * packets) return;
  const std::int64_t b = own / packets, d = own % packets * N;
  const std::int64_t padded_k = padded_subspaces(p.subspaces);
  const float* image = coefficients.data + b * coefficients.count() * padded_k;

  for (std::int32_t view = 0; view < p.rows.views(); ++view) {
    const bool is_x = view < p.rows.x_views;
    void* to_z = is_x ? grad.x : grad.y;
    void* to_log_var = is_x ? grad.log_var_x : grad.log_var_y;
    if (!Values::kHasVariance) to_log_var = nullptr;
    if (to_z == nullptr && to_log_var == nullptr) continue;
    const std::int32_t others = p.rows.self ? p.rows.x_views
                                : is_x      ? p.rows.y_views
                                            : p.rows.x_views;
    const std::int32_t partners = others + (!p.rows.self && p.rows.norms ? 1 : 0);
    Elements<T, Values, N> a;
    a.read_at(p, view, b, d);
    Element<float> total[N] = {};
    for (std::int32_t first = 0; first < partners; first += kPartners) {
      std::int32_t other[kPartners];
      const float* row_coefficients[kPartners];
#pragma unroll
      for (int q = 0; q < kPartners; ++q) {
        std::int32_t row;
        partner_of(p.rows, view, first + q < partners ? first + q : first, other[q], row);
        row_coefficients[q] = image + row * padded_k;
      }
      float c[kPartners][N] = {};
      for (std::int64_t k0 = 0; k0 < p.subspaces; k0 += 4) {
        float4 four[kPartners];
#pragma unroll
        for (int q = 0; q < kPartners; ++q) {
          four[q] = *reinterpret_cast<const float4*>(row_coefficients[q] + k0);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (k0 + k >= p.subspaces) break;
          float w[N];
          read_weights(p, k0 + k, d, w);
#pragma unroll
          for (int q = 0; q < kPartners; ++q) {
            const float coefficient = k == 0   ? four[q].x
                                      : k == 1 ? four[q].y
                                      : k == 2 ? four[q].z
                                               : four[q].w;
#pragma unroll
            for (int n = 0; n < N; ++n) c[q][n] += coefficient * w[n];
          }
        }
      }
#pragma unroll
      for (int q = 0; q < kPartners; ++q) {
        if (first + q >= partners) break;
        Elements<T, Values, N> o;
        o.read_at(p, other[q], b, d);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          Element<float> back{0, 0};
          Values::template add_grads<CudaMath>(c[q][n], a.at(n), o.at(n), total[n], back);
          if (other[q] == view) {  // both views of the row are this one
            total[n].z += back.z;
            total[n].log_var += back.log_var;
          }
        }
      }
    }
    const std::int64_t to = ((is_x ? view : view - p.rows.x_views) * p.batch + b) * p.dim + d;
    float out[N];
    if (to_z != nullptr) {
#pragma unroll
      for (int n = 0; n < N; ++n) out[n] = total[n].z;
      write(out, static_cast<T*>(to_z) + to);
    }
    if (to_log_var != nullptr) {
#pragma unroll
      for (int n = 0; n < N; ++n) out[n] = total[n].log_var;
      write(out, static_cast<T*>(to_log_var) + to);
    }
  }
}

inline constexpr int kTileMasks = 8;

// Writes grad_weights[slice, k, d]: one thread per (slice, tile of masks, N elements of D).
// blockIdx.y is the slice; blockIdx.x counts the thread blocks of the first tile, then those of the
// next.
template <typename T, typename Values>
__global__ void __launch_bounds__(kThreads)
    grad_weights_of_slice(PairSums p, Coefficients coefficients, std::int64_t slices,
                          float* grad_weights) {
  constexpr int N = 1;
  const std::int64_t blocks_of_tile = (p.dim / N + blockDim.x - 1) / blockDim.x;
  const std::int64_t d = (blockIdx.x % blocks_of_tile * blockDim.x + threadIdx.x) * N;
  if (d >= p.dim) return;
  const std::int64_t k0 = blockIdx.x / blocks_of_tile * kTileMasks, slice = blockIdx.y;
  const std::int64_t padded_k = padded_subspaces(p.subspaces);
  const PairRows& rows = p.rows;

  float sum[kTileMasks][N] = {};
  const auto add_row = [&](const float* c, const Elements<T, Values, N>& a,
                           const Elements<T, Values, N>& o) {
    const float4 low = *reinterpret_cast<const float4*>(c);
    const float4 high =
        k0 + 4 < padded_k ? *reinterpret_cast<const float4*>(c + 4) : make_float4(0, 0, 0, 0);
    const float eight[kTileMasks] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float value = Values::template value<CudaMath>(a.at(n), o.at(n));
#pragma unroll
      for (int k = 0; k < kTileMasks; ++k) sum[k][n] += eight[k] * value;
    }
  };
  for (std::int64_t b = p.batch * slice / slices; b < p.batch * (slice + 1) / slices; ++b) {
    const float* c = coefficients.data + b * coefficients.count() * padded_k + k0;
    Elements<T, Values, N> a, o;
    for (std::int32_t i = 0; i < rows.x_views; ++i) {  // in the order of PairRows
      a.read_at(p, i, b, d);
      for (std::int32_t j = rows.self ? i : 0; j < rows.y_views; ++j, c += padded_k) {
        o.read_at(p, rows.self ? j : rows.x_views + j, b, d);
        add_row(c, a, o);
      }
    }
    if (!rows.self && rows.norms) {
      for (std::int32_t view = 0; view < rows.views(); ++view, c += padded_k) {
        a.read_at(p, view, b, d);
        add_row(c, a, a);
      }
    }
    if (coefficients.totals) {
#pragma unroll
      for (int k = 0; k < kTileMasks; ++k) {
        if (k0 + k >= p.subspaces) break;
#pragma unroll
        for (int n = 0; n < N; ++n) sum[k][n] += c[k];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kTileMasks; ++k) {
    if (k0 + k >= p.subspaces) break;
    write(sum[k], grad_weights + (slice * p.subspaces + k0 + k) * p.dim + d);
  }
}

}  // namespace mast_ext::kernels::pair_sums_cuda
