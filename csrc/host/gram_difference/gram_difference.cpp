#include "kernels/gram_difference/gram_difference.h"

#include <algorithm>

#include "host/columns/column_passes.h"
#include "host/common/caching_allocator.h"
#include "host/common/chunk_limit.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

using kernels::RemoveNegative;

RemoveNegative parse_remove_negative(std::optional<std::string_view> name) {
  if (!name) return RemoveNegative::kNone;
  TORCH_CHECK_VALUE(*name == "teacher" || *name == "both",
                    "remove_negative must be 'teacher', 'both' or None, got '", std::string(*name),
                    "'");
  return *name == "both" ? RemoveNegative::kBoth : RemoveNegative::kTeacher;
}

// The checked arguments and the form that is cheaper for them, of which mast_ext/ops must know.
struct GramInputs {
  Tensor s, t;
  std::int64_t images, rows, dim;
  RemoveNegative remove;
  bool moments;  // the moment form, rather than the Gram form
  bool whole;    // the Gram form in one tile, the products of which can be kept for the backward
  std::int64_t tile;
  bool cuda;

  GramInputs(const Tensor& s_, const Tensor& t_, std::optional<std::string_view> remove_negative)
      : remove(parse_remove_negative(remove_negative)) {
    TORCH_CHECK_VALUE(s_.dim() == 3 && s_.size(1) >= 1 && s_.size(2) >= 1,
                      "s must have shape [B, N, D] with N >= 1 and D >= 1, got ", s_.sizes());
    dtype_of(s_, "s");
    check_shape(t_, "t", s_.sizes());
    check_like(t_, "t", s_, "s");
    s = dense_rows(s_), t = dense_rows(t_);
    images = s.size(0), rows = s.size(1), dim = s.size(2);
    cuda = uses_cuda_kernels(s);
    // From N = 2 D on the [2 D, 2 D] moments are smaller than the [N, N] products, and forward and
    // backward take fewer operations.
    const bool many = rows > 2 * dim;
    moments = many && remove == RemoveNegative::kNone;
    whole = !many && remove == RemoveNegative::kNone;
    tile = whole ? rows : std::min<std::int64_t>(rows, cuda ? 2048 : 512);
  }

  Tensor new_empty(at::IntArrayRef shape) const {
    return s.new_empty(shape, s.options().dtype(accumulation_type(s)));
  }
  Tensor workspace(at::IntArrayRef shape) const {
    return new_workspace(s, shape, accumulation_type(s));
  }
  // Of what the forward keeps for the backward, which is empty where nothing is.
  at::DimVector kept_shape() const {
    if (moments) return {images, 2 * dim, 2 * dim};
    return whole ? at::DimVector{images, rows, rows} : at::DimVector{0};
  }
  DType accumulation() const {
    return s.scalar_type() == at::kDouble ? DType::kFloat64 : DType::kFloat32;
  }

  // Calls body(first, count) for ranges of images that together are enough work for all threads,
  // and whose temporaries take no more memory than needed for that.
  template <typename Body>
  void each_images(const Body& body) const {
    const std::int64_t most = cuda ? chunk_limit(1 << 26) : 1 << 20;
    const std::int64_t largest = std::max(tile * tile, std::min(rows, row_chunks().step) * 2 * dim);
    const std::int64_t step = std::max<std::int64_t>(most / largest, 1);
    for (std::int64_t first = 0; first < images; first += step) {
      body(first, std::min(step, images - first));
    }
  }

  // Chunks of rows: all of them at once in the Gram form.
  Chunks row_chunks() const { return {rows, 2 * dim, !moments, cuda}; }

  // z = (s - t, s + t) of some images and rows, [count, rows, 2 D].
  Tensor operands(std::int64_t first, std::int64_t count, std::int64_t row,
                  std::int64_t length) const {
    Tensor z = workspace({count, length, 2 * dim});
    const Tensor x = s.narrow(0, first, count).narrow(1, row, length);
    const Tensor y = t.narrow(0, first, count).narrow(1, row, length);
    const kernels::GramOperands p{.dtype = dtype_of(s, "s"),
                                  .images = count,
                                  .rows = length,
                                  .dim = dim,
                                  .s = views_of(x),
                                  .t = views_of(y),
                                  .z = z.mutable_data_ptr()};
    run_on(
        s,
        [&] {
          parallel_rows(count * length, 2 * dim,
                        [&](auto begin, auto end) { kernels::gram_operands_cpu(p, begin, end); });
        },
        [&](auto stream) { return kernels::gram_operands_cuda(p, stream); });
    return z;
  }

