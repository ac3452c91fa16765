// The CPU kernel that processes a tile of products: losses and, in place, the weights of the
// gradient, from one exponential per entry. A row is one thread's, so that results do not depend on
// the number of threads.
#include "kernels/sigmoid_contrast/sigmoid_contrast.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/exponential_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// `values`, with 0 in the lanes from `left` on.
template <typename A>
vec<A> first_lanes(vec<A> values, std::int64_t left) {
  if (left < kLanes<A>) {
    for (std::int64_t i = left; i < kLanes<A>; ++i) values[i] = A{0};
  }
  return values;
}

// The sums over a row's negatives: of the loss, of sigmoid(z), and of sigmoid(z) cos / row_scale.
template <typename A>
struct NegativeSums {
  vec<A> loss{}, sigmoid{}, cosine{};
};

// Columns [begin, end) of a row, none of which is its positive. z = factor <x, y> ry + bias;
// products become grad_factor sigmoid(z) ry.
template <typename A, bool kLoss, bool kGradient>
void negatives(const SigmoidTile& p, A* products, std::int64_t begin, std::int64_t end, A factor,
               A grad_factor, NegativeSums<A>& sums) {
  constexpr std::int64_t kLane = kLanes<A>;
  const A* column_scale = static_cast<const A*>(p.column_scale) + begin;
  const A bias = static_cast<A>(p.bias);
  const Exponential<A> exponential(1.0);
  products += begin;
  each_vector<A>(end - begin, [&]<int N>(std::int64_t c, std::int64_t left) {
    vec<A> scale[N], cosine[N], z[N], e[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      scale[i] = load_some(column_scale + c + i * kLane, left);
      cosine[i] = load_some(products + c + i * kLane, left) * scale[i];
      z[i] = cosine[i] * factor + bias;
      e[i] = -larger(z[i], -z[i]);
    }
    exponential(e);  // of -|z|
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      if constexpr (kLoss) {
        sums.loss += first_lanes<A>(larger(vec<A>{}, z[i]) + log1p_unit(e[i]), left);
      }
      if constexpr (kGradient) {
        const vec<A> high = A{1} / (e[i] + A{1}), low = e[i] * high;  // sigmoid(|z|), sigmoid(-|z|)
        const vec<A> sigmoid = first_lanes<A>(z[i] < A{0} ? low : high, left);
        sums.sigmoid += sigmoid;
        sums.cosine += sigmoid * cosine[i];
        store_some(products + c + i * kLane, sigmoid * scale[i] * grad_factor, left);
      }
    }
  });
}

template <typename A, bool kLoss, bool kGradient>
void tile_row(const SigmoidTile& p, std::int64_t row) {
  A* products = static_cast<A*>(p.products) + row * p.stride;
  const A row_scale = static_cast<const A*>(p.row_scale)[row];
  const A factor = static_cast<A>(p.scale) * row_scale;
  const A grad = kGradient ? static_cast<const A*>(p.grad)[row] : A{0};
  const std::int64_t partner = row + p.partner;
  const bool has_positive = p.has_positive && partner >= 0 && partner < p.columns;
  const std::int64_t before = has_positive ? partner : p.columns;
  NegativeSums<A> sums;
  negatives<A, kLoss, kGradient>(p, products, 0, before, factor, grad * factor, sums);
  A loss = sum_lanes<A>(sums.loss), weight = sum_lanes<A>(sums.sigmoid),
    cosine = sum_lanes<A>(sums.cosine);
  if (has_positive) {
    NegativeSums<A> behind;
    negatives<A, kLoss, kGradient>(p, products, partner + 1, p.columns, factor, grad * factor,
                                   behind);
    const A scale = static_cast<const A*>(p.column_scale)[partner];
    const A here = products[partner] * scale, z = here * factor + static_cast<A>(p.bias);
    const A e = std::exp(-std::abs(z)), sigmoid = (z < 0 ? A{1} : e) / (1 + e);  // of -z
    loss += sum_lanes<A>(behind.loss) + (std::max(-z, A{0}) + std::log1p(e));
    weight += sum_lanes<A>(behind.sigmoid) - sigmoid;
    cosine += sum_lanes<A>(behind.cosine) - sigmoid * here;
    if constexpr (kGradient) products[partner] = -sigmoid * scale * (grad * factor);
  }
  if constexpr (kLoss) static_cast<A*>(p.loss)[row] += loss;
  if constexpr (kGradient) {
    static_cast<A*>(p.grad_bias)[row] += grad * weight;
    static_cast<A*>(p.grad_scale)[row] += grad * row_scale * cosine;
  }
}

}  // namespace

void sigmoid_tile_cpu(const SigmoidTile& p, std::int64_t begin, std::int64_t end) {
  [[maybe_unused]] const FlushDenormals flush;
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t row = begin; row < end; ++row) {
      if (p.grad == nullptr) {
        tile_row<A, true, false>(p, row);
      } else if (p.loss == nullptr) {
        tile_row<A, false, true>(p, row);
      } else {
        tile_row<A, true, true>(p, row);
      }
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(sigmoid_tile_cpu, (const SigmoidTile& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
