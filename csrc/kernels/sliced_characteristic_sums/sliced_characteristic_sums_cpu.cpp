// A vector has neighboring slices of a row. Several rows go together: they share loads and stores
// of the sums, or loads of the coefficients.
#include "kernels/sliced_characteristic_sums/sliced_characteristic_sums.h"

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/sliced_characteristic_sums/rotations_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

constexpr int kRows = 4;                // that go together
constexpr std::int64_t kSumRows = 256;  // that are added up before they are added to the sums

// e^{i t x} of N vectors.
template <typename A, int N>
struct Rotations {
  vec<A> cosine[N], sine[N];

  Rotations(const vec<A> (&x)[N], double t) {
    if (t == 0) {
      for (int i = 0; i < N; ++i) {
        sine[i] = x[i] * A{0};  // NaN and infinity are not hidden
        cosine[i] = sine[i] + A{1};
      }
      return;
    }
    vec<A> angle[N];
    for (int i = 0; i < N; ++i) angle[i] = x[i] * static_cast<A>(t);
    rotations(angle, cosine, sine);
  }

  void rotate(const Rotations& w) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const vec<A> c = cosine[i], s = sine[i];
      cosine[i] = c * w.cosine[i] - s * w.sine[i];
      sine[i] = s * w.cosine[i] + c * w.sine[i];
    }
  }
};

template <typename A, int N>
vec<A> sum(const vec<A> (&x)[N]) {
  if constexpr (N == 4) {
    return (x[0] + x[1]) + (x[2] + x[3]);
  } else {
    static_assert(N == 1);
    return x[0];
  }
}

// Adds N rows of a vector of slices to sums[k, 0] and sums[k, 1] of it.
template <typename A, int N>
void add_rows(const vec<A> (&x)[N], const KnotGrid& grid, vec<A>* sums) {
  const Rotations<A, N> step(x, grid.step);
  for (std::int64_t first = 0; first < grid.knots; first += kKnotGroup) {
    Rotations<A, N> at(x, grid.t(first));
    const std::int64_t last = first + grid.group_size(first);
    for (std::int64_t k = first; k < last; ++k) {
      sums[2 * k] += sum<A, N>(at.cosine);
      sums[2 * k + 1] += sum<A, N>(at.sine);
      at.rotate(step);
    }
  }
}

template <typename A>
void sum_block(const SlicedCharacteristicSums& p, std::int64_t view, std::int64_t first_slice) {
  const ProjectionTile& tile = p.tile;
  const std::int64_t knots = tile.grid.knots;
  const std::int64_t count = std::min(kSliceBlock, tile.slices - first_slice);
  const std::int64_t vectors = (count + kLanes<A> - 1) / kLanes<A>;
  const A* x = static_cast<const A*>(p.projections) + view * tile.rows * tile.stride + first_slice;
  A* to = static_cast<A*>(p.sums) + view * knots * 2 * tile.slices + first_slice;
  auto* sums =
      reinterpret_cast<vec<A>*>(scratch<A, struct KnotSums>(vectors * knots * 2 * kLanes<A>));
  for (std::int64_t first = 0; first < tile.rows; first += kSumRows) {
    const std::int64_t last = std::min(tile.rows, first + kSumRows);
    std::fill(sums, sums + vectors * knots * 2, vec<A>{});
    std::int64_t n = first;
    const auto add = [&]<int N>() {
      for (; n + N <= last; n += N) {
        for (std::int64_t j = 0; j < vectors; ++j) {
          const A* from = x + n * tile.stride + j * kLanes<A>;
          vec<A> rows[N];
          for (int i = 0; i < N; ++i) {
            rows[i] = load_some(from + i * tile.stride, count - j * kLanes<A>);
          }
          add_rows<A, N>(rows, tile.grid, sums + j * knots * 2);
        }
      }
    };
    add.template operator()<kRows>();
    add.template operator()<1>();
    const bool adds = p.add || first > 0;
    for (std::int64_t i = 0; i < knots * 2; ++i) {
      for (std::int64_t j = 0; j < vectors; ++j) {
        A* slot = to + i * tile.slices + j * kLanes<A>;
        const std::int64_t left = count - j * kLanes<A>;
        const vec<A> sum = sums[j * knots * 2 + i];
        store_some(slot, adds ? load_some(slot, left) + sum : sum, left);
      }
    }
  }
}

