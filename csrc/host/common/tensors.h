// Types and functions for tensors that all host code uses.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernels/common/views.h"

namespace mast_ext {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// While an object of this class lives, tensor methods apply neither autograd nor autocast.
class PlainTensors {
  const c10::impl::ExcludeDispatchKeyGuard guard_{c10::autograd_dispatch_keyset |
                                                  c10::autocast_dispatch_keyset};
};

// Returns t, or a dense copy if its last dimension is not dense.
inline Tensor dense_rows(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

// Rows [row, row + rows) and columns [column, column + columns) of a matrix: what narrow() gives
// twice, at a fraction of the time, which counts where tiles are small. Bounds are not checked.
inline Tensor part(const Tensor& matrix, std::int64_t row, std::int64_t rows, std::int64_t column,
                   std::int64_t columns) {
  return matrix.as_strided(
      {rows, columns}, matrix.strides(),
      matrix.storage_offset() + row * matrix.stride(0) + column * matrix.stride(1));
}

inline kernels::Views views_of(const Tensor& t) {
  return {.data = t.const_data_ptr(), .view_stride = t.stride(0), .batch_stride = t.stride(1)};
}

// The address of an element of a dense tensor; null if the tensor is undefined, as an optional
// argument is that was not given.
inline const void* const_element(const Tensor& t, std::int64_t at = 0) {
  if (!t.defined()) return nullptr;
  return static_cast<const std::byte*>(t.const_data_ptr()) + at * t.element_size();
}
inline void* element(const Tensor& t, std::int64_t at = 0) {
  if (!t.defined()) return nullptr;
  return static_cast<std::byte*>(t.mutable_data_ptr()) + at * t.element_size();
}

}  // namespace mast_ext
