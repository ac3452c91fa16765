#include "kernels/gram_difference/gram_difference.h"

#include <algorithm>

#include "kernels/common/half_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/gram_difference/gram_difference_math.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename T>
void write_operands(const GramOperands& p, std::int64_t image, std::int64_t row) {
  using A = accum_t<T>;
  const T *s = row_of<T>(p.s, image, row), *t = row_of<T>(p.t, image, row);
  A* z = static_cast<A*>(p.z) + (image * p.rows + row) * 2 * p.dim;
  std::int64_t d = 0;
  for (; d + kLanes<A> <= p.dim; d += kLanes<A>) {
    const vec<A> x = load_whole(s + d), y = load_whole(t + d);
    store(z + d, x - y);
    store(z + p.dim + d, x + y);
  }
  const vec<A> x = load_some(s + d, p.dim - d), y = load_some(t + d, p.dim - d);
  store_some(z + d, x - y, p.dim - d);
  store_some(z + p.dim + d, x + y, p.dim - d);
}

// Calls body(column, element of G, count) for vectors of `count` elements of a row. `mirrored` are
// the products of the row as a column.
template <RemoveNegative remove, typename A, typename Body>
void for_elements(const GramTile& p, std::int64_t at, const A* mirrored, const Body& body) {
  const A* products = static_cast<const A*>(p.products) + at;
  const A* teacher = remove == RemoveNegative::kNone ? products  // not read
                                                     : static_cast<const A*>(p.teacher) + at;
  if (mirrored == nullptr) mirrored = products;
  const A half = static_cast<A>(0.5);
  for (std::int64_t j = 0; j < p.columns; j += kLanes<A>) {
    const std::int64_t count = std::min<std::int64_t>(p.columns - j, kLanes<A>);
    vec<A> sum = load_some(products + j, count);
    if (p.diagonal) sum += load_some(mirrored + j, count);
    body(j, gram_math::element<remove>(half * sum, load_some(teacher + j, count)), count);
  }
}

// Calls row(image, row, mirrored) for a block of rows.
template <typename A, typename Row>
void for_block(const GramTile& p, std::int64_t block, const Row& body) {
  const std::int64_t blocks = gram_blocks(p.rows), image = block / blocks;
  const std::int64_t first = block % blocks * kGramRows;
  const std::int64_t count = std::min(kGramRows, p.rows - first);
  A* mirrored = nullptr;
  if (p.diagonal) {
    mirrored = scratch<A, struct Mirrored>(kGramRows * p.columns);
    const A* from = static_cast<const A*>(p.products) + image * p.rows * p.columns + first;
    for (std::int64_t j = 0; j < p.columns; ++j) {
      for (std::int64_t i = 0; i < count; ++i)
        mirrored[i * p.columns + j] = from[j * p.columns + i];
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    body(image, first + i, p.diagonal ? mirrored + i * p.columns : nullptr);
  }
}

template <RemoveNegative remove, typename A>
void add_squares(const GramTile& p, std::int64_t block) {
  const std::int64_t blocks = gram_blocks(p.rows);
  double total = 0;
  for_block<A>(p, block, [&](std::int64_t image, std::int64_t row, const A* mirrored) {
    vec<A> sum{};
    for_elements<remove>(p, (image * p.rows + row) * p.columns, mirrored,
                         [&](std::int64_t, const gram_math::Element<vec<A>>& g, std::int64_t) {
                           sum += g.difference * g.difference;
                         });
    total += static_cast<double>(sum_lanes<A>(sum));
  });
  double* sum = p.sums + block / blocks * p.sums_stride + block % blocks;
  *sum = (p.add ? *sum : 0) + p.weight * total;
}

template <RemoveNegative remove, typename A>
void write_weights(const GramTile& p, std::int64_t block) {
  for_block<A>(p, block, [&](std::int64_t image, std::int64_t row, const A* mirrored) {
    const std::int64_t at = (image * p.rows + row) * p.columns;
    const A scale = static_cast<A>(p.scale) * static_cast<const A*>(p.grad)[image];
    const auto row_of_weights = [&](void* weights) {
      return weights == nullptr ? nullptr : static_cast<A*>(weights) + at;
    };
    A* student = row_of_weights(p.student_weights);
    A* teacher = row_of_weights(p.teacher_weights);
    for_elements<remove>(
        p, at, mirrored,
        [&](std::int64_t j, const gram_math::Element<vec<A>>& g, std::int64_t count) {
          if (student != nullptr) store_some(student + j, scale * g.student, count);
          if (teacher != nullptr) store_some(teacher + j, -scale * g.teacher, count);
        });
  });
}

// Calls body.operator()<remove, A>().
template <typename Body>
void visit(const GramTile& p, const Body& body) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    switch (p.remove) {
      case RemoveNegative::kNone:
        return body.template operator()<RemoveNegative::kNone, A>();
      case RemoveNegative::kTeacher:
        return body.template operator()<RemoveNegative::kTeacher, A>();
      case RemoveNegative::kBoth:
        return body.template operator()<RemoveNegative::kBoth, A>();
    }
  });
}