// Replaces N rows of a vector of slices by their gradient: the real part of the polynomial in w
// with coefficients t_k (G_k1 + i G_k0), by Horner's method.
template <typename A, int N, typename Coefficient>
void differentiate(vec<A> (&x)[N], const KnotGrid& grid, const Coefficient& coefficient) {
  const Rotations<A, N> step(x, grid.step);
  vec<A> grad[N] = {};
  for (std::int64_t first = 0; first < grid.knots; first += kKnotGroup) {
    vec<A> real[N] = {}, imaginary[N] = {};
    for (std::int64_t k = first + grid.group_size(first) - 1; k >= first; --k) {
      const vec<A> of_cosine = coefficient(k, 0), of_sine = coefficient(k, 1);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        const vec<A> r = real[i], s = imaginary[i];
        real[i] = r * step.cosine[i] - s * step.sine[i] + of_sine;
        imaginary[i] = s * step.cosine[i] + r * step.sine[i] + of_cosine;
      }
    }
    const Rotations<A, N> begin(x, grid.t(first));
    for (int i = 0; i < N; ++i) {
      grad[i] += real[i] * begin.cosine[i] - imaginary[i] * begin.sine[i];
    }
  }
  for (int i = 0; i < N; ++i) x[i] = grad[i];
}

template <typename A>
void differentiate_block(const SlicedCharacteristicSumsBackward& p, std::int64_t view,
                         std::int64_t first_slice) {
  const ProjectionTile& tile = p.tile;
  const std::int64_t knots = tile.grid.knots;
  const std::int64_t count = std::min(kSliceBlock, tile.slices - first_slice);
  const std::int64_t begin = view * tile.rows * tile.stride + first_slice;
  const A* x = static_cast<const A*>(p.projections) + begin;
  A* grad = static_cast<A*>(p.grad) + begin;
  const A* grad_sums =
      static_cast<const A*>(p.grad_sums) + view * knots * 2 * tile.slices + first_slice;
  A* coefficients = scratch<A, struct Coefficients>(knots * 2 * kSliceBlock);
  for (std::int64_t i = 0; i < knots * 2; ++i) {
    const A t = static_cast<A>(tile.grid.t(i / 2));
    A* to = coefficients + i * kSliceBlock;
    for (std::int64_t m = 0; m < count; ++m) to[m] = t * grad_sums[i * tile.slices + m];
    std::fill(to + count, to + kSliceBlock, A{0});
  }
  std::int64_t n = 0;
  const auto write = [&]<int N>() {
    for (; n + N <= tile.rows; n += N) {
      for (std::int64_t m = 0; m < count; m += kLanes<A>) {
        const std::int64_t at = n * tile.stride + m;
        vec<A> rows[N];
        for (int i = 0; i < N; ++i) rows[i] = load_some(x + at + i * tile.stride, count - m);
        differentiate<A, N>(rows, tile.grid, [&](std::int64_t k, std::int64_t part) {
          return load(coefficients + (2 * k + part) * kSliceBlock + m);
        });
        for (int i = 0; i < N; ++i) store_some(grad + at + i * tile.stride, rows[i], count - m);
      }
    }
  };
  write.template operator()<kRows>();
  write.template operator()<1>();
}

}  // namespace

void sliced_characteristic_sums_cpu(const SlicedCharacteristicSums& p, std::int64_t begin,
                                    std::int64_t end) {
  const std::int64_t blocks = slice_blocks(p.tile.slices);
  visit_accumulation(p.tile.dtype, [&]<typename A>() {
    for (std::int64_t i = begin; i < end; ++i) {
      sum_block<A>(p, i / blocks, i % blocks * kSliceBlock);
    }
  });
}

void sliced_characteristic_sums_backward_cpu(const SlicedCharacteristicSumsBackward& p,
                                             std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = slice_blocks(p.tile.slices);
  visit_accumulation(p.tile.dtype, [&]<typename A>() {
    for (std::int64_t i = begin; i < end; ++i) {
      differentiate_block<A>(p, i / blocks, i % blocks * kSliceBlock);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(sliced_characteristic_sums_cpu,
                   (const SlicedCharacteristicSums& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(sliced_characteristic_sums_backward_cpu,
                   (const SlicedCharacteristicSumsBackward& p, std::int64_t begin,
                    std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