  // Calls body(p, row, column, rows, columns) for the tiles of G on and above the diagonal, whose
  // products are those of `kept`, if that is defined, or are written to it if `fill`.
  template <typename Body>
  void each_tile(std::int64_t first, std::int64_t count, const Tensor& kept, bool fill,
                 const Body& body) const {
    const Tensor z = fill ? operands(first, count, 0, rows) : Tensor();
    const bool removes = remove != RemoveNegative::kNone;
    const Tensor teacher = removes ? wide(t, first, count) : Tensor();
    for (std::int64_t row = 0; row < rows; row += tile) {
      for (std::int64_t column = row; column < rows; column += tile) {
        const std::int64_t height = std::min(tile, rows - row),
                           width = std::min(tile, rows - column);
        Tensor products = kept.defined() ? kept : workspace({count, height, width});
        Tensor teachers;
        if (fill) {
          const Tensor left = z.narrow(1, row, height);
          const Tensor right = z.narrow(1, column, width).transpose(1, 2);
          add_product(products, left.narrow(2, 0, dim), right.narrow(1, dim, dim), true);
          if (row != column) {
            add_product(products, left.narrow(2, dim, dim), right.narrow(1, 0, dim), false);
          }
        }
        if (removes) {
          teachers = workspace({count, height, width});
          add_product(teachers, teacher.narrow(1, row, height),
                      teacher.narrow(1, column, width).transpose(1, 2), true);
        }
        kernels::GramTile p{.dtype = accumulation(),
                            .remove = remove,
                            .diagonal = row == column,
                            .images = count,
                            .rows = height,
                            .columns = width,
                            .products = products.const_data_ptr(),
                            .teacher = const_element(teachers)};
        body(p, row, column);
      }
    }
  }

  // Some images of s or t in the accumulation type.
  Tensor wide(const Tensor& x, std::int64_t first, std::int64_t count) const {
    return x.narrow(0, first, count).to(accumulation_type(s));
  }
};

// Runs cpu(begin, end) over blocks of rows of a tile, or cuda(stream).
template <typename Cpu, typename Cuda>
void run_blocks(const GramInputs& in, const kernels::GramTile& p, const Cpu& cpu,
                const Cuda& cuda) {
  run_on(
      in.s,
      [&] {
        parallel_rows(p.images * kernels::gram_blocks(p.rows), 2 * kernels::kGramRows * p.columns,
                      cpu);
      },
      cuda);
}

// The gradients of some images in the accumulation type; they are written to those in the type of s
// and t by finish().
struct Gradients {
  Tensor wanted, sums;

  Gradients(const GramInputs& in, const Tensor& grad, std::int64_t first, std::int64_t count) {
    if (!grad.defined()) return;
    wanted = grad.narrow(0, first, count);
    const bool same = wanted.scalar_type() == accumulation_type(in.s);
    sums = same ? wanted : in.workspace({count, in.rows, in.dim});
  }

