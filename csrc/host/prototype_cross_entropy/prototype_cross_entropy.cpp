#include "kernels/prototype_cross_entropy/prototype_cross_entropy.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/mul.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "host/common/caching_allocator.h"
#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/common/tensors.h"
#include "host/ops.h"
#include "kernels/prototype_cross_entropy/prototype_cross_entropy_math.h"

namespace mast_ext {
namespace {

void check_temperature(double temperature, const char* name) {
  TORCH_CHECK_VALUE(std::isfinite(temperature) && temperature > 0, name,
                    " must be positive and finite, got ", temperature);
}

using Tensors = std::vector<Tensor>;
constexpr std::int64_t kMostListed = kernels::ListedViews<void>::kMost;

// The table of `views` views: of one tensor [V, B, C], or of tensors [B, C].
template <typename Void>
kernels::ListedViews<Void> listed(const Tensors& tensors, std::int64_t views) {
  const Tensor& first = tensors.front();
  const bool stacked = first.dim() == 3;
  kernels::ListedViews<Void> table{};
  for (std::int64_t v = 0; v < std::min(views, kMostListed); ++v) {
    const Tensor& of = stacked ? first : tensors[v];
    const std::int64_t at = stacked ? v * first.stride(0) : 0;
    if constexpr (std::is_const_v<Void>) {
      table.data[v] = const_element(of, at);
    } else {
      table.data[v] = element(of, at);
    }
    table.batch_strides[v] = of.stride(-2);
  }
  if (views > kMostListed) table.turn_stride = kMostListed * first.stride(0);
  return table;
}

// Logits of V views: one tensor [V, B, C], or a list of [B, C]. Rows are made dense.
struct Logits {
  std::int64_t views, batch, prototypes;
  Tensors tensors;

  Logits(at::TensorList given, const char* name, const char* letter) {
    const auto count = static_cast<std::int64_t>(given.size());
    TORCH_CHECK_VALUE(1 <= count && count <= kMostListed, name, " must hold 1 to ", kMostListed,
                      " tensors, got ", count);
    const Tensor& first = given[0];
    if (count == 1) {
      TORCH_CHECK_VALUE(first.dim() == 3 && first.size(0) >= 1 && first.size(2) >= 1, name,
                        " must have shape [", letter, ", B, C] with ", letter,
                        " >= 1 and C >= 1, got ", first.sizes());
    }
    tensors.reserve(given.size());
    for (const Tensor& t : given) {
      TORCH_CHECK_VALUE(
          count == 1 || (t.dim() == 2 && t.size(1) >= 1 && t.sizes() == first.sizes()), name,
          " must hold views of one shape [B, C] with C >= 1, got ", first.sizes(), " and ",
          t.sizes());
      tensors.push_back(dense_rows(t));
    }
    views = count == 1 ? first.size(0) : count;
    batch = first.size(-2);
    prototypes = first.size(-1);
  }

  // As a shape in messages.
  std::array<std::int64_t, 3> sizes() const { return {views, batch, prototypes}; }

  // New tensors of the same form.
  Tensors new_results() const {
    return mast_ext::new_results(tensors.front(), static_cast<std::int64_t>(tensors.size()),
                                 tensors.front().sizes());
  }
};

// student [S, B, C], teacher [T, B, C] and center [C], checked and laid out for the kernels.
struct PrototypeInputs {
  Logits student, teacher;
  Tensor center;  // undefined if not given
  double student_temperature, teacher_temperature;

  PrototypeInputs(at::TensorList student_, at::TensorList teacher_, const OptionalTensor& center_,
                  double student_temperature_, double teacher_temperature_)
      : student(student_, "student", "S"),
        teacher(teacher_, "teacher", "T"),
        student_temperature(student_temperature_),
        teacher_temperature(teacher_temperature_) {
    dtype_of(like(), "student");
    TORCH_CHECK_VALUE(teacher.batch == batch() && teacher.prototypes == prototypes(),
                      "teacher must have shape [T, ", batch(), ", ", prototypes(),
                      "] with T >= 1 to fit student of shape ", at::IntArrayRef(student.sizes()),
                      ", got ", at::IntArrayRef(teacher.sizes()));
    for (const Tensor& t : student.tensors) check_like(t, "student", like(), "its first view");
    for (const Tensor& t : teacher.tensors) check_like(t, "teacher", like(), "student");
    center = checked_center(center_, like(), "student");
    check_temperature(student_temperature, "student_temperature");
    check_temperature(teacher_temperature, "teacher_temperature");
  }

  // A tensor of the device and dtype of all logits.
  const Tensor& like() const { return student.tensors.front(); }

  std::int64_t students() const { return student.views; }
  std::int64_t teachers() const { return teacher.views; }
  std::int64_t batch() const { return student.batch; }
  std::int64_t prototypes() const { return student.prototypes; }

