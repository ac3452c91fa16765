#include "kernels/common/cuda_library.h"

#include <cuda_runtime.h>

namespace mast_ext::kernels {

const char* cuda_error_text(int error) {
  cudaGetLastError();
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

const char* cuda_version() { return MAST_EXT_CUDA_VERSION; }

const char* cuda_architectures() { return MAST_EXT_CUDA_ARCHS; }

}  // namespace mast_ext::kernels
