// Runs an op's kernels on the device of its tensors. No other host code tells devices apart.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "kernels/common/cuda_library.h"

namespace mast_ext {

// Whether a tensor is on a GPU, whose vendor library has products that a CPU's has not. Emulated
// CUDA kernels get tensors of the CPU.
inline bool on_gpu(const at::Tensor& tensor) { return tensor.is_cuda(); }

// A launch fails where the CUDA library was compiled for other GPUs. CUDA's own words for it name
// neither.
inline void require_kernels_for(const c10::Device& device, int error) {
  kernels::CudaDevice gpu = {};
  TORCH_CHECK_NOT_IMPLEMENTED(
      !kernels::cuda_lacks_kernels(error, gpu), "mast_ext has no kernels for ", device, " (",
      gpu.name, ", compute capability ", gpu.major, ".", gpu.minor,
      "): its CUDA library is compiled for ", kernels::cuda_architectures(),
      ". For a GPU of compute capability 8.0 or newer compile it on that machine, in the source of "
      "mast_ext by `CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=native pip install "
      "--no-build-isolation .`; older ones are not supported");
}

#ifdef MAST_EXT_EMULATE_CUDA
// A build for tests: the CUDA kernels run emulated (tests/emulation), on CPU tensors. If the
// environment variable EMULATE_NOTHING is set, the CPU kernels run instead, if the build has them.
inline bool uses_cuda_kernels(const at::Tensor&) {
  static const bool emulates = std::getenv("EMULATE_NOTHING") == nullptr;
  return emulates;
}

template <typename Cpu, typename Cuda>
void run_on(const at::Tensor& tensor, [[maybe_unused]] Cpu&& cpu, Cuda&& cuda) {
#ifndef MAST_EXT_WITHOUT_CPU_KERNELS
  if (!uses_cuda_kernels(tensor)) return cpu();
#endif
  const int error = cuda(static_cast<CUstream_st*>(nullptr));
  if (error != 0) require_kernels_for(tensor.device(), error);
  TORCH_CHECK(error == 0, "emulated CUDA: ", kernels::cuda_error_text(error));
}
#else
inline bool uses_cuda_kernels(const at::Tensor& tensor) { return on_gpu(tensor); }

// Why CUDA kernels cannot run in this process, in a sentence; mast_ext/native.py knows.
inline std::string& why_no_cuda_library() {
  static std::string reason = "its CUDA library is not loaded";
  return reason;
}

// Runs cpu(), or cuda(stream) on the current stream, depending on the device of `tensor`. Through
// torch's interface for any kind of device, so that one binding serves builds of PyTorch with CUDA
// and without.
template <typename Cpu, typename Cuda>
void run_on(const at::Tensor& tensor, Cpu&& cpu, Cuda&& cuda) {
  if (!tensor.is_cuda()) return cpu();
  TORCH_CHECK_NOT_IMPLEMENTED(kernels::has_cuda_library(), "mast_ext cannot run on ",
                              tensor.device(), ": ", why_no_cuda_library());
  const c10::DeviceGuard guard(tensor.device());
  const auto* const device = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA);
  void* const stream = device->getStreamNativeHandle(device->getStream(tensor.device()));
  const int error = cuda(static_cast<CUstream_st*>(stream));
  if (error != 0) {
    require_kernels_for(tensor.device(), error);
    throw c10::AcceleratorError({__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)}, error,
                                std::string("CUDA error: ") + kernels::cuda_error_text(error));
  }
}
#endif

// Runs cpu(), the kernel of an op that has none for a GPU and has checked that it needs none.
template <typename Cpu>
void run_on_cpu([[maybe_unused]] Cpu&& cpu) {
#ifdef MAST_EXT_WITHOUT_CPU_KERNELS
  TORCH_CHECK_NOT_IMPLEMENTED(false, "this build for tests has no CPU kernels");
#else
  cpu();
#endif
}

// Calls body(begin, end) on torch's threads for parts of [0, rows). `row_cost` is the approximate
// number of scalar steps of a row; little work stays on the calling thread. Parts are scheduled
// dynamically, about `turns` per thread: a thread that wakes late, or shares its core with another
// program, takes fewer of them. turns = 1 is for a body with a cost of its own per call.
template <typename Body>
void parallel_rows(std::int64_t rows, std::int64_t row_cost, const Body& body,
                   std::int64_t turns = 16) {
  constexpr std::int64_t kWorthAThread = 1 << 15;  // as ATen's own grain size
  const std::int64_t grain = 1 + kWorthAThread / (1 + row_cost), threads = at::get_num_threads();
  if (rows <= grain || threads == 1 || at::in_parallel_region()) return body(0, rows);
  const auto parts = [rows](std::int64_t part) { return (rows + part - 1) / part; };
  const std::int64_t turn = std::max(grain, parts(turns * threads));
  std::atomic<std::int64_t> next = 0;
  at::parallel_for(0, std::min(threads, parts(turn)), 1, [&](auto, auto) {
    for (std::int64_t begin; (begin = next.fetch_add(turn)) < rows;) {
      body(begin, std::min(begin + turn, rows));
    }
  });
}

}  // namespace mast_ext
