// The CPU engine of pair_sums.h: one image at a time, in tiles that stay in the first-level cache.
//
// Forward: the values of a few rows over a block of D are written to a tile, which is then
// multiplied by the squared masks in a small matrix product with accumulators for 3 rows x 8 masks
// in registers. Backward: the masks' gradient is computed from the same tile; the c_d of
// pair_math.h stay in registers. With one subspace every value is used only once, without a tile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/common/simd.h"
#include "kernels/common/vector_math_cpu.h"
#include "kernels/pair_sums/pair_math.h"
#include "kernels/pair_sums/pair_sums.h"

namespace mast_ext::kernels::MAST_EXT_ISA {

// Calls body.operator()<T>(), where T is the C++ type of `dtype`, one of those that are accumulated
// in A.
template <typename A, typename Body>
void visit_elements(DType dtype, const Body& body) {
  visit_dtype(dtype, [&]<typename T>() {
    if constexpr (std::is_same_v<accum_t<T>, A>) body.template operator()<T>();
  });
}

// A is the type of all arithmetic. That of the embeddings matters only where rows are read and
// written: it is not a parameter of the class, most of which would be compiled once for each.
template <typename A, typename Values>
class PairSumsCpu {
  using V = vec<A>;
  static constexpr int kLane = kLanes<A>;
  static constexpr std::int64_t kBlock = 256;    // elements of D in a tile
  static constexpr std::int64_t kTileRows = 12;  // rows in a tile
  static constexpr bool kSkipsTile = !Values::kHasVariance;

