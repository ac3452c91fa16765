// What the CUDA kernels use of CUDA, on the CPU: so that their indexing, barriers and arithmetic
// are tested where there is no GPU. Found before the real header when MAST_EXT_EMULATE_CUDA is on.
//
// Blocks run one after the other; a block's threads are coroutines. A warp runs until all its
// threads wait for other warps, so that a missing barrier shows in the results; with
// EMULATE_LAST_WARP_FIRST in the environment the last one runs first. Asynchronous copies arrive as
// late as they may. Not emulated: memory ordering, timing, rounding of intrinsics and of tensor
// cores.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
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
inline constexpr unsigned kMostThreads = 1024, kWarp = 32;
// Of dynamic shared memory: the 99 KB of the GPUs with the least, and 3 KB for what is static.
inline constexpr std::size_t kMostSharedBytes = 96 << 10;

// Threads that wait for the last of them.
struct Group {
  unsigned members, arrived, rounds;
};

// A thread's stack while it does not run.
#ifdef __x86_64__
using Context = void*;

// swapcontext makes a system call for the signal mask, which would be most of a test's time.
__attribute__((naked, noinline)) inline void switch_context(Context*, Context*) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

inline void make_context(Context* context, char* stack, void (*enter)()) {
  auto** top = reinterpret_cast<void**>(stack + kStackBytes) - 3;  // aligned as after a call
  *--top = reinterpret_cast<void*>(enter);
  *context = top - 6;
}
#else
using Context = ucontext_t;

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void make_context(Context* context, char* stack, void (*enter)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, enter, 0);
}
#endif

struct Copy {
  void* to;
  const void* from;  // null: zeros
  std::size_t bytes;
};

struct Thread {
  Context context;
  std::unique_ptr<void*[]> stack{new void*[kStackBytes / sizeof(void*)]};
  bool done;
  Group* waits_for;
  unsigned round;
  const void* offer;         // what the thread brings to its warp's collective
  std::vector<Copy> copies;  // in flight

  bool runnable() const { return !done && (!waits_for || waits_for->rounds != round); }
};

inline std::vector<Thread> threads(kMostThreads);
inline Context scheduler;
inline unsigned current;
inline std::function<void()> body;
inline cudaError_t last_error = cudaSuccess;
inline Group block, warps[kMostThreads / kWarp];
inline const bool last_warp_first = std::getenv("EMULATE_LAST_WARP_FIRST") != nullptr;
inline std::vector<float4> shared_memory(kMostSharedBytes / sizeof(float4));

inline void release(Group& group) {
  group.arrived = 0;
  ++group.rounds;
}

inline void wait(Group& group) {
  Thread& thread = threads[current];
  thread.waits_for = &group;
  thread.round = group.rounds;
  switch_context(&thread.context, &scheduler);
}

inline void barrier() { ++block.arrived == block.members ? release(block) : wait(block); }

// The warp's last thread to arrive calls action(offers of the warp's threads) for all of them.
template <typename Offer, typename Action>
void collective(const Offer& offer, Action&& action) {
  const unsigned warp = current / kWarp;
  threads[current].offer = &offer;
  if (++warps[warp].arrived < warps[warp].members) return wait(warps[warp]);
  const Offer* offers[kWarp];
  for (unsigned lane = 0; lane < warps[warp].members; ++lane) {
    offers[lane] = static_cast<const Offer*>(threads[warp * kWarp + lane].offer);
  }
  action(offers);
  release(warps[warp]);
}

inline void enter() {
  body();
  threads[current].done = true;
  if (--block.members == block.arrived && block.arrived > 0) release(block);
  switch_context(&threads[current].context, &scheduler);
}

inline bool run_warp(unsigned warp) {
  bool ran = false;
  for (bool more = true; more;) {
    more = false;
    for (unsigned lane = 0; lane < warps[warp].members; ++lane) {
      current = warp * kWarp + lane;
      if (!threads[current].runnable()) continue;
      threadIdx = dim3(current % blockDim.x, current / blockDim.x % blockDim.y,
                       current / (blockDim.x * blockDim.y));
      switch_context(&scheduler, &threads[current].context);
      more = ran = true;
    }
  }
  return ran;
}

