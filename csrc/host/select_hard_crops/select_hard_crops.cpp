#include "kernels/select_hard_crops/select_hard_crops.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// Checks the tuples to choose from and returns them dense. They must be on the CPU, where checking
// their values waits for nothing.
Tensor checked_tuples(const Tensor& tuples, std::int64_t globals, std::int64_t crops,
                      std::int64_t num_locals) {
  const std::int64_t width = 2 + num_locals;
  TORCH_CHECK_VALUE(tuples.dim() == 2 && tuples.size(0) >= 1 && tuples.size(1) == width,
                    "tuples must have shape [n, ", width, "] with n >= 1, got ", tuples.sizes());
  TORCH_CHECK_TYPE(tuples.scalar_type() == at::kLong && tuples.is_cpu(),
                   "tuples must be Long on the CPU, got ", tuples.scalar_type(), " on ",
                   tuples.device());
  const Tensor dense = tuples.contiguous();
  const auto* values = static_cast<const std::int64_t*>(dense.const_data_ptr());
  for (std::int64_t i = 0; i < dense.numel(); ++i) {
    const bool is_global = i % width < 2;
    const std::int64_t least = is_global ? 0 : globals, end = is_global ? globals : crops;
    TORCH_CHECK_VALUE(values[i] >= least && values[i] < end, "tuples must hold two of the ",
                      globals, " global crops and then local ones up to ", crops, ", got ",
                      values[i], " at [", i / width, ", ", i % width, "]");
  }
  return dense;
}

}  // namespace

std::tuple<Tensor, Tensor> select_hard_crops(const Tensor& ce_, const OptionalTensor& tuples_,
                                             std::int64_t num_locals) {
  TORCH_CHECK_VALUE(ce_.dim() == 3 && ce_.size(0) >= 2 && ce_.size(1) >= ce_.size(0),
                    "ce must have shape [G, G + L, B] with G >= 2, got ", ce_.sizes());
  const DType dtype = dtype_of(ce_, "ce");
  const std::int64_t globals = ce_.size(0), crops = ce_.size(1), batch = ce_.size(2);
  constexpr std::int64_t kMostCrops = 1 << 15;  // pairs are counted in 32 bits
  TORCH_CHECK_VALUE(crops <= kMostCrops, "ce must have at most ", kMostCrops, " crops, got shape ",
                    ce_.sizes());
  TORCH_CHECK_VALUE(num_locals >= 0 && num_locals <= crops - globals,
                    "num_locals must be from 0 to ", crops - globals,
                    ", the local crops of ce of shape ", ce_.sizes(), ", got ", num_locals);
  const Tensor ce = ce_.stride(2) == 1 || batch <= 1 ? ce_ : ce_.contiguous();
  Tensor tuples;
  if (tuples_) {
    tuples = checked_tuples(*tuples_, globals, crops, num_locals);
    if (!ce.is_cpu()) tuples = tuples.to(ce.device(), at::kLong, /*non_blocking=*/true);
  }
  Tensor index = ce.new_empty({2 + num_locals, batch}, ce.options().dtype(at::kLong));
  Tensor score = ce.new_empty({batch}, ce.options().dtype(accumulation_type(ce)));

  const kernels::SelectHardCrops p{
      .dtype = dtype,
      .globals = globals,
      .locals = crops - globals,
      .num_locals = num_locals,
      .batch = batch,
      .ce = ce.const_data_ptr(),
      .teacher_stride = ce.stride(0),
      .student_stride = ce.stride(1),
      .tuples = static_cast<const std::int64_t*>(const_element(tuples)),
      .count = tuples.defined() ? tuples.size(0) : (globals + 1) / 2 * (globals / 2),
      .index = static_cast<std::int64_t*>(index.mutable_data_ptr()),
      .score = score.mutable_data_ptr(),
  };
  const std::int64_t comparisons =
      p.locals * (tuples.defined() ? 1 : p.locals) + 1;  // approximately, per candidate
  run_on(
      ce,
      [&] {
        parallel_rows(batch, p.count * comparisons / 4,
                      [&](auto begin, auto end) { kernels::select_hard_crops_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::select_hard_crops_cuda(p, stream); });
  return {index, score};
}

}  // namespace mast_ext