 public:
  explicit PairSumsCpu(const PairSums& p)
      : p_(p),
        rows_(p.rows.count()),
        views_(p.rows.views()),
        dim_(padded(p.dim)),
        weights_(scratch<A, struct Weights>(p.subspaces * dim_)),
        tile_(scratch<A, struct Tile>(kTileRows * kBlock)),
        z_(scratch<A, struct Embeddings>(views_ * dim_)),
        log_var_(Values::kHasVariance ? scratch<A, struct LogVariances>(views_ * dim_) : nullptr),
        z_of_(scratch<const A*, struct EmbeddingRows>(views_)),
        log_var_of_(scratch<const A*, struct LogVarianceRows>(views_)),
        in_place_(p.dim == dim_ &&
                  p.dtype == (std::is_same_v<A, double> ? DType::kFloat64 : DType::kFloat32)),
        left_(scratch<std::int32_t, struct LeftViews>(rows_)),
        right_(scratch<std::int32_t, struct RightViews>(rows_)) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      p.rows.views_of(static_cast<std::int32_t>(r), left_[r], right_[r]);
    }
    const auto* masks = static_cast<const A*>(p.masks);
    for (std::int64_t k = 0; k < p.subspaces; ++k) {
      A* w = weights_ + k * dim_;
      for (std::int64_t d = 0; d < p.dim; ++d) {
        w[d] = masks ? masks[k * p.dim + d] * masks[k * p.dim + d] : A{1};
      }
      std::fill(w + p.dim, w + dim_, A{0});
    }
  }

  std::int64_t rows() const { return rows_; }

  // sum_d w_kd
  A weight(std::int64_t k) const {
    V sum{};
    for (std::int64_t d = 0; d < dim_; d += kLane) sum += load(weights_ + k * dim_ + d);
    return sum_lanes<A>(sum);
  }

  // The gradient of w of a slice, [K, padded D]; null if not wanted.
  A* slice_of(const PairSumsWork& work, std::int64_t slice) const {
    if (work.grad_weights == nullptr) return nullptr;
    return static_cast<A*>(work.grad_weights) + slice * p_.subspaces * dim_;
  }

  // grad_weights[k, d] += terms[k] for every d.
  void add_to_all(const A* terms, A* grad_weights) const {
    for (std::int64_t k = 0; k < p_.subspaces; ++k) {
      for (std::int64_t d = 0; d < p_.dim; ++d) grad_weights[k * dim_ + d] += terms[k];
    }
  }

  // Writes sums[row * K + k] of image b.
  void forward(std::int64_t b, A* sums) {
    read_image(b);
    std::fill(sums, sums + rows_ * p_.subspaces, A{0});
    if constexpr (kSkipsTile) {
      if (p_.subspaces == 1) return p_.masks ? sum_rows<true>(sums) : sum_rows<false>(sums);
    }
    for_tiles([&](std::int64_t d0, std::int64_t length, std::int64_t r0, std::int64_t count) {
      fill_tile(d0, length, r0, count);
      std::int64_t r = 0;
      if constexpr (kSpecializes<A>) {
        for (; r + 3 <= count; r += 3) multiply<3>(d0, length, r, sums + (r0 + r) * p_.subspaces);
      }
      for (; r < count; ++r) multiply<1>(d0, length, r, sums + (r0 + r) * p_.subspaces);
    });
  }

  // Adds the gradient of w from image b to grad_weights [K, padded D], if not null, and writes the
  // gradients of the image's embeddings and log-variances. coefficients[row * K + k] is the
  // gradient of the sums.
  void backward(std::int64_t b, const A* coefficients, const PairSumsGrad& grad, A* grad_weights) {
    read_image(b);
    if (grad_weights != nullptr) {
      for_tiles([&](std::int64_t d0, std::int64_t length, std::int64_t r0, std::int64_t count) {
        fill_tile(d0, length, r0, count);
        add_grad_weights(d0, length, count, coefficients + r0 * p_.subspaces, grad_weights);
      });
    }
    if (grad.x == nullptr && grad.y == nullptr && grad.log_var_x == nullptr &&
        grad.log_var_y == nullptr) {
      return;
    }
    if constexpr (kSkipsTile) {
      if (p_.subspaces == 1) return write_grads(b, coefficients, grad.x, grad.y);
    }
    A* grad_z = scratch<A, struct GradEmbeddings>(views_ * dim_);
    A* grad_log_var =
        Values::kHasVariance ? scratch<A, struct GradLogVariances>(views_ * dim_) : nullptr;
    std::fill(grad_z, grad_z + views_ * dim_, A{0});
    if (Values::kHasVariance) std::fill(grad_log_var, grad_log_var + views_ * dim_, A{0});
    std::int64_t r = 0;
    if constexpr (kSpecializes<A>) {
      for (; r + 4 <= rows_; r += 4) add_grad_views<4>(r, coefficients, grad_z, grad_log_var);
    }
    for (; r < rows_; ++r) add_grad_views<1>(r, coefficients, grad_z, grad_log_var);
    write_image(b, grad_z, grad.x, grad.y);
    if (Values::kHasVariance) write_image(b, grad_log_var, grad.log_var_x, grad.log_var_y);
  }

 private:
  // Points `rows` to image b's views, or to padded and converted copies in `to`.
  void read_views(const Views& from, std::int32_t views, std::int64_t b, A* to,
                  const A** rows) const {
    if (in_place_) {
      for (std::int32_t v = 0; v < views; ++v) rows[v] = row_of<A>(from, v, b);
      return;
    }
    visit_elements<A>(p_.dtype, [&]<typename T>() {
      for (std::int32_t v = 0; v < views; ++v, to += dim_) {
        const T* row = row_of<T>(from, v, b);
        for (std::int64_t d = 0; d < p_.dim; ++d) to[d] = static_cast<A>(row[d]);
        std::fill(to + p_.dim, to + dim_, A{0});
        rows[v] = to;
      }
    });
  }

  void read_image(std::int64_t b) {
    const std::int32_t first = p_.rows.x_views, second = p_.rows.self ? 0 : p_.rows.y_views;
    read_views(p_.x, first, b, z_, z_of_);
    read_views(p_.y, second, b, z_ + first * dim_, z_of_ + first);
    if constexpr (Values::kHasVariance) {
      read_views(p_.log_var_x, first, b, log_var_, log_var_of_);
      read_views(p_.log_var_y, second, b, log_var_ + first * dim_, log_var_of_ + first);
    }
  }

  // The gradient of view v in x or y, whichever has it, as elements of type T; null if not wanted.
  template <typename T>
  T* grad_row(std::int32_t v, std::int64_t b, void* x, void* y) const {
    const bool is_x = v < p_.rows.x_views;
    T* to = static_cast<T*>(is_x ? x : y);
    return to ? to + ((is_x ? v : v - p_.rows.x_views) * p_.batch + b) * p_.dim : nullptr;
  }

  void write_row(std::int32_t v, std::int64_t b, const A* from, void* x, void* y) const {
    visit_elements<A>(p_.dtype, [&]<typename T>() {
      T* row = grad_row<T>(v, b, x, y);
      if (row == nullptr) return;
      for (std::int64_t d = 0; d < p_.dim; ++d) row[d] = static_cast<T>(from[d]);
    });
  }

  void write_image(std::int64_t b, const A* from, void* x, void* y) const {
    for (std::int32_t v = 0; v < views_; ++v, from += dim_) write_row(v, b, from, x, y);
  }

  // One subspace: sums[row] += sum_d w_d * value, for the rows of an image.
  template <bool Masked>
  void sum_rows(A* sums) const {
    for (std::int64_t d0 = 0; d0 < dim_; d0 += kBlock) {
      const std::int64_t end = std::min(d0 + kBlock, dim_);
      std::int64_t r = 0;
      if constexpr (kSpecializes<A>) {
        for (; r + 8 <= rows_; r += 8) sum_rows<Masked, 8>(d0, end, r, sums);
        for (; r + 3 <= rows_; r += 3) sum_rows<Masked, 3>(d0, end, r, sums);
      }
      for (; r < rows_; ++r) sum_rows<Masked, 1>(d0, end, r, sums);
    }
  }

  template <bool Masked, int R>
  void sum_rows(std::int64_t d0, std::int64_t end, std::int64_t r, A* sums) const {
    constexpr int kUnroll = R < 8 ? 4 : 1;  // enough independent sums to hide an addition's latency
    const A *left[R], *right[R];
    for (int i = 0; i < R; ++i) {
      left[i] = z_of_[left_[r + i]];
      right[i] = z_of_[right_[r + i]];
    }
    V sum[kUnroll][R] = {};
    const auto add = [&](V* to, std::int64_t d) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const Element<V> a{load(left[i] + d), V{}}, b{load(right[i] + d), V{}};
        const V value = Values::template value<VectorMath>(a, b);
        to[i] += Masked ? value * load(weights_ + d) : value;
      }
    };
    std::int64_t d = d0;
    for (; d + kUnroll * kLane <= end; d += kUnroll * kLane) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) add(sum[u], d + u * kLane);
    }
    for (; d < end; d += kLane) add(sum[0], d);
    for (int i = 0; i < R; ++i) {
      for (int u = 1; u < kUnroll; ++u) sum[0][i] += sum[u][i];
      sums[r + i] += sum_lanes<A>(sum[0][i]);
    }
  }

  // One subspace: writes the gradient of every view of image b, summed over the view's rows.
  void write_grads(std::int64_t b, const A* coefficients, void* x, void* y) const {
    A* buffer = scratch<A, struct GradRow>(dim_);
    A* c = scratch<A, struct Partners>(views_ + 1);
    const A** others = scratch<const A*, struct PartnerRows>(views_ + 1);
    for (std::int32_t v = 0; v < views_; ++v) {
      if ((v < p_.rows.x_views ? x : y) == nullptr) continue;
      int partners = 0;
      for (std::int64_t r = 0; r < rows_; ++r) {
        if (left_[r] != v && right_[r] != v) continue;
        others[partners] = z_of_[left_[r] == v ? right_[r] : left_[r]];
        c[partners++] = coefficients[r] * (left_[r] == right_[r] ? 2 : 1);
      }
      A* to = in_place_ ? grad_row<A>(v, b, x, y) : buffer;
      std::int64_t d = 0;
      if constexpr (kSpecializes<A>) {
        for (; d + 4 * kLane <= dim_; d += 4 * kLane) write_grad<4>(v, partners, others, c, d, to);
      }
      for (; d < dim_; d += kLane) write_grad<1>(v, partners, others, c, d, to);
      if (!in_place_) write_row(v, b, buffer, x, y);
    }
  }

  template <int N>
  void write_grad(std::int32_t v, int partners, const A* const* others, const A* c, std::int64_t d,
                  A* to) const {
    V own[N], sum[N] = {};
    for (int u = 0; u < N; ++u) own[u] = load(z_of_[v] + d + u * kLane);
    for (int i = 0; i < partners; ++i) {
#pragma GCC unroll 4
      for (int u = 0; u < N; ++u) {
        sum[u] += c[i] * Values::derivative(own[u], load(others[i] + d + u * kLane));
      }
    }
    for (int u = 0; u < N; ++u) {
      store(to + d + u * kLane, p_.masks ? sum[u] * load(weights_ + d + u * kLane) : sum[u]);
    }
  }

  Element<V> element(std::int32_t view, std::int64_t d) const {
    Element<V> e{load(z_of_[view] + d), V{}};
    if constexpr (Values::kHasVariance) e.log_var = load(log_var_of_[view] + d);
    return e;
  }

  template <typename Body>
  void for_tiles(const Body& body) const {
    for (std::int64_t d0 = 0; d0 < dim_; d0 += kBlock) {
      for (std::int64_t r0 = 0; r0 < rows_; r0 += kTileRows) {
        body(d0, std::min(kBlock, dim_ - d0), r0, std::min(kTileRows, rows_ - r0));
      }
    }
  }

  void fill_tile(std::int64_t d0, std::int64_t length, std::int64_t r0, std::int64_t count) {
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int32_t left = left_[r0 + r], right = right_[r0 + r];
      A* tile = tile_ + r * kBlock;
      if (left == right) {
        for (std::int64_t d = 0; d < length; d += kLane) {
          store(tile + d, Values::self_value(element(left, d0 + d)));
        }
        continue;
      }
      for (std::int64_t d = 0; d < length; d += kLane) {
        store(tile + d,
              Values::template value<VectorMath>(element(left, d0 + d), element(right, d0 + d)));
      }
    }
  }

  // sums[R, K] += tile[R rows from r] * weights^T
  template <int R>
  void multiply(std::int64_t d0, std::int64_t length, std::int64_t r, A* sums) const {
    std::int64_t k = 0;
    if constexpr (kSpecializes<A>) {
      for (; k + 8 <= p_.subspaces; k += 8) multiply<R, 8>(d0, length, r, k, sums);
      for (; k + 4 <= p_.subspaces; k += 4) multiply<R, 4>(d0, length, r, k, sums);
    }
    for (; k < p_.subspaces; ++k) multiply<R, 1>(d0, length, r, k, sums);
  }

  template <int R, int K>
  void multiply(std::int64_t d0, std::int64_t length, std::int64_t r, std::int64_t k,
                A* sums) const {
    const A* tile = tile_ + r * kBlock;
    const A* weights = weights_ + k * dim_ + d0;
    V sum[R][K] = {};
    for (std::int64_t d = 0; d < length; d += kLane) {
      V value[R];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) value[i] = load(tile + i * kBlock + d);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        const V w = load(weights + j * dim_ + d);
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sum[i][j] += value[i] * w;
      }
    }
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < K; ++j) sums[i * p_.subspaces + k + j] += sum_lanes<A>(sum[i][j]);
    }
  }

  // grad_weights[K, D] += coefficients[rows, K]^T * tile
  void add_grad_weights(std::int64_t d0, std::int64_t length, std::int64_t count,
                        const A* coefficients, A* grad_weights) const {
    std::int64_t k = 0;
    if constexpr (kSpecializes<A>) {
      for (; k + 8 <= p_.subspaces; k += 8) {
        add_grad_weights<8>(d0, length, count, k, coefficients, grad_weights);
      }
    }
    for (; k < p_.subspaces; ++k) {
      add_grad_weights<1>(d0, length, count, k, coefficients, grad_weights);
    }
  }

  template <int K>
  void add_grad_weights(std::int64_t d0, std::int64_t length, std::int64_t count, std::int64_t k,
                        const A* coefficients, A* grad_weights) const {
    for (std::int64_t d = 0; d < length; d += kLane) {
      V sum[K] = {};
      for (std::int64_t r = 0; r < count; ++r) {
        const V value = load(tile_ + r * kBlock + d);
        const A* c = coefficients + r * p_.subspaces + k;
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) sum[j] += value * c[j];
      }
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        A* to = grad_weights + (k + j) * dim_ + d0 + d;
        store(to, load(to) + sum[j]);
      }
    }
  }

  // Adds to the gradients of both views of each of R rows, whose c_d are in registers.
  template <int R>
  void add_grad_views(std::int64_t r, const A* coefficients, A* grad_z, A* grad_log_var) const {
    constexpr int kUnroll = 2;
    static_assert(kPad % kLanes<float> == 0);
    const std::int32_t *left = left_ + r, *right = right_ + r;
    const A* rows = coefficients + r * p_.subspaces;
    for (std::int64_t d = 0; d < dim_; d += kUnroll * kLane) {
      const int vectors = d + kUnroll * kLane <= dim_ ? kUnroll : 1;
      V c[kUnroll][R] = {};
      for (std::int64_t k = 0; k < p_.subspaces; ++k) {
        const A* w = weights_ + k * dim_ + d;
        const V w0 = load(w), w1 = vectors == kUnroll ? load(w + kLane) : V{};
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
          c[0][i] += w0 * rows[i * p_.subspaces + k];
          c[1][i] += w1 * rows[i * p_.subspaces + k];
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        add_grads(c[0][i], left[i], right[i], d, grad_z, grad_log_var);
        if (vectors == kUnroll) {
          add_grads(c[1][i], left[i], right[i], d + kLane, grad_z, grad_log_var);
        }
      }
    }
  }

  void add_grads(V c, std::int32_t left, std::int32_t right, std::int64_t d, A* grad_z,
                 A* grad_log_var) const {
    const std::int64_t at_left = left * dim_ + d, at_right = right * dim_ + d;
    const Element<V> a = element(left, d);
    Element<V> grad_a = grads_at(grad_z, grad_log_var, at_left);
    if (left == right) {
      Values::add_self_grad(c, a, grad_a);
    } else {
      Element<V> grad_b = grads_at(grad_z, grad_log_var, at_right);
      Values::template add_grads<VectorMath>(c, a, element(right, d), grad_a, grad_b);
      put(grad_b, grad_z, grad_log_var, at_right);
    }
    put(grad_a, grad_z, grad_log_var, at_left);
  }

  static Element<V> grads_at(const A* grad_z, const A* grad_log_var, std::int64_t offset) {
    Element<V> e{load(grad_z + offset), V{}};
    if constexpr (Values::kHasVariance) e.log_var = load(grad_log_var + offset);
    return e;
  }

  void put(const Element<V>& grad, A* grad_z, A* grad_log_var, std::int64_t offset) const {
    store(grad_z + offset, grad.z);
    if constexpr (Values::kHasVariance) store(grad_log_var + offset, grad.log_var);
  }

  const PairSums p_;
  const std::int64_t rows_, views_, dim_;
  A* const weights_;
  A* const tile_;
  A* const z_;
  A* const log_var_;
  const A** const z_of_;  // [V]
  const A** const log_var_of_;
  const bool in_place_;       // rows need neither padding nor conversion
  std::int32_t* const left_;  // [rows]: the row's views
  std::int32_t* const right_;
};

}  // namespace mast_ext::kernels::MAST_EXT_ISA