  Tensor new_empty(at::IntArrayRef shape) const {
    return like().new_empty(shape, like().options().dtype(accumulation_type(like())));
  }

  kernels::PrototypeLogits logits() const {
    return {.dtype = dtype_of(like(), "student"),
            .students = students(),
            .teachers = teachers(),
            .batch = batch(),
            .prototypes = prototypes(),
            .student = listed<const void>(student.tensors, students()),
            .teacher = listed<const void>(teacher.tensors, teachers()),
            .center = const_element(center),
            .student_temperature = student_temperature,
            .teacher_temperature = teacher_temperature};
  }

  // The approximate number of scalar steps of an image's chunk.
  std::int64_t chunk_cost(const kernels::PrototypeShares& shares) const {
    constexpr std::int64_t kExponential = 8;
    const std::int64_t rows = students() + teachers();
    return std::min(shares.chunk, prototypes()) * (kExponential * rows + students() * teachers());
  }
};

// The results of the forward pass, and the work space of its kernels.
struct PrototypeResults {
  Tensor cross_entropy, teacher_mean, student_stats, teacher_stats;
  Tensor partials, column_sums;

  PrototypeResults(const PrototypeInputs& in, bool with_mean)
      : cross_entropy(in.new_empty({in.teachers(), in.students(), in.batch()})),
        teacher_mean(in.new_empty({with_mean ? in.prototypes() : 0})),
        student_stats(in.new_empty({2, in.students(), in.batch()})),
        teacher_stats(in.new_empty({2, in.teachers(), in.batch()})) {
    if (in.batch() == 0) teacher_mean.fill_(std::nan(""));  // the mean of no rows
  }

