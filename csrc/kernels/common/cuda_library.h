// The CUDA kernels have a library of their own, which is loaded where PyTorch has a CUDA of the
// same major version (mast_ext/native.py). So their functions are weak: elsewhere their addresses
// are null, and host code asks for the library before it calls one (host/common/run_on.h).
#pragma once

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace mast_ext::kernels {

// What a cudaError_t means. CUDA then forgets it, so that it is not taken for the next call's.
[[gnu::weak]] const char* cuda_error_text(int error);
[[gnu::weak]] const char* cuda_version();        // of the compiler: "13.0.48"
[[gnu::weak]] const char* cuda_architectures();  // separated by blanks: "80-real 120"

struct CudaDevice {
  char name[256];
  int major, minor;  // its compute capability
};

// Whether an error means that the library was compiled for other GPUs than the current device; then
// says which one that is. CUDA forgets the error, as above.
[[gnu::weak]] bool cuda_lacks_kernels(int error, CudaDevice& device);

inline bool has_cuda_library() { return cuda_error_text != nullptr; }

}  // namespace mast_ext::kernels
