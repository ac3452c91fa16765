// The memory layout of V views of a batch that lie anywhere.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// [B, D] tensors that lie anywhere, or one [V, B, D] tensor with any number of views; the last
// dimension is dense. Kernels take the table itself, so that a GPU's need not be copied there
// first.
template <typename Void>  // void or const void
struct ListedViews {
  static constexpr int kMost = 32;  // tensors

  Void* data[kMost];
  std::int64_t batch_strides[kMost];
  std::int64_t turn_stride;  // from a view of one tensor to that kMost views on
};

template <typename T, typename Void>
MAST_EXT_HD auto* row_of(const ListedViews<Void>& views, std::int64_t v, std::int64_t b) {
  constexpr auto kMost = static_cast<std::uint64_t>(ListedViews<Void>::kMost);
  using Element = std::conditional_t<std::is_const_v<Void>, const T, T>;
  const auto number = static_cast<std::uint64_t>(v), nth = number % kMost;
  return static_cast<Element*>(views.data[nth]) + b * views.batch_strides[nth] +
         static_cast<std::int64_t>(number / kMost) * views.turn_stride;
}

}  // namespace mast_ext::kernels