  kernels::PrototypeCrossEntropy forward(const PrototypeInputs& in,
                                         const kernels::PrototypeShares& shares) {
    const kernels::prototype_math::PartialLayout layout{in.students(), in.teachers()};
    const bool with_mean = teacher_mean.numel() > 0;
    partials = in.new_empty({in.batch(), layout.size(), shares.chunks});
    if (with_mean) {
      column_sums =
          new_workspace(in.like(), {shares.groups, shares.columns()}, accumulation_type(in.like()));
    }
    return {
        .logits = in.logits(),
        .shares = shares,
        .partials = partials.mutable_data_ptr(),
        .column_sums = with_mean ? column_sums.mutable_data_ptr() : nullptr,
        .student_stats = student_stats.mutable_data_ptr(),
        .teacher_stats = teacher_stats.mutable_data_ptr(),
        .cross_entropy = cross_entropy.mutable_data_ptr(),
        .teacher_mean = with_mean ? teacher_mean.mutable_data_ptr() : nullptr,
    };
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> outputs() const {
    return {cross_entropy, teacher_mean, student_stats, teacher_stats};
  }
};

bool is_large(const Tensors& results) {
  return results.size() * results.front().nbytes() >= kLargeResult;
}

void mean_of_groups(const kernels::PrototypeCrossEntropy& p) {
  constexpr std::int64_t kColumns = 1024, kLanes = 16;  // a step adds a vector
  const std::int64_t prototypes = p.logits.prototypes;
  parallel_rows((prototypes + kColumns - 1) / kColumns, kColumns / kLanes * p.shares.groups,
                [&](auto begin, auto end) {
                  kernels::prototype_mean_cpu(p, begin * kColumns,
                                              std::min(end * kColumns, prototypes));
                });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> prototype_cross_entropy(
    at::TensorList student, at::TensorList teacher, const OptionalTensor& center,
    double student_temperature, double teacher_temperature, bool with_mean) {
  const PrototypeInputs in(student, teacher, center, student_temperature, teacher_temperature);
  PrototypeResults to(in, with_mean);
  if (in.batch() == 0) return to.outputs();
  const std::int64_t S = in.students(), T = in.teachers(), B = in.batch();
  const kernels::PrototypeLogits logits = in.logits();
  run_on(
      in.like(),
      [&] {
        const auto p = to.forward(in, kernels::prototype_shares_cpu(logits));
        parallel_rows(
            p.shares.count(), in.chunk_cost(p.shares) * p.shares.group,
            [&](auto begin, auto end) { kernels::prototype_cross_entropy_cpu(p, begin, end); });
        parallel_rows(B, p.shares.chunks * (S + T + T * S), [&](auto begin, auto end) {
          kernels::prototype_cross_entropy_merge_cpu(p, begin, end);
        });
        if (with_mean) mean_of_groups(p);
      },
      [&](auto stream) {
        return kernels::prototype_cross_entropy_cuda(
            to.forward(in, kernels::prototype_shares_cuda(logits)), stream);
      });
  return to.outputs();
}

Tensors prototype_cross_entropy_backward(const Tensor& grad_, at::TensorList student,
                                         at::TensorList teacher, const OptionalTensor& center,
                                         const Tensor& student_stats, const Tensor& teacher_stats,
                                         double student_temperature, double teacher_temperature) {
  const PrototypeInputs in(student, teacher, center, student_temperature, teacher_temperature);
  const std::int64_t S = in.students(), T = in.teachers(), B = in.batch();
  check_shape(student_stats, "student_stats", {2, S, B});
  check_shape(teacher_stats, "teacher_stats", {2, T, B});
  check_shape(grad_, "grad", {T, S, B});
  check_like(grad_, "grad", student_stats, "student_stats");
  const Tensor grad = grad_.contiguous(), of_students = student_stats.contiguous(),
               of_teachers = teacher_stats.contiguous();
  Tensors grad_student = in.student.new_results();
  if (B == 0) return grad_student;

  const kernels::PrototypeLogits logits = in.logits();
  kernels::PrototypeCrossEntropyBackward p{
      .logits = logits,
      .shares = kernels::prototype_shares_cpu(logits),
      .student_stats = of_students.const_data_ptr(),
      .teacher_stats = of_teachers.const_data_ptr(),
      .grad = grad.const_data_ptr(),
      .grad_student = listed<void>(grad_student, S),
      .large = is_large(grad_student),
  };
  run_on(
      in.like(),
      [&] {
        parallel_rows(B * p.shares.chunks, in.chunk_cost(p.shares), [&](auto begin, auto end) {
          kernels::prototype_cross_entropy_backward_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::prototype_cross_entropy_backward_cuda(p, stream); });
  return grad_student;
}

std::tuple<Tensor, Tensor, Tensors> prototype_cross_entropy_with_grad(
    at::TensorList student, at::TensorList teacher, const OptionalTensor& center,
    const Tensor& weights_, double student_temperature, double teacher_temperature,
    bool with_mean) {
  const PrototypeInputs in(student, teacher, center, student_temperature, teacher_temperature);
  TORCH_CHECK(!uses_cuda_kernels(in.like()),
              "prototype_cross_entropy_with_grad is for the CPU, got student on ",
              in.like().device());
  TORCH_CHECK_TYPE(in.like().scalar_type() != at::kHalf,
                   "student must be float32, bfloat16 or float64: its gradient, kept before it is "
                   "scaled, does not fit float16");
  PrototypeResults to(in, with_mean);
  const auto pairs = to.cross_entropy.sizes();
  TORCH_CHECK_VALUE(at::is_expandable_to(weights_.sizes(), pairs), "weights must have shape ",
                    pairs, " or broadcast to it, got ", weights_.sizes());
  check_device(weights_, "weights", in.like(), "student");
  TORCH_CHECK_TYPE(!weights_.is_complex(), "weights must be real, got ", weights_.scalar_type());
  const Tensor weights = weights_.expand(pairs).to(to.cross_entropy.scalar_type()).contiguous();
  Tensor sum = in.new_empty({});
  Tensors grad_student = in.student.new_results();
  if (in.batch() == 0) {
    sum.zero_();
  } else {
    run_on(
        in.like(),
        [&] {
          const auto p = to.forward(in, kernels::prototype_groups_cpu(in.logits()));
          const kernels::PrototypeCrossEntropyBackward q{
              .logits = p.logits,
              .shares = p.shares,
              .student_stats = p.student_stats,
              .teacher_stats = p.teacher_stats,
              .grad = weights.const_data_ptr(),
              .grad_student = listed<void>(grad_student, in.students()),
              .large = is_large(grad_student),
          };
          const std::int64_t image_cost = in.chunk_cost(p.shares) * p.shares.chunks;
          parallel_rows(p.shares.groups, image_cost * p.shares.group, [&](auto begin, auto end) {
            kernels::prototype_cross_entropy_with_grad_cpu(p, q, begin, end);
          });
          kernels::prototype_weighted_sum_cpu(p, q, sum.mutable_data_ptr());
          if (with_mean) mean_of_groups(p);
        },
        [](auto) { return 1; });  // cudaErrorInvalidValue; not reached, as refused above
  }
  return {sum, to.teacher_mean, grad_student};
}

Tensors prototype_cross_entropy_with_grad_backward(const Tensor& grad,
                                                   at::TensorList grad_student) {
  check_shape(grad, "grad", {});
  TORCH_CHECK_VALUE(!grad_student.empty(), "grad_student must hold one view at least");
  for (const Tensor& view : grad_student) {
    check_shape(view, "grad_student", grad_student[0].sizes());
    check_like(view, "grad_student", grad_student[0], "its first view");
  }
  Tensors results = new_results(grad_student[0], static_cast<std::int64_t>(grad_student.size()),
                                grad_student[0].sizes());
  for (std::size_t i = 0; i < results.size(); ++i) at::mul_out(results[i], grad_student[i], grad);
  return results;
}

}  // namespace mast_ext
