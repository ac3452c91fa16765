// Finds races of a block's threads for its shared memory, reads of what nobody wrote, and loads and
// stores that are not aligned as their types ask for.
//
// The kernels are compiled as for ThreadSanitizer and UndefinedBehaviorSanitizer, but the functions
// that the compiler makes them call are the ones below. Two accesses of different threads to the
// same place, one of them a store, need a barrier in between: instructions of a warp order nothing.
// An asynchronous copy stores at any time from its start until it is waited for.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "detector.h"

namespace {

constexpr unsigned kNobody = ~0u, kSeveral = ~1u;

// What a thread does to a place, and where in the code.
struct Access {
  const char* verb;
  unsigned thread;
  const void* code;
};

struct LastAccess {
  std::uint64_t interval = 0;  // between which barriers
  unsigned thread = kNobody;
  const void* code = nullptr;
};

// What became of a byte.
struct Place {
  LastAccess write, read;
  unsigned copied_by = kNobody;  // the thread whose copy is on its way here
  std::uint64_t written_by = 0;  // the last block that wrote here
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

// Shared memory of one kind, and what became of it.
class Watched {
 public:
  void begin(std::span<const std::byte> memory) {
    memory_ = memory;
    if (places_.size() < memory.size()) places_.resize(memory.size());
  }
  void end() { memory_ = {}; }

  template <typename Body>
  void each(const void* address, std::size_t bytes, const Body& body) {
    const auto at = reinterpret_cast<std::uintptr_t>(address) -
                    reinterpret_cast<std::uintptr_t>(memory_.data());
    if (at >= memory_.size()) return;
    for (std::size_t i = at; i < std::min(at + bytes, memory_.size()); ++i) body(places_[i]);
  }

 private:
  std::span<const std::byte> memory_;
  std::vector<Place> places_;
};

class Races final : public emulation::Detector {
 public:
  Races() { emulation::detector = this; }

  void begin_block(Memory static_memory, Memory dynamic_memory) override {
    static_.begin(static_memory);
    dynamic_.begin(dynamic_memory);
    ++block_;
    ++interval_;
  }
  void end_block() override {
    static_.end();
    dynamic_.end();
  }
  void order() override { ++interval_; }

  void read(const void* from, std::size_t bytes) override { load(from, bytes, nullptr); }
  void start_copy(const void* to, std::size_t bytes) override {
    store(to, bytes, nullptr);
    each(to, bytes, [](Place& place) { place.copied_by = emulation::current; });
  }
  void finish_copy(const void* to, std::size_t bytes) override {
    each(to, bytes, [](Place& place) { place.copied_by = kNobody; });
    store(to, bytes, nullptr);
  }

  void load(const void* from, std::size_t bytes, const void* code) {
    const Access now{"reads", emulation::current, code};
    each(from, bytes, [&](Place& place) {
      check_write(now, place);
      if (place.written_by != block_) {
        emulation::fail(
            "thread %u reads shared memory that its block has not written yet; see\n  %s",
            now.thread, place_in_code(code).c_str());
      }
      const bool shares = place.read.interval == interval_ && place.read.thread != now.thread;
      place.read = {interval_, shares ? kSeveral : now.thread, code};
    });
  }

  void store(const void* to, std::size_t bytes, const void* code) {
    const Access now{"writes", emulation::current, code};
    each(to, bytes, [&](Place& place) {
      check_write(now, place);
      if (place.read.interval == interval_ && place.read.thread != now.thread) {
        fail_race(now, "reads", place.read);
      }
      place.write = {interval_, now.thread, code};
      place.written_by = block_;
    });
  }

 private:
  template <typename Body>
  void each(const void* address, std::size_t bytes, const Body& body) {
    static_.each(address, bytes, body);
    dynamic_.each(address, bytes, body);
  }

  void check_write(const Access& now, const Place& place) const {
    if (place.copied_by != kNobody) fail_race(now, "has a copy on its way to", place.write);
    if (place.write.interval == interval_ && place.write.thread != now.thread) {
      fail_race(now, "writes", place.write);
    }
  }

  Watched static_, dynamic_;
  std::uint64_t block_ = 0, interval_ = 0;
} races;

// What the compiler says of an access that is not aligned as its type.
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
