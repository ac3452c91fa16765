// The one way to start a kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mast_ext::kernels {

// How many blocks of `per_block` cover `work`.
inline unsigned blocks(std::int64_t work, std::int64_t per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

// Queues kernel(args...) with this much dynamic shared memory a block on `stream`; an empty grid is
// no work and no error.
template <typename... Params, typename... Args>
cudaError_t launch_shared(void (*kernel)(Params...), dim3 grid, dim3 block, int shared_bytes,
                          cudaStream_t stream, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef __CUDACC__
  constexpr int kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
#else
  (void)stream;
  emulation::run(grid, block, shared_bytes, [=] { kernel(static_cast<Params>(args)...); });
#endif
  return cudaGetLastError();
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream,
                   const Args&... args) {
  return launch_shared(kernel, grid, block, 0, stream, args...);
}

}  // namespace mast_ext::kernels
