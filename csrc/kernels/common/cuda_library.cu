#include "kernels/common/cuda_library.h"

#include <cuda_runtime.h>

#include <cstring>

namespace mast_ext::kernels {

const char* cuda_error_text(int error) {
  cudaGetLastError();
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

const char* cuda_version() { return MAST_EXT_CUDA_VERSION; }

const char* cuda_architectures() { return MAST_EXT_CUDA_ARCHS; }

bool cuda_lacks_kernels(int error, CudaDevice& device) {
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction) {
    return false;
  }
  cudaGetLastError();
  int index;
  cudaDeviceProp properties;
  if (cudaGetDevice(&index) != cudaSuccess) return false;
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) return false;
  static_assert(sizeof(device.name) == sizeof(properties.name));
  std::memcpy(device.name, properties.name, sizeof(device.name));
  device.major = properties.major;
  device.minor = properties.minor;
  return true;
}

}  // namespace mast_ext::kernels
