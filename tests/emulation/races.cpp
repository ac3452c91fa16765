// Detects races of a block's threads in shared memory, reads of memory that was not written, and
// loads and stores that are not aligned as their types require.
//
// The kernels are compiled with the instrumentation of ThreadSanitizer and
// UndefinedBehaviorSanitizer, but the functions that it calls are the ones below. Two accesses to
// the same byte by different threads, one of them a store, need a barrier in between; instructions
// of a warp do not order them. An asynchronous copy may store at any time from its start until it
// is waited for.
//
// Where EMULATE_NEEDED names a file, a line file:line is appended to it for each barrier of the
// code without which there would be a race: two such accesses have no other barrier in between.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "detector.h"

namespace {

constexpr unsigned kNobody = ~0u, kSeveral = ~1u;

// An access by a thread, and the instruction that makes it.
struct Access {
  const char* verb;
  unsigned thread;
  const void* code;
};

struct LastAccess {
  std::uint64_t interval = 0;  // counts the barriers, and starts of blocks, before it
  unsigned thread = kNobody;
  const void* code = nullptr;
};

// The accesses to a byte.
struct Shadow {
  LastAccess write, read;
  unsigned copied_by = kNobody;  // the thread whose copy to this byte is in flight
  std::uint64_t written_by = 0;  // the last block that wrote the byte
};

std::string place_in_code(const void* code) {
  Dl_info library;
  if (code == nullptr || dladdr(code, &library) == 0) return "an instruction of the warp or a copy";
  char offset[32];
  std::snprintf(offset, sizeof(offset), "%#tx",
                static_cast<const char*>(code) - static_cast<const char*>(library.dli_fbase));
  return std::string("addr2line -Cfipe ") + library.dli_fname + " " + offset;
}

[[noreturn]] void fail_race(const Access& now, const char* verb, const LastAccess& before) {
  const std::string other = before.thread == kSeveral ? "another" : std::to_string(before.thread);
  emulation::fail("race: thread %u %s what thread %s %s; see\n  %s\n  %s", now.thread, now.verb,
                  other.c_str(), verb, place_in_code(now.code).c_str(),
                  place_in_code(before.code).c_str());
}

// Static or dynamic shared memory, with the accesses to each of its bytes.
class ShadowMemory {
 public:
  void begin(std::span<const std::byte> memory) {
    memory_ = memory;
    if (shadows_.size() < memory.size()) shadows_.resize(memory.size());
  }
  void end(bool with_copies) {
    memory_ = {};
    if (!with_copies) return;
    for (Shadow& shadow : shadows_) shadow.copied_by = kNobody;
  }

  template <typename Body>
  void each(const void* address, std::size_t bytes, const Body& body) {
    const auto at = reinterpret_cast<std::uintptr_t>(address) -
                    reinterpret_cast<std::uintptr_t>(memory_.data());
    if (at >= memory_.size()) return;
    for (std::size_t i = at; i < std::min(at + bytes, memory_.size()); ++i) body(shadows_[i]);
  }

 private:
  std::span<const std::byte> memory_;
  std::vector<Shadow> shadows_;
};

class Races final : public emulation::Detector {
 public:
  Races() { emulation::detector = this; }

  void begin_block(Memory static_memory, Memory dynamic_memory) override {
    static_.begin(static_memory);
    dynamic_.begin(dynamic_memory);
    ++block_;
    since_ = ++interval_;
    barrier_ = {};
    known_ = true;
  }
  void end_block() override {
    static_.end(copies_ > 0);  // of a block that failed
    dynamic_.end(copies_ > 0);
    copies_ = 0;
  }
  void order(const std::source_location& barrier) override {
    if (barrier.line() != barrier_.line() ||
        std::strcmp(barrier.file_name(), barrier_.file_name()) != 0) {
      barrier_ = barrier;
      since_ = interval_;
      known_ = needed_path_ == nullptr || needed_.contains({barrier.file_name(), barrier.line()});
    }
    ++interval_;
  }

  void read(const void* from, std::size_t bytes) override { load(from, bytes, nullptr); }
  void start_copy(const void* to, std::size_t bytes) override {
    store(to, bytes, nullptr);
    ++copies_;
    each(to, bytes, [](Shadow& shadow) { shadow.copied_by = emulation::current; });
  }
  void finish_copy(const void* to, std::size_t bytes) override {
    --copies_;
    each(to, bytes, [](Shadow& shadow) { shadow.copied_by = kNobody; });
    store(to, bytes, nullptr);
  }

