// The memory layout of V views of a batch.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

// A [V, B, D] tensor whose last dimension is dense.
struct Views {
  const void* data;
  std::int64_t view_stride;
  std::int64_t batch_stride;
};

// The first element of the row of view v and image b.
template <typename T>
MAST_EXT_HD const T* row_of(const Views& views, std::int64_t v, std::int64_t b) {
  return static_cast<const T*>(views.data) + v * views.view_stride + b * views.batch_stride;
}

}  // namespace mast_ext::kernels
