#include "kernels/prototype_column_logsumexp/prototype_column_logsumexp.h"

#include <algorithm>
#include <cmath>

#include "host/common/checks.h"
#include "host/common/chunk_limit.h"
#include "host/common/run_on.h"
#include "host/common/tensors.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// The number of slices of the rows: enough for all threads, yet few compared to the rows. It does
// not depend on the number of threads, so that the results do not, either.
std::int64_t slices_of(std::int64_t rows, std::int64_t prototypes, bool cuda) {
  constexpr std::int64_t kLeastRows = 8, kMostSlices = 1 << 12;
  constexpr std::int64_t kCpuSlices = 16, kCudaColumns = 1 << 19;  // a thread has 4 or 8 columns
  const std::int64_t wanted =
      cuda ? chunk_limit(kCudaColumns) / std::max<std::int64_t>(prototypes, 1) : kCpuSlices;
  return std::clamp<std::int64_t>(std::min(wanted, rows / kLeastRows), 1, kMostSlices);
}

// The number of parts of a row that a GPU's thread blocks share.
std::int64_t parts_of(std::int64_t rows, std::int64_t prototypes) {
  constexpr std::int64_t kEnough = 1 << 12, kLeastColumns = 1 << 11;
  const std::int64_t wanted = kEnough / std::max<std::int64_t>(rows, 1);
  return std::clamp<std::int64_t>(std::min(wanted, prototypes / kLeastColumns), 1, kEnough);
}

}  // namespace

Tensor prototype_column_logsumexp(const Tensor& logits_, const OptionalTensor& center_,
                                  double temperature, bool normalize_rows) {
  TORCH_CHECK_VALUE(logits_.dim() == 2, "logits must have shape [N, C], got ", logits_.sizes());
  const DType dtype = dtype_of(logits_, "logits");
  TORCH_CHECK_VALUE(temperature > 0 && std::isfinite(temperature),
                    "temperature must be positive, got ", temperature);
  const Tensor logits = dense_rows(logits_);
  const std::int64_t rows = logits.size(0), prototypes = logits.size(1);
  const auto sums = logits.options().dtype(accumulation_type(logits));
  const Tensor center = checked_center(center_, logits, "logits");
  const bool cuda = uses_cuda_kernels(logits);
  const std::int64_t slices = slices_of(rows, prototypes, cuda);
  Tensor column = logits.new_empty({prototypes}, sums);
  Tensor partial_sum = logits.new_empty({slices, prototypes}, sums);
  Tensor partial_max = logits.new_empty({cuda ? slices : 0, prototypes}, sums);
  const std::int64_t parts = cuda ? parts_of(rows, prototypes) : 1;
  Tensor of_rows = logits.new_empty({2, normalize_rows ? rows * parts : 0}, sums);

  const kernels::PrototypeColumns p{
      .dtype = dtype,
      .rows = rows,
      .prototypes = prototypes,
      .logits = logits.const_data_ptr(),
      .row_stride = logits.stride(0),
      .center = const_element(center),
      .temperature = temperature,
      .normalize_rows = normalize_rows,
      .slices = slices,
      .partial_sum = partial_sum.mutable_data_ptr(),
      .partial_max = partial_max.mutable_data_ptr(),
      .parts = parts,
      .row_max = of_rows.select(0, 0).mutable_data_ptr(),
      .row_sum = of_rows.select(0, 1).mutable_data_ptr(),
      .column = column.mutable_data_ptr(),
  };
  run_on(
      logits,
      [&] {
        if (normalize_rows) {
          parallel_rows(slices, 8 * rows / slices * prototypes, [&](auto begin, auto end) {
            kernels::prototype_column_slices_cpu(p, begin, end);
          });
        }
        const std::int64_t chunks =
            (prototypes + kernels::kPrototypeChunk - 1) / kernels::kPrototypeChunk;
        parallel_rows(chunks, 8 * rows * kernels::kPrototypeChunk, [&](auto begin, auto end) {
          kernels::prototype_column_chunks_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::prototype_column_logsumexp_cuda(p, stream); });
  return column;
}

}  // namespace mast_ext
