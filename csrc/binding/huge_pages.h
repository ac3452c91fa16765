// Where a CPU operator's large results lie in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace mast_ext {

// Asks for a large new tensor to be laid on huge pages, and gives it back: the faults of small ones
// take longer than computing what is written there.
inline at::Tensor on_huge_pages(at::Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096, kHuge = 2 << 20;
  if (t.is_cpu() && t.nbytes() >= 2 * kHuge) {
    const auto begin = reinterpret_cast<std::uintptr_t>(t.const_data_ptr());
    const auto end = begin + t.nbytes(), first = (begin + kPage - 1) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), (end - first) / kPage * kPage, MADV_HUGEPAGE);
  }
#endif
  return t;
}

}  // namespace mast_ext
