// The part of CUDA that the kernels use, emulated on the CPU, so that their indexing, barriers and
// arithmetic are tested without a GPU. With MAST_EXT_EMULATE_CUDA the compiler finds this file
// before CUDA's own.
//
// Thread blocks run one after the other; the threads of a block are coroutines. A warp runs until
// all its threads wait for other warps, so that a missing barrier changes the results. Before every
// block, shared memory is filled with NaN. A launch fails, and cudaGetErrorString() says why, if it
// violates a rule: limits of grids, threads and shared memory, alignment, barriers and collectives
// in which not all threads take part. Memory ordering, timing and the rounding of intrinsics and
// tensor cores are not emulated.
//
// In the environment, read at every launch:
//   EMULATE_LAST_WARP_FIRST   the last warp runs first
//   EMULATE_EARLY_COPIES      asynchronous copies complete at their start, not when waited for
//   EMULATE_SKIP_BARRIER      "file:line" of a __syncthreads() that does nothing
//   EMULATE_RECORD            a file to which launches are appended; no kernel runs, so that
//                             results are what their memory held (benchmarks/gpu_model)
//   EMULATE_ERROR             the number of the error that launches fail with; no kernel runs
// and read once, when a library with the race detector is loaded:
//   EMULATE_NEEDED            a file to which each barrier is appended that is seen to be needed
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Nothing else in this library is thread_local, so that emulator.cpp finds all static shared memory
// in one place.
#define __shared__ static thread_local

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
inline constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
inline constexpr cudaError_t cudaErrorInvalidDeviceFunction = 98;
inline constexpr cudaError_t cudaErrorNoKernelImageForDevice = 209;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

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

extern dim3 blockIdx, threadIdx, blockDim, gridDim;

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);  // of the last error alone

struct cudaDeviceProp {
  char name[256];
  int major, minor;
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated GPU", 7, 5};
  return cudaSuccess;
}

namespace emulation {

inline constexpr unsigned kWarp = 32;

// A kernel: its address identifies it, its name is for messages.
struct Kernel {
  const void* address;
  const char* name;
};

template <typename... Params>
Kernel kernel_of(void (*kernel)(Params...)) {
  return {reinterpret_cast<const void*>(kernel), __PRETTY_FUNCTION__};
}

// Calls `thread` once for every thread of the grid.
void run(Kernel kernel, dim3 grid, dim3 block, std::size_t dynamic_bytes,
         const std::function<void()>& thread);

template <typename... Params>
void run(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t dynamic_bytes,
         const std::function<void()>& thread) {
  run(kernel_of(kernel), grid, block, dynamic_bytes, thread);
}

cudaError_t allow_dynamic_shared_memory(Kernel kernel, std::size_t bytes);
unsigned char* dynamic_shared_memory();

// For instructions of one kind of memory: a GPU's addresses of the other kind are others.
void require_global(const void* address, const char* what);
void require_shared(const void* address, const char* what);

// All threads of a block must reach the same barrier.
void barrier(const std::source_location& where);

// An instruction that a warp executes together, and its immediate operand. All lanes must reach the
// same one.
struct Instruction {
  const char* name;
  int operand;

  bool operator==(const Instruction&) const = default;
};

// Executes an instruction of the warp: waits for all its lanes, the last of which calls
// action(offers, lanes) with the `offer` of every lane.
using Action = void (*)(const void* const* offers, unsigned lanes);
void collective(Instruction instruction, const void* offer, Action action);

[[noreturn]] void fail(const char* format, ...);  // called by a thread; ends the launch

unsigned current_lane();

// ---- Asynchronous copies; zeros unless `inside`

void start_copy(void* to, const void* from, std::size_t bytes, bool inside);
void wait_for_copies();

// ---- Tensor cores; lanes are numbered as in the PTX manual's figures

// Loads four 8x8 matrices, or their transposes. Lane l passes the address of row l % 8 of matrix
// l / 8, and receives elements 2 (l % 4) and the next of row l / 4 of each matrix.
void load_matrices(unsigned (&to)[4], const void* row, bool transposed);

// sum [16, 8] += a [16, 16] b [16, 8], of float16 if `half`, else of bfloat16
void multiply_matrices(float* sum, const unsigned* a, const unsigned* b, bool half);

}  // namespace emulation

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return emulation::allow_dynamic_shared_memory(emulation::kernel_of(kernel), bytes);
}

inline float __fmul_rn(float a, float b) { return a * b; }

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulation::barrier(where);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  struct Offer {
    T value;
    T* to;
    unsigned other;
  };
  T result;
  const Offer offer{value, &result, emulation::current_lane() ^ static_cast<unsigned>(lane_mask)};
  emulation::collective({__PRETTY_FUNCTION__, lane_mask}, &offer,
                        [](const void* const* offers, unsigned lanes) {
                          for (unsigned lane = 0; lane < lanes; ++lane) {
                            const auto* to = static_cast<const Offer*>(offers[lane]);
                            if (to->other >= lanes)
                              emulation::fail("a shuffle reads a lane that does not exist");
                            *to->to = static_cast<const Offer*>(offers[to->other])->value;
                          }
                        });
  return result;
}
