// The one way to start a kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

namespace mast_ext::kernels {

// Shared memory of a block on every GPU since sm_80, in bytes.
inline constexpr int kMostShared = 99 << 10;

// The first parameter of a kernel with dynamic shared memory: the most that any launch of it needs.
// A GPU has to be asked for more than 48 KB, static memory included, before the launch. The amount
// is part of the kernel's type, so that all threads of the host ask for the same. As a template
// argument of the kernel it is in its name, and so in the compiler's report, from which
// tests/emulation/test_launch_limits.py sees whether there is room for the static memory, too.
template <int kMostBytes>
struct DynamicShared {
  static_assert(kMostBytes > 0 && kMostBytes <= kMostShared);
};

// How many blocks of `per_block` cover `work`; if 32 bits do not hold it, more than a grid may
// have.
inline unsigned blocks(std::int64_t work, std::int64_t per_block) {
  constexpr std::int64_t kTooMany = std::numeric_limits<unsigned>::max();
  const std::int64_t count = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(count < kTooMany ? count : kTooMany);
}

// Queues kernel(args...) with `shared_bytes` of dynamic shared memory a block. An empty grid is no
// work and no error.
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

// The same for a kernel with dynamic shared memory, of which this launch needs `shared_bytes`.
template <int kMostBytes, typename... Params, typename... Args>
cudaError_t launch_shared(void (*kernel)(DynamicShared<kMostBytes>, Params...), dim3 grid,
                          dim3 block, int shared_bytes, cudaStream_t stream, const Args&... args) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostBytes);
  if (error != cudaSuccess) return error;
  return queue(kernel, grid, block, shared_bytes, stream, DynamicShared<kMostBytes>{}, args...);
}

}  // namespace mast_ext::kernels