inline void run_block(unsigned count) {
  const unsigned warp_count = (count + kWarp - 1) / kWarp;
  block = {count, 0, 0};
  std::memset(shared_memory.data(), 0xff, shared_memory.size() * sizeof(float4));  // NaN
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.done = false;
    thread.waits_for = nullptr;
    thread.copies.clear();
    warps[i / kWarp] = {i % kWarp + 1, 0, 0};
    make_context(&thread.context, reinterpret_cast<char*>(thread.stack.get()), enter);
  }
  while (block.members > 0) {
    bool ran = false;
    for (unsigned i = 0; i < warp_count; ++i) {
      ran |= run_warp(last_warp_first ? warp_count - 1 - i : i);
    }
    if (ran) continue;
    std::fprintf(stderr, "emulated CUDA: threads wait for others that never come\n");
    std::abort();
  }
}

inline void run(dim3 grid, dim3 block_shape, std::size_t shared_bytes,
                std::function<void()> kernel) {
  const unsigned count = block_shape.x * block_shape.y * block_shape.z;
  if (count == 0 || count > kMostThreads || grid.y > 65535 || grid.z > 65535 ||
      shared_bytes > kMostSharedBytes) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  body = std::move(kernel);
  gridDim = grid;
  blockDim = block_shape;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(count);
      }
    }
  }
}

// ---- Asynchronous copies: they happen when the thread waits for them, not before

inline void start_copy(void* to, const void* from, std::size_t bytes) {
  threads[current].copies.push_back({to, from, bytes});
}

inline void wait_for_copies() {
  for (const Copy& copy : threads[current].copies) {
    copy.from ? std::memcpy(copy.to, copy.from, copy.bytes) : std::memset(copy.to, 0, copy.bytes);
  }
  threads[current].copies.clear();
}

// ---- Tensor cores; lanes are numbered as in the PTX manual's figures

// Thread `lane` receives elements 2 (lane % 4) and the next of row lane / 4 of each of four 8x8
// matrices, or of their transposes; lane l offers the address of row l % 8 of matrix l / 8.
inline void load_matrices(unsigned (&to)[4], const void* row, bool transposed) {
  struct Offer {
    unsigned* to;
    const void* row;
  };
  collective(Offer{to, row}, [&](const Offer* const* offers) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (unsigned i = 0; i < 2; ++i) {
          const unsigned first = lane / 4, second = lane % 4 * 2 + i;
          const unsigned from = transposed ? second : first, at = transposed ? first : second;
          pair[i] = static_cast<const std::uint16_t*>(offers[matrix * 8 + from]->row)[at];
        }
        offers[lane]->to[matrix] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
      }
    }
  });
}

inline float bfloat16(unsigned pair, unsigned which) {
  const unsigned bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// sum [16, 8] += a [16, 16] b [16, 8]
inline void multiply_matrices(float* sum, const unsigned* a, const unsigned* b) {
  struct Offer {
    float* sum;
    const unsigned *a, *b;
  };
  collective(Offer{sum, a, b}, [&](const Offer* const* offers) {
    float rows[16][16], columns[16][8];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned i = 0; i < 8; ++i) {
        rows[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i / 4 * 8 + i % 2] =
            bfloat16(offers[lane]->a[i / 2], i % 2);
      }
      for (unsigned i = 0; i < 4; ++i) {
        columns[lane % 4 * 2 + i / 2 * 8 + i % 2][lane / 4] =
            bfloat16(offers[lane]->b[i / 2], i % 2);
      }
    }
    float products[16][8] = {};
    for (unsigned m = 0; m < 16; ++m) {
      for (unsigned k = 0; k < 16; ++k) {
        for (unsigned n = 0; n < 8; ++n) products[m][n] += rows[m][k] * columns[k][n];
      }
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned i = 0; i < 4; ++i) {
        offers[lane]->sum[i] += products[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      }
    }
  });
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

inline void __syncthreads() { emulation::barrier(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  struct Offer {
    T value;
    T* to;
    unsigned other;
  };
  T result;
  const unsigned other = emulation::current % emulation::kWarp ^ static_cast<unsigned>(lane_mask);
  emulation::collective(Offer{value, &result, other}, [&](const Offer* const* offers) {
    for (unsigned lane = 0; lane < emulation::warps[emulation::current / 32].members; ++lane) {
      *offers[lane]->to = offers[offers[lane]->other]->value;
    }
  });
  return result;
}
