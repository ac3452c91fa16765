#include "kernels/prototype_cross_entropy/prototype_cross_entropy.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/mul.h>

#include <cmath>
#include <cstdint>

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

// student [S, B, C], teacher [T, B, C] and center [C], checked and laid out for the kernels.
struct PrototypeInputs {
  Tensor student, teacher, center;  // center is undefined if not given
  double student_temperature, teacher_temperature;

  PrototypeInputs(const Tensor& student_, const Tensor& teacher_, const OptionalTensor& center_,
                  double student_temperature_, double teacher_temperature_)
      : student_temperature(student_temperature_), teacher_temperature(teacher_temperature_) {
    TORCH_CHECK_VALUE(student_.dim() == 3 && student_.size(0) >= 1 && student_.size(2) >= 1,
                      "student must have shape [S, B, C] with S >= 1 and C >= 1, got ",
                      student_.sizes());
    dtype_of(student_, "student");
    TORCH_CHECK_VALUE(
        teacher_.dim() == 3 && teacher_.size(0) >= 1 && teacher_.size(1) == student_.size(1) &&
            teacher_.size(2) == student_.size(2),
        "teacher must have shape [T, ", student_.size(1), ", ", student_.size(2),
        "] with T >= 1 to fit student of shape ", student_.sizes(), ", got ", teacher_.sizes());
    check_like(teacher_, "teacher", student_, "student");
    center = checked_center(center_, student_, "student");
    check_temperature(student_temperature, "student_temperature");
    check_temperature(teacher_temperature, "teacher_temperature");
    student = dense_rows(student_);
    teacher = dense_rows(teacher_);
  }

  std::int64_t students() const { return student.size(0); }
  std::int64_t teachers() const { return teacher.size(0); }
  std::int64_t batch() const { return student.size(1); }
  std::int64_t prototypes() const { return student.size(2); }

  Tensor new_empty(at::IntArrayRef shape) const {
    return student.new_empty(shape, student.options().dtype(accumulation_type(student)));
  }

  kernels::PrototypeLogits logits() const {
    return {.dtype = dtype_of(student, "student"),
            .students = students(),
            .teachers = teachers(),
            .batch = batch(),
            .prototypes = prototypes(),
            .student = views_of(student),
            .teacher = views_of(teacher),
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
      column_sums = new_workspace(in.student, {shares.groups, shares.columns()},
                                  accumulation_type(in.student));
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
    const Tensor& student, const Tensor& teacher, const OptionalTensor& center,
    double student_temperature, double teacher_temperature, bool with_mean) {
  const PrototypeInputs in(student, teacher, center, student_temperature, teacher_temperature);
  PrototypeResults to(in, with_mean);
  if (in.batch() == 0) return to.outputs();
  const std::int64_t S = in.students(), T = in.teachers(), B = in.batch();
  const kernels::PrototypeLogits logits = in.logits();
  run_on(
      in.student,
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

Tensor prototype_cross_entropy_backward(const Tensor& grad_, const Tensor& student,
                                        const Tensor& teacher, const OptionalTensor& center,
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
  Tensor grad_student = new_result(in.student, {S, B, in.prototypes()});
  if (B == 0) return grad_student;

  const kernels::PrototypeLogits logits = in.logits();
  kernels::PrototypeCrossEntropyBackward p{
      .logits = logits,
      .shares = kernels::prototype_shares_cpu(logits),
      .student_stats = of_students.const_data_ptr(),
      .teacher_stats = of_teachers.const_data_ptr(),
      .grad = grad.const_data_ptr(),
      .grad_student = grad_student.mutable_data_ptr(),
      .large = grad_student.nbytes() >= kLargeResult,
  };
  run_on(
      in.student,
      [&] {
        parallel_rows(B * p.shares.chunks, in.chunk_cost(p.shares), [&](auto begin, auto end) {
          kernels::prototype_cross_entropy_backward_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::prototype_cross_entropy_backward_cuda(p, stream); });
  return grad_student;
}

std::tuple<Tensor, Tensor, Tensor> prototype_cross_entropy_with_grad(
    const Tensor& student, const Tensor& teacher, const OptionalTensor& center,
    const Tensor& weights_, double student_temperature, double teacher_temperature,
    bool with_mean) {
  const PrototypeInputs in(student, teacher, center, student_temperature, teacher_temperature);
  TORCH_CHECK(!uses_cuda_kernels(in.student),
              "prototype_cross_entropy_with_grad is for the CPU, got student on ",
              in.student.device());
  TORCH_CHECK_TYPE(in.student.scalar_type() != at::kHalf,
                   "student must be float32, bfloat16 or float64: its gradient, kept before it is "
                   "scaled, does not fit float16");
  PrototypeResults to(in, with_mean);
  const auto pairs = to.cross_entropy.sizes();
  TORCH_CHECK_VALUE(at::is_expandable_to(weights_.sizes(), pairs), "weights must have shape ",
                    pairs, " or broadcast to it, got ", weights_.sizes());
  check_device(weights_, "weights", student, "student");
  TORCH_CHECK_TYPE(!weights_.is_complex(), "weights must be real, got ", weights_.scalar_type());
  const Tensor weights = weights_.expand(pairs).to(to.cross_entropy.scalar_type()).contiguous();
  Tensor sum = in.new_empty({}), grad_student = new_result(in.student, in.student.sizes());
  if (in.batch() == 0) {
    sum.zero_();
  } else {
    run_on(
        in.student,
        [&] {
          const auto p = to.forward(in, kernels::prototype_groups_cpu(in.logits()));
          const kernels::PrototypeCrossEntropyBackward q{
              .logits = p.logits,
              .shares = p.shares,
              .student_stats = p.student_stats,
              .teacher_stats = p.teacher_stats,
              .grad = weights.const_data_ptr(),
              .grad_student = grad_student.mutable_data_ptr(),
              .large = grad_student.nbytes() >= kLargeResult,
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

Tensor prototype_cross_entropy_with_grad_backward(const Tensor& grad, const Tensor& grad_student) {
  check_shape(grad, "grad", {});
  Tensor result = new_result(grad_student, grad_student.sizes());
  return at::mul_out(result, grad_student, grad);
}

}  // namespace mast_ext