  void load(const void* from, std::size_t bytes, const void* code) {
    const Access now{"reads", emulation::current, code};
    each(from, bytes, [&](Shadow& shadow) {
      check_write(now, shadow);
      if (shadow.written_by != block_) {
        emulation::fail(
            "thread %u reads shared memory that its block has not written yet; see\n  %s",
            now.thread, place_in_code(code).c_str());
      }
      find_need(now, shadow.write);
      const bool shares = shadow.read.interval == interval_ && shadow.read.thread != now.thread;
      shadow.read = {interval_, shares ? kSeveral : now.thread, code};
    });
  }

  void store(const void* to, std::size_t bytes, const void* code) {
    const Access now{"writes", emulation::current, code};
    each(to, bytes, [&](Shadow& shadow) {
      check_write(now, shadow);
      if (shadow.read.interval == interval_ && shadow.read.thread != now.thread) {
        fail_race(now, "reads", shadow.read);
      }
      find_need(now, shadow.write);
      find_need(now, shadow.read);
      shadow.write = {interval_, now.thread, code};
      shadow.written_by = block_;
    });
  }

 private:
  template <typename Body>
  void each(const void* address, std::size_t bytes, const Body& body) {
    static_.each(address, bytes, body);
    dynamic_.each(address, bytes, body);
  }

  void check_write(const Access& now, const Shadow& shadow) const {
    if (shadow.copied_by != kNobody) fail_race(now, "has a copy on its way to", shadow.write);
    if (shadow.write.interval == interval_ && shadow.write.thread != now.thread) {
      fail_race(now, "writes", shadow.write);
    }
  }

  // Notes the last barrier if only passes of it are between the two accesses. Of reads the last one
  // is known: a barrier that is needed for one before may be missed.
  void find_need(const Access& now, const LastAccess& before) {
    const bool between = before.interval >= since_ && before.interval < interval_;
    if (known_ || !between || before.thread == now.thread) return;
    known_ = true;
    needed_.insert({barrier_.file_name(), barrier_.line()});
    std::FILE* const file = std::fopen(needed_path_, "a");
    if (file == nullptr) emulation::fail("EMULATE_NEEDED: cannot write to %s", needed_path_);
    std::fprintf(file, "%s:%u\n", barrier_.file_name(), static_cast<unsigned>(barrier_.line()));
    std::fclose(file);
  }

  ShadowMemory static_, dynamic_;
  std::uint64_t block_ = 0, interval_ = 0;
  std::size_t copies_ = 0;  // in flight

  const char* const needed_path_ = std::getenv("EMULATE_NEEDED");
  std::set<std::pair<std::string, unsigned>> needed_;
  std::source_location barrier_;  // the last one that this block passed
  std::uint64_t since_ = 0;       // the interval from which on it passed no other
  bool known_ = true;             // whether the barrier is known to be needed, or nobody asks
} races;

// What the compiler passes for an access that is not aligned as its type requires.
struct SourceLocation {
  const char* file;
  std::uint32_t line, column;
};
struct TypeMismatch {
  SourceLocation where;
  const void* type;
  unsigned char log_alignment, kind;
};

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* from, std::size_t bytes) {
  races.load(from, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* to, std::size_t bytes) {
  races.store(to, bytes, __builtin_return_address(0));
}

#define MAST_EXT_ACCESSES(bytes)                                                                \
  void __tsan_read##bytes(void* from) { races.load(from, bytes, __builtin_return_address(0)); } \
  void __tsan_write##bytes(void* to) { races.store(to, bytes, __builtin_return_address(0)); }   \
  void __tsan_unaligned_read##bytes(void* from) {                                               \
    races.load(from, bytes, __builtin_return_address(0));                                       \
  }                                                                                             \
  void __tsan_unaligned_write##bytes(void* to) {                                                \
    races.store(to, bytes, __builtin_return_address(0));                                        \
  }
MAST_EXT_ACCESSES(1)
MAST_EXT_ACCESSES(2)
MAST_EXT_ACCESSES(4)
MAST_EXT_ACCESSES(8)
MAST_EXT_ACCESSES(16)

void __ubsan_handle_type_mismatch_v1(TypeMismatch* mismatch, void* address) {
  emulation::fail("%s:%u: %p is not at a multiple of %d bytes", mismatch->where.file,
                  mismatch->where.line, address, 1 << mismatch->log_alignment);
}

}  // extern "C"