// In double, because the two products cancel where t is next to a rotation of s.
template <typename A>
void add_traces(const GramMoments& p, std::int64_t block) {
  constexpr int kSums = 8;  // side by side, for the compiler to make vectors of
  const std::int64_t blocks = gram_blocks(p.dim), image = block / blocks, dim = p.dim;
  const std::int64_t first = block % blocks * kGramRows, last = std::min(dim, first + kGramRows);
  const A* moments = static_cast<const A*>(p.moments) + image * 4 * dim * dim;
  double sums[kSums] = {};
  for (std::int64_t d = first; d < last; ++d) {
    const A *upper = moments + d * 2 * dim, *lower = moments + (dim + d) * 2 * dim;
    const auto term = [&](std::int64_t e) {
      return static_cast<double>(upper[e]) * static_cast<double>(lower[dim + e]) +
             static_cast<double>(upper[dim + e]) * static_cast<double>(lower[e]);
    };
    std::int64_t e = 0;
    for (; e + kSums <= dim; e += kSums) {
      for (int i = 0; i < kSums; ++i) sums[i] += term(e + i);
    }
    for (; e < dim; ++e) sums[0] += term(e);
  }
  double total = 0;
  for (double sum : sums) total += sum;
  p.sums[block] = total;
}

// A row of (R^T, Q; P, R), which are the rows of the moments with their halves exchanged.
template <typename A>
void write_matrices(const GramMoments& p, std::int64_t row) {
  const std::int64_t dim = p.dim, image = row / (2 * dim), k = row % (2 * dim);
  const A scale = static_cast<A>(p.scale) * static_cast<const A*>(p.grad)[image];
  const A* from =
      static_cast<const A*>(p.moments) + (image * 2 * dim + (k + dim) % (2 * dim)) * 2 * dim;
  A *student = static_cast<A*>(p.student_matrix), *teacher = static_cast<A*>(p.teacher_matrix);
  for (std::int64_t e = 0; e < dim; ++e) {
    if (student != nullptr) student[row * dim + e] = scale * (from[e] + from[dim + e]);
    if (teacher != nullptr) teacher[row * dim + e] = scale * (from[e] - from[dim + e]);
  }
}

}  // namespace

void gram_operands_cpu(const GramOperands& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.dtype, [&]<typename T>() {
    for (std::int64_t i = begin; i < end; ++i) write_operands<T>(p, i / p.rows, i % p.rows);
  });
}

void gram_tile_cpu(const GramTile& p, std::int64_t begin, std::int64_t end) {
  visit(p, [&]<RemoveNegative remove, typename A>() {
    for (std::int64_t block = begin; block < end; ++block) add_squares<remove, A>(p, block);
  });
}

void gram_tile_backward_cpu(const GramTile& p, std::int64_t begin, std::int64_t end) {
  visit(p, [&]<RemoveNegative remove, typename A>() {
    for (std::int64_t block = begin; block < end; ++block) write_weights<remove, A>(p, block);
  });
}

void gram_moments_cpu(const GramMoments& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t block = begin; block < end; ++block) add_traces<A>(p, block);
  });
}

void gram_moments_backward_cpu(const GramMoments& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t row = begin; row < end; ++row) write_matrices<A>(p, row);
  });
}

void gram_finish_cpu(const GramFinish& p) {
  visit_accumulation(p.dtype, [&]<typename A>() {
    for (std::int64_t image = 0; image < p.images; ++image) {
      double sum = 0;
      for (std::int64_t i = 0; i < p.blocks; ++i) sum += p.sums[image * p.blocks + i];
      // A rounding error can make the difference of two traces negative.
      static_cast<A*>(p.difference)[image] = static_cast<A>(sum < 0 ? 0 : p.scale * sum);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(gram_operands_cpu, (const GramOperands& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(gram_tile_cpu, (const GramTile& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(gram_tile_backward_cpu,
                   (const GramTile& p, std::int64_t begin, std::int64_t end), (p, begin, end))
MAST_EXT_CPU_ENTRY(gram_moments_cpu, (const GramMoments& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(gram_moments_backward_cpu,
                   (const GramMoments& p, std::int64_t begin, std::int64_t end), (p, begin, end))
MAST_EXT_CPU_ENTRY(gram_finish_cpu, (const GramFinish& p), (p))

}  // namespace mast_ext::kernels
