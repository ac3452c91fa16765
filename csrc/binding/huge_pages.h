// Where a CPU operator's large results lie in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace mast_ext {

// Asks for a large new tensor to be laid on huge pages, all of them now, and gives it back: the
// faults of small pages take longer than computing what is written there, and those of huge ones
// ten times as long when two threads meet in them. Large is what malloc takes from the system anew
// every time; smaller memory it has often had before.
inline at::Tensor on_huge_pages(at::Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older ones refuse it, and nothing is lost
#endif
  constexpr std::uintptr_t kPage = 4096, kLarge = 32 << 20;
  if (t.is_cpu() && t.nbytes() >= kLarge) {
    const auto begin = reinterpret_cast<std::uintptr_t>(t.const_data_ptr());
    const auto end = begin + t.nbytes(), first = (begin + kPage - 1) / kPage * kPage;
    void* const pages = reinterpret_cast<void*>(first);
    const std::size_t length = (end - first) / kPage * kPage;
    if (madvise(pages, length, MADV_HUGEPAGE) == 0) madvise(pages, length, MADV_POPULATE_WRITE);
  }
#endif
  return t;
}

}  // namespace mast_ext
