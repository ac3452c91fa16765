// The functions that launch all kernels. Compiled without nvcc, they run a kernel on the emulator
// of the tests instead (tests/emulation).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

namespace mast_ext::kernels {

// The most shared memory, in bytes, that a thread block can have on every GPU since sm_80.
inline constexpr int kMostShared = 99 << 10;

// The first parameter of every kernel with dynamic shared memory. kMostBytes is the most that any
// launch of the kernel needs.
//
// More than 48 KB, static shared memory included, must be requested from CUDA before a launch.
// Because the amount is part of the kernel's type, all host threads request the same. It is also a
// template argument of the kernel and so appears in its name in the compiler's resource report:
// tests/emulation/test_launch_limits.py checks there that static and dynamic memory fit together.
template <int kMostBytes>
struct DynamicShared {
  static_assert(kMostBytes > 0 && kMostBytes <= kMostShared);
};

// The number of thread blocks that cover `work` items, `per_block` each. A number beyond 32 bits
// becomes the largest of 32 bits, with which a launch fails: no grid may be that large.
inline unsigned blocks(std::int64_t work, std::int64_t per_block) {
  constexpr std::int64_t kTooMany = std::numeric_limits<unsigned>::max();
  const std::int64_t count = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(count < kTooMany ? count : kTooMany);
}

// Queues kernel(args...) on `stream`, with `shared_bytes` of dynamic shared memory per thread
// block. An empty grid is skipped and is no error.
template <typename... Params, typename... Args>
cudaError_t queue(void (*kernel)(Params...), dim3 grid, dim3 block, int shared_bytes,
                  cudaStream_t stream, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef __CUDACC__
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
#else
  (void)stream;
  emulation::run(kernel, grid, block, shared_bytes, [=] { kernel(static_cast<Params>(args)...); });
#endif
  return cudaGetLastError();
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream,
                   const Args&... args) {
  return queue(kernel, grid, block, 0, stream, args...);
}

// Launches a kernel with dynamic shared memory, of which this launch needs `shared_bytes`.
template <int kMostBytes, typename... Params, typename... Args>
cudaError_t launch_shared(void (*kernel)(DynamicShared<kMostBytes>, Params...), dim3 grid,
                          dim3 block, int shared_bytes, cudaStream_t stream, const Args&... args) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostBytes);
  if (error != cudaSuccess) return error;
  return queue(kernel, grid, block, shared_bytes, stream, DynamicShared<kMostBytes>{}, args...);
}

}  // namespace mast_ext::kernels