  void finish() const {
    if (wanted.defined() && !wanted.is_same(sums)) wanted.copy_(sums);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> gram_difference(const Tensor& s, const Tensor& t,
                                           std::optional<std::string_view> remove_negative,
                                           bool keep) {
  const PlainTensors plain;
  const GramInputs in(s, t, remove_negative);
  const auto B = in.images, N = in.rows, D = in.dim;
  Tensor difference = in.new_empty({B});
  const bool keeps = keep && (in.whole || in.moments);
  Tensor product =
      new_result(in.s, keeps ? in.kept_shape() : at::DimVector{0}, accumulation_type(in.s));
  const std::int64_t blocks = kernels::gram_blocks(in.moments ? D : N);
  Tensor sums = in.s.new_empty({B, blocks}, in.s.options().dtype(at::kDouble));
  auto* const all_sums = static_cast<double*>(sums.mutable_data_ptr());

  in.each_images([&](std::int64_t first, std::int64_t count) {
    double* const own_sums = all_sums + first * blocks;
    const Tensor kept = keeps ? product.narrow(0, first, count) : Tensor();
    if (in.moments) {
      const Tensor moments = keeps ? kept : in.workspace({count, 2 * D, 2 * D});
      in.row_chunks().each([&](std::int64_t row, std::int64_t length) {
        const Tensor z = in.operands(first, count, row, length);
        add_gram(moments, z.transpose(1, 2), row == 0, row + length == N);
      });
      const kernels::GramMoments p{.dtype = in.accumulation(),
                                   .images = count,
                                   .dim = D,
                                   .moments = moments.const_data_ptr(),
                                   .sums = own_sums};
      run_on(
          in.s,
          [&] {
            parallel_rows(count * blocks, 2 * kernels::kGramRows * D,
                          [&](auto begin, auto end) { kernels::gram_moments_cpu(p, begin, end); });
          },
          [&](auto stream) { return kernels::gram_moments_cuda(p, stream); });
      return;
    }
    in.each_tile(first, count, kept, true, [&](kernels::GramTile& p, auto row, auto column) {
      p.weight = row == column ? 1 : 2;
      p.add = row != column;
      p.sums = own_sums + row / kernels::kGramRows;
      p.sums_stride = blocks;
      run_blocks(
          in, p, [&](auto begin, auto end) { kernels::gram_tile_cpu(p, begin, end); },
          [&](auto stream) { return kernels::gram_tile_cuda(p, stream); });
    });
  });

  const double pairs = static_cast<double>(N) * static_cast<double>(N);
  const kernels::GramFinish p{.dtype = in.accumulation(),
                              .images = B,
                              .blocks = blocks,
                              .sums = all_sums,
                              .scale = (in.moments ? 0.5 : 1) / pairs,
                              .difference = difference.mutable_data_ptr()};
  run_on(
      in.s, [&] { kernels::gram_finish_cpu(p); },
      [&](auto stream) { return kernels::gram_finish_cuda(p, stream); });
  return {difference, product};
}

std::tuple<Tensor, Tensor> gram_difference_backward(const Tensor& grad_difference_, const Tensor& s,
                                                    const Tensor& t, const Tensor& product_,
                                                    std::optional<std::string_view> remove_negative,
                                                    std::array<bool, 2> wanted) {
  const PlainTensors plain;
  const GramInputs in(s, t, remove_negative);
  const auto B = in.images, N = in.rows, D = in.dim;
  check_shape(grad_difference_, "grad_difference", {B});
  check_device(grad_difference_, "grad_difference", s, "s");
  check_accumulation(grad_difference_, "grad_difference", s, "tokens");
  check_shape(product_, "product", in.kept_shape());
  check_device(product_, "product", s, "s");
  check_accumulation(product_, "product", s, "tokens");
  const Tensor grad_difference = grad_difference_.contiguous(), product = product_.contiguous();
  Tensor grad_s, grad_t;
  if (wanted[0]) grad_s = new_result(in.s, {B, N, D});
  if (wanted[1]) grad_t = new_result(in.s, {B, N, D});
  const double pairs = static_cast<double>(N) * static_cast<double>(N);

  in.each_images([&](std::int64_t first, std::int64_t count) {
    if (!wanted[0] && !wanted[1]) return;
    const Gradients student(in, grad_s, first, count), teacher(in, grad_t, first, count);
    const void* const grad = const_element(grad_difference, first);
    if (in.moments) {
      const auto new_matrix = [&](bool want) {
        return want ? in.workspace({count, 2 * D, D}) : Tensor();
      };
      const Tensor student_matrix = new_matrix(wanted[0]), teacher_matrix = new_matrix(wanted[1]);
      const kernels::GramMoments p{.dtype = in.accumulation(),
                                   .images = count,
                                   .dim = D,
                                   .moments = const_element(product, first * 4 * D * D),
                                   .grad = grad,
                                   .scale = 1 / pairs,
                                   .student_matrix = element(student_matrix),
                                   .teacher_matrix = element(teacher_matrix)};
      run_on(
          in.s,
          [&] {
            parallel_rows(count * 2 * D, 2 * D, [&](auto begin, auto end) {
              kernels::gram_moments_backward_cpu(p, begin, end);
            });
          },
          [&](auto stream) { return kernels::gram_moments_backward_cuda(p, stream); });
      in.row_chunks().each([&](std::int64_t row, std::int64_t length) {
        const Tensor z = in.operands(first, count, row, length);
        if (wanted[0]) add_product(student.sums.narrow(1, row, length), z, student_matrix, true);
        if (wanted[1]) add_product(teacher.sums.narrow(1, row, length), z, teacher_matrix, true);
      });
    } else {
      const Tensor kept = in.whole ? product.narrow(0, first, count) : Tensor();
      const Tensor x = wanted[0] ? in.wide(in.s, first, count) : Tensor();
      const Tensor y = wanted[1] ? in.wide(in.t, first, count) : Tensor();
      in.each_tile(first, count, kept, !in.whole, [&](kernels::GramTile& p, auto row, auto column) {
        const auto new_weights = [&](bool want) {
          return want ? in.workspace({count, p.rows, p.columns}) : Tensor();
        };
        const Tensor student_weights = new_weights(wanted[0]);
        const Tensor teacher_weights = new_weights(wanted[1]);
        p.grad = grad;
        p.scale = 4 / pairs;
        p.student_weights = element(student_weights);
        p.teacher_weights = element(teacher_weights);
        run_blocks(
            in, p, [&](auto begin, auto end) { kernels::gram_tile_backward_cpu(p, begin, end); },
            [&](auto stream) { return kernels::gram_tile_backward_cuda(p, stream); });
        // G is symmetric: the tile's mirror image is its transpose. The first row of tiles is the
        // first to reach any rows of the gradients.
        const auto add = [&](const Tensor& sums, const Tensor& weights, const Tensor& tokens) {
          add_product(sums.narrow(1, row, p.rows), weights, tokens.narrow(1, column, p.columns),
                      column == 0);
          if (row == column) return;
          add_product(sums.narrow(1, column, p.columns), weights.transpose(1, 2),
                      tokens.narrow(1, row, p.rows), row == 0);
        };
        if (wanted[0]) add(student.sums, student_weights, x);
        if (wanted[1]) add(teacher.sums, teacher_weights, y);
      });
    }
    student.finish();
    teacher.finish();
  });
  for (Tensor* grad : {&grad_s, &grad_t}) {
    if (!grad->defined()) *grad = in.s.new_empty({0});
  }
  return {grad_s, grad_t};
}

}  // namespace mast_ext
