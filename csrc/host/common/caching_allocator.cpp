#include "host/common/caching_allocator.h"

#include <ATen/Context.h>
#include <ATen/ops/from_blob.h>

#include <cstddef>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

// Not with AddressSanitizer, which checks only accesses to memory from malloc.
#if defined(__linux__) && defined(MADV_HUGEPAGE) && defined(MADV_FREE) && \
    !defined(__SANITIZE_ADDRESS__)
#define MAST_EXT_KEEP_BLOCKS
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older kernels reject it, which does no harm
#endif
#endif

namespace mast_ext {
namespace {

#ifdef MAST_EXT_KEEP_BLOCKS

constexpr std::size_t kHugePage = 2 << 20;

struct Block {
  void* data;
  std::size_t size;  // whole huge pages
  bool reclaimable;  // the system may have taken its pages, or has not populated them yet
};

// Maps a new block of whole, aligned huge pages. Throws std::bad_alloc if there is no memory.
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

// The blocks that no tensor uses. Their pages are marked as free (MADV_FREE): they stay in place
// for the next tensor, unless the system is short of memory and reclaims them. Marking pages takes
// a quarter of the time that filling them takes, so the blocks given back last are not marked yet.
class BlockCache {
 public:
  Block take(std::size_t bytes) {
    const std::size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    Block block{nullptr, 0, true};
    {
      const std::lock_guard lock(mutex_);
      for (auto cached = blocks_.begin(); cached != blocks_.end(); ++cached) {
        if (cached->size >= size && cached->size - size <= size / 4) {
          block = *cached;
          cached_bytes_ -= cached->size;
          blocks_.erase(cached);
          break;
        }
      }
    }
    if (block.data == nullptr) block = map_block(size);
    // Populated by this thread alone: page faults of huge pages take ten times as long if two
    // threads have them at the same time.
    if (block.reclaimable) madvise(block.data, size, MADV_POPULATE_WRITE);
    block.reclaimable = false;
    return block;
  }

  void give_back(Block block) {
    if (block.size > kMostBytes) {
      munmap(block.data, block.size);
      return;
    }
    const std::lock_guard lock(mutex_);
    blocks_.push_front(block);
    cached_bytes_ += block.size;
    for (; cached_bytes_ > kMostBytes; blocks_.pop_back()) {
      cached_bytes_ -= blocks_.back().size;
      munmap(blocks_.back().data, blocks_.back().size);
    }
    std::size_t so_far = 0;
    for (auto cached = blocks_.begin(); cached != blocks_.end();) {
      so_far += cached->size;
      if (!cached->reclaimable && so_far > kMostUnmarkedBytes) {
        if (madvise(cached->data, cached->size, MADV_FREE) != 0) {
          munmap(cached->data, cached->size);
          cached_bytes_ -= cached->size;
          cached = blocks_.erase(cached);
          continue;
        }
        cached->reclaimable = true;
      }
      ++cached;
    }
  }

 private:
  static constexpr std::size_t kMostBytes = std::size_t{1} << 30;
  static constexpr std::size_t kMostUnmarkedBytes = std::size_t{64} << 20;

  std::mutex mutex_;
  std::list<Block> blocks_;  // the last one given back comes first
  std::size_t cached_bytes_ = 0;
};

BlockCache& block_cache() {
  static auto* const cache = new BlockCache;  // never destroyed: tensors may be freed at exit
  return *cache;
}

#endif

// `count` tensors whose memory is a cached block if they have at least `least` bytes together.
std::vector<at::Tensor> new_tensors(const at::Tensor& like, std::int64_t count,
                                    at::IntArrayRef shape, at::ScalarType type,
                                    [[maybe_unused]] std::int64_t least) {
  const auto options = like.options().dtype(type);
  std::vector<at::Tensor> tensors;
  tensors.reserve(count);
#ifdef MAST_EXT_KEEP_BLOCKS
  constexpr std::int64_t kAlignment = 64;
  std::int64_t bytes = options.dtype().itemsize();
  for (const std::int64_t size : shape) bytes *= size;
  if (like.is_cpu() && count * bytes >= least) {
    const std::int64_t apart = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    const Block block = block_cache().take(count * apart);
    const std::shared_ptr<void> owner(block.data,
                                      [block](void*) { block_cache().give_back(block); });
    // As at::empty() does for torch.utils.deterministic.fill_uninitialized_memory.
    const at::Context& context = at::globalContext();
    const bool fills =
        context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory();
    for (std::int64_t i = 0; i < count; ++i) {
      void* const data = static_cast<char*>(block.data) + i * apart;
      tensors.push_back(at::from_blob(data, shape, [owner](void*) {}, options));
      if (fills) tensors.back().fill_(std::numeric_limits<double>::quiet_NaN());
    }
    return tensors;
  }
#endif
  for (std::int64_t i = 0; i < count; ++i) tensors.push_back(like.new_empty(shape, options));
  return tensors;
}

}  // namespace

at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type) {
  return new_tensors(like, 1, shape, type, kLargeResult).front();
}

at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape) {
  return new_result(like, shape, like.scalar_type());
}

std::vector<at::Tensor> new_results(const at::Tensor& like, std::int64_t count,
                                    at::IntArrayRef shape) {
  return new_tensors(like, count, shape, like.scalar_type(), kLargeResult);
}

at::Tensor new_workspace(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type) {
  return new_tensors(like, 1, shape, type, 1 << 20).front();
}

}  // namespace mast_ext
