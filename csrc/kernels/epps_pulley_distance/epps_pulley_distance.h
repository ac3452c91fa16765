// epps_pulley_distance: how far the sums of sliced_characteristic_sums, of N images and at knots
// with weights w_k and values phi_k to compare with, are from those of a normal distribution
//
//   distance[v] = N / M * sum_{k,m} w_k [(sums[v, k, 0, m] / N - phi_k)^2 + (sums[v, k, 1, m] /
//   N)^2]
//
// Backward, with G the gradient of the distances and phi_k1 = 0 beside phi_k0 = phi_k:
//
//   grad sums[v, k, c, m] = 2 G_v w_k / M * (sums[v, k, c, m] / N - phi_kc)
#pragma once

#include <cstdint>

#include "kernels/common/cuda_library.h"
#include "kernels/common/dtype.h"
#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// All tensors are of one dtype, float32 or float64, and dense.
struct EppsPulleySums {
  DType dtype;
  std::int64_t views, knots, slices;  // V, K, M
  const void* sums;                   // [V, K, 2, M]
  const void* phi;                    // [K]
  const void* weights;                // [K]
  const void* images_tensor;          // [], or null
  double images;                      // N, where images_tensor is null

  // Cosines and sines of a view and knot are a row each.
  MAST_EXT_HD std::int64_t rows_of_view() const { return 2 * knots; }
};

struct EppsPulleyDistance {
  EppsPulleySums in;
  void* distance;  // [V]
};

struct EppsPulleyDistanceBackward {
  EppsPulleySums in;
  const void* grad;  // [V]
  void* grad_sums;   // [V, K, 2, M]
};

// What the elements of a row have in common: differences are x * inverse - target.
template <typename A>
struct EppsPulleyRow {
  A weight, target, inverse;

  // `row` counts those of a view.
  MAST_EXT_HD EppsPulleyRow(const EppsPulleySums& in, std::int64_t row, A images)
      : weight(static_cast<const A*>(in.weights)[row / 2]),
        target(row % 2 == 0 ? static_cast<const A*>(in.phi)[row / 2] : A{0}),
        inverse(A{1} / images) {}

  MAST_EXT_HD A difference(A x) const { return x * inverse - target; }
};

template <typename A>
MAST_EXT_HD A number_of_images(const EppsPulleySums& in) {
  return in.images_tensor != nullptr ? *static_cast<const A*>(in.images_tensor)
                                     : static_cast<A>(in.images);
}

// Views [begin, end).
void epps_pulley_distance_cpu(const EppsPulleyDistance& p, std::int64_t begin, std::int64_t end);
// Rows [begin, end) of all views.
void epps_pulley_distance_backward_cpu(const EppsPulleyDistanceBackward& p, std::int64_t begin,
                                       std::int64_t end);

// Queue on `stream`; the result is a cudaError_t, cudaSuccess when the launch was accepted.
[[gnu::weak]] int epps_pulley_distance_cuda(const EppsPulleyDistance& p, CUstream_st* stream);
[[gnu::weak]] int epps_pulley_distance_backward_cuda(const EppsPulleyDistanceBackward& p,
                                                     CUstream_st* stream);

}  // namespace mast_ext::kernels
