#include "kernels/gather_views/gather_views.h"

#include <cstdint>
#include <cstring>

#include "kernels/common/isa.h"
#include "kernels/common/simd.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// Sums the gradients of a view. Most views were selected once: their gradient is copied.
template <typename T>
void add_up(const GatherViewsBackward& p, std::int64_t view, std::int64_t b, T* to) {
  const auto* from = static_cast<const T*>(p.grad.data) + b * p.grad.batch_stride;
  auto* sources = scratch<const T*, struct Sources>(p.selected);
  std::int64_t count = 0;
  for (std::int64_t s = 0; s < p.selected; ++s) {
    if (p.index[s * p.batch + b] == view) sources[count++] = from + s * p.grad.view_stride;
  }
  if (count == 1) {
    std::memcpy(to, sources[0], p.row * sizeof(T));
    return;
  }
  for (std::int64_t d = 0; d < p.row; ++d) {
    accum_t<T> sum = 0;
    for (std::int64_t source = 0; source < count; ++source) {
      sum += static_cast<accum_t<T>>(sources[source][d]);
    }
    to[d] = static_cast<T>(sum);
  }
}

}  // namespace

void gather_views_cpu(const GatherViews& p, std::int64_t begin, std::int64_t end) {
  const auto* from = static_cast<const char*>(p.from.data);
  auto* to = static_cast<char*>(p.to);
  for (std::int64_t row = begin; row < end; ++row) {
    std::memcpy(to + row * p.row_bytes,
                from + p.index[row] * p.from.view_stride + row % p.batch * p.from.batch_stride,
                p.row_bytes);
  }
}

void gather_views_backward_cpu(const GatherViewsBackward& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.dtype, [&]<typename T>() {
    for (std::int64_t row = begin; row < end; ++row) {
      add_up(p, row / p.batch, row % p.batch, static_cast<T*>(p.grad_views) + row * p.row);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(gather_views_cpu, (const GatherViews& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(gather_views_backward_cpu,
                   (const GatherViewsBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
