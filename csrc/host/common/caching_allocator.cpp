#include "host/common/caching_allocator.h"

#include <ATen/Context.h>
#include <ATen/ops/from_blob.h>

#include <cstddef>
#include <limits>
#include <list>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

// AddressSanitizer watches memory from the allocator only.
#if defined(__linux__) && defined(MADV_HUGEPAGE) && defined(MADV_FREE) && \
    !defined(__SANITIZE_ADDRESS__)
#define MAST_EXT_KEEP_BLOCKS
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older ones refuse it, and nothing is lost
#endif
#endif

namespace mast_ext {
namespace {

#ifdef MAST_EXT_KEEP_BLOCKS

constexpr std::size_t kHugePage = 2 << 20;

struct Block {
  void* data;
  std::size_t size;      // whole huge pages
  bool free_for_system;  // its pages are the system's to take, or not there yet
};

// Whole huge pages of the system's, aligned to them. Throws std::bad_alloc when there are none.
Block map_block(std::size_t size) {
  const std::size_t reserved = size + kHugePage;
  void* const start =
      mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(start);
  const std::size_t before = (kHugePage - address % kHugePage) % kHugePage;
  char* const data = static_cast<char*>(start) + before;
  if (before > 0) munmap(start, before);
  if (before < kHugePage) munmap(data + size, kHugePage - before);
  madvise(data, size, MADV_HUGEPAGE);
  return {data, size, true};
}

// Blocks that no tensor uses. Their pages are marked as free: they stay where they are for the next
// tensor, unless the system needs them, which then takes them without asking. To mark pages takes a
// quarter of the time that it takes to fill them, so the blocks given back last are not marked yet.
class KeptBlocks {
 public:
  Block take(std::size_t bytes) {
    const std::size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    Block block{nullptr, 0, true};
    {
      const std::lock_guard lock(mutex_);
      for (auto kept = blocks_.begin(); kept != blocks_.end(); ++kept) {
        if (kept->size >= size && kept->size - size <= size / 4) {
          block = *kept;
          kept_bytes_ -= kept->size;
          blocks_.erase(kept);
          break;
        }
      }
    }
    if (block.data == nullptr) block = map_block(size);
    // By one thread: faults of huge pages take ten times as long when two threads meet in them.
    if (block.free_for_system) madvise(block.data, size, MADV_POPULATE_WRITE);
    block.free_for_system = false;
    return block;
  }

  void give_back(Block block) {
    if (block.size > kMostBytes) {
      munmap(block.data, block.size);
      return;
    }
    const std::lock_guard lock(mutex_);
    blocks_.push_front(block);
    kept_bytes_ += block.size;
    for (; kept_bytes_ > kMostBytes; blocks_.pop_back()) {
      kept_bytes_ -= blocks_.back().size;
      munmap(blocks_.back().data, blocks_.back().size);
    }
    std::size_t so_far = 0;
    for (auto kept = blocks_.begin(); kept != blocks_.end();) {
      so_far += kept->size;
      if (!kept->free_for_system && so_far > kMostUnmarkedBytes) {
        if (madvise(kept->data, kept->size, MADV_FREE) != 0) {
          munmap(kept->data, kept->size);
          kept_bytes_ -= kept->size;
          kept = blocks_.erase(kept);
          continue;
        }
        kept->free_for_system = true;
      }
      ++kept;
    }
  }

 private:
  static constexpr std::size_t kMostBytes = std::size_t{1} << 30;
  static constexpr std::size_t kMostUnmarkedBytes = std::size_t{64} << 20;

  std::mutex mutex_;
  std::list<Block> blocks_;  // the one given back last comes first
  std::size_t kept_bytes_ = 0;
};

KeptBlocks& kept_blocks() {
  static auto* const blocks = new KeptBlocks;  // never destroyed: tensors may outlive everything
  return *blocks;
}

#endif

// In a kept block from `least` bytes on.
at::Tensor new_tensor(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type,
                      [[maybe_unused]] std::int64_t least) {
  const auto options = like.options().dtype(type);
#ifdef MAST_EXT_KEEP_BLOCKS
  std::int64_t bytes = options.dtype().itemsize();
  for (const std::int64_t size : shape) bytes *= size;
  if (like.is_cpu() && bytes >= least) {
    const Block block = kept_blocks().take(bytes);
    const at::Tensor tensor = at::from_blob(
        block.data, shape, [block](void*) { kept_blocks().give_back(block); }, options);
    // As at::empty() does: torch.utils.deterministic.fill_uninitialized_memory.
    const at::Context& context = at::globalContext();
    if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) {
      tensor.fill_(std::numeric_limits<double>::quiet_NaN());
    }
    return tensor;
  }
#endif
  return like.new_empty(shape, options);
}

}  // namespace

at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type) {
  return new_tensor(like, shape, type, kLargeResult);
}

at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape) {
  return new_result(like, shape, like.scalar_type());
}

at::Tensor new_workspace(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type) {
  return new_tensor(like, shape, type, 1 << 20);
}

}  // namespace mast_ext
