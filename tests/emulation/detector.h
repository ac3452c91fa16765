// The events that the emulator reports to the race detector (races.cpp), in a build that has one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <span>

namespace emulation {

struct Detector {
  using Memory = std::span<const std::byte>;

  // A thread block starts, with this shared memory.
  virtual void begin_block(Memory static_memory, Memory dynamic_memory) = 0;
  virtual void end_block() = 0;
  // All threads have reached this barrier.
  virtual void order(const std::source_location& barrier) = 0;
  // Accesses of the current thread, except its own loads and stores, which the compiler reports.
  virtual void read(const void* from, std::size_t bytes) = 0;
  virtual void start_copy(const void* to, std::size_t bytes) = 0;
  virtual void finish_copy(const void* to, std::size_t bytes) = 0;
};

inline Detector* detector = nullptr;
extern unsigned current;  // the running thread, counted in its block

}  // namespace emulation
