#include "kernels/grouped_squared_difference/grouped_squared_difference.h"

#include "host/common/caching_allocator.h"
#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The arguments that forward and backward share, checked, with dense rows.
struct RowPairInputs {
  Tensor x, y, group, weight;
  std::int64_t rows, dim, groups;

  RowPairInputs(const Tensor& x_, const Tensor& y_, const Tensor& group_, std::int64_t groups_,
                const OptionalTensor& weight_)
      : groups(groups_) {
    TORCH_CHECK_VALUE(x_.dim() == 2 && x_.size(1) >= 1,
                      "x must have shape [N, D] with D >= 1, got ", x_.sizes());
    dtype_of(x_, "x");
    rows = x_.size(0), dim = x_.size(1);
    check_shape(y_, "y", x_.sizes());
    check_like(y_, "y", x_, "x");
    check_shape(group_, "group", {rows});
    check_device(group_, "group", x_, "x");
    check_long(group_, "group");
    constexpr std::int64_t kMostGroups = 65535;  // the limit of a CUDA grid's y dimension
    TORCH_CHECK_VALUE(groups >= 1 && groups <= kMostGroups, "groups must be from 1 to ",
                      kMostGroups, ", got ", groups);
    x = dense_rows(x_), y = dense_rows(y_), group = group_.contiguous();
    if (weight_) {
      check_shape(*weight_, "weight", {rows});
      check_device(*weight_, "weight", x_, "x");
      check_accumulation(*weight_, "weight", x_, "embeddings");
      weight = weight_->contiguous();
    }
    if (group.is_cpu()) check_groups();
  }

  kernels::RowPairs pairs() const {
    return {.dtype = dtype_of(x, "x"),
            .rows = rows,
            .dim = dim,
            .groups = groups,
            .x = x.const_data_ptr(),
            .y = y.const_data_ptr(),
            .x_stride = x.stride(0),
            .y_stride = y.stride(0),
            .group = static_cast<const std::int64_t*>(group.const_data_ptr()),
            .weight = const_element(weight)};
  }

  Tensor new_sums(at::IntArrayRef shape) const {
    return x.new_empty(shape, x.options().dtype(accumulation_type(x)));
  }

 private:
  void check_groups() const {
    const auto* values = static_cast<const std::int64_t*>(group.const_data_ptr());
    for (std::int64_t n = 0; n < rows; ++n) {
      TORCH_CHECK_VALUE(values[n] < groups, "group must lie below ", groups, ", got ", values[n],
                        " at [", n, "]");
    }
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> grouped_squared_difference(
    const Tensor& x, const Tensor& y, const Tensor& group, std::int64_t groups,
    const OptionalTensor& weight, const OptionalTensor& dimension_weights_) {
  const RowPairInputs in(x, y, group, groups, weight);
  Tensor dimension_weights;
  if (dimension_weights_) {
    check_shape(*dimension_weights_, "dimension_weights", {groups, in.dim});
    check_device(*dimension_weights_, "dimension_weights", x, "x");
    check_accumulation(*dimension_weights_, "dimension_weights", x, "embeddings");
    dimension_weights = dimension_weights_->contiguous();
  }
  const bool cuda = uses_cuda_kernels(x), with_residual = dimension_weights.defined();
  const std::int64_t slices = kernels::difference_slices(in.rows, groups, cuda);
  Tensor sums = in.new_sums({groups, in.dim}), counts = in.new_sums({groups});
  Tensor residual = in.new_sums({with_residual ? in.rows : 0});
  Tensor slice_sums = sums, slice_counts = counts, block_residual;
  if (slices > 1) {
    slice_sums = in.new_sums({slices, groups, in.dim});
    slice_counts = in.new_sums({slices, groups});
  }
  if (with_residual && !cuda) {
    block_residual = in.new_sums({kernels::row_blocks(in.dim), in.rows});
  }
  const kernels::GroupedSquaredDifference p{
      .pairs = in.pairs(),
      .dimension_weights = const_element(dimension_weights),
      .slices = slices,
      .slice_sums = slice_sums.mutable_data_ptr(),
      .slice_counts = slice_counts.mutable_data_ptr(),
      .block_residual = element(block_residual),
      .sums = sums.mutable_data_ptr(),
      .counts = counts.mutable_data_ptr(),
      .residual = with_residual ? residual.mutable_data_ptr() : nullptr,
  };
  run_on(
      x,
      [&] {
        parallel_rows(
            slices * kernels::row_blocks(in.dim),
            (in.rows / slices + groups) * std::min(in.dim, kernels::kRowBlock),
            [&](auto begin, auto end) { kernels::grouped_squared_difference_cpu(p, begin, end); });
        kernels::grouped_squared_difference_finish_cpu(p);
      },
      [&](auto stream) { return kernels::grouped_squared_difference_cuda(p, stream); });
  return {sums, counts, residual};
}

std::tuple<Tensor, Tensor, Tensor> grouped_squared_difference_backward(
    const Tensor& grad_sums_, const OptionalTensor& grad_counts_, const Tensor& x, const Tensor& y,
    const Tensor& group, const OptionalTensor& weight, std::array<bool, 3> wanted) {
  TORCH_CHECK_VALUE(grad_sums_.dim() == 2, "grad_sums must have shape [G, D], got ",
                    grad_sums_.sizes());
  const std::int64_t groups = grad_sums_.size(0);
  const RowPairInputs in(x, y, group, groups, weight);
  check_shape(grad_sums_, "grad_sums", {groups, in.dim});
  const auto check_dtype = [&](const Tensor& grad, const char* name) {
    check_device(grad, name, x, "x");
    check_accumulation(grad, name, x, "embeddings");
  };
  check_dtype(grad_sums_, "grad_sums");
  const Tensor grad_sums = grad_sums_.contiguous();
  Tensor grad_counts;
  if (grad_counts_) {
    check_shape(*grad_counts_, "grad_counts", {groups});
    check_dtype(*grad_counts_, "grad_counts");
    grad_counts = grad_counts_->contiguous();
  }
  Tensor grad_x, grad_y, grad_weight;
  if (wanted[0]) grad_x = new_result(x, x.sizes());
  if (wanted[1]) grad_y = new_result(x, x.sizes());
  if (wanted[2]) grad_weight = in.new_sums({in.rows});
  const kernels::GroupedSquaredDifferenceBackward p{
      .pairs = in.pairs(),
      .grad_sums = grad_sums.const_data_ptr(),
      .grad_counts = const_element(grad_counts),
      .grad_x = element(grad_x),
      .grad_y = element(grad_y),
      .grad_weight = element(grad_weight),
  };
  run_on(
      x,
      [&] {
        parallel_rows(in.rows, 2 * in.dim, [&](auto begin, auto end) {
          kernels::grouped_squared_difference_backward_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::grouped_squared_difference_backward_cuda(p, stream); });
  for (Tensor* grad : {&grad_x, &grad_y}) {
    if (!grad->defined()) *grad = x.new_empty({0});
  }
  if (!grad_weight.defined()) grad_weight = in.new_sums({0});
  return {grad_x, grad_y, grad_weight};
}

}  // namespace mast_ext
