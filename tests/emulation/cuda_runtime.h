// What the CUDA kernels use of CUDA, on the CPU: so that their indexing, barriers and arithmetic
// are tested where there is no GPU. Found before the real header when MAST_EXT_EMULATE_CUDA is on.
//
// Blocks run one after the other; a block's threads are coroutines that take turns. Every barrier
// and shuffle hands over to the next thread, so all threads of a block have to reach it, which is
// what CUDA asks for as well. Not emulated: memory ordering, timing, rounding of intrinsics.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
inline constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 blockIdx, threadIdx, blockDim, gridDim;

namespace emulation {

inline constexpr std::size_t kStackBytes = 128 << 10;
inline constexpr unsigned kMostThreads = 1024;

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool done = false;
  alignas(16) unsigned char shuffled[16];  // what the thread offers to the others of its warp
};

inline std::vector<Thread> threads(kMostThreads);
inline ucontext_t scheduler;
inline unsigned current;
inline std::function<void()> body;
inline cudaError_t last_error = cudaSuccess;

inline void yield() { swapcontext(&threads[current].context, &scheduler); }

inline void enter() {
  body();
  threads[current].done = true;
}

inline void run_block(unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.done = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, enter, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (current = 0; current < count; ++current) {
      if (threads[current].done) continue;
      threadIdx = dim3(current % blockDim.x, current / blockDim.x % blockDim.y,
                       current / (blockDim.x * blockDim.y));
      swapcontext(&scheduler, &threads[current].context);
      running |= !threads[current].done;
    }
  }
}

inline void run(dim3 grid, dim3 block, std::function<void()> kernel) {
  const unsigned count = block.x * block.y * block.z;
  if (count == 0 || count > kMostThreads || grid.y > 65535 || grid.z > 65535) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  body = std::move(kernel);
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(count);
      }
    }
  }
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

inline void __syncthreads() { emulation::yield(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  static_assert(sizeof(T) <= 16);
  const unsigned self = emulation::current, other = self ^ static_cast<unsigned>(lane_mask);
  std::memcpy(emulation::threads[self].shuffled, &value, sizeof(T));
  emulation::yield();
  std::memcpy(&value, emulation::threads[other].shuffled, sizeof(T));
  emulation::yield();
  return value;
}
