// The only place where the build's devices are told apart.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>

#ifdef MAST_EXT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

struct CUstream_st;  // cudaStream_t, without the CUDA headers
#ifdef MAST_EXT_EMULATE_CUDA
const char* cudaGetErrorString(int error);
#endif

namespace mast_ext {

#ifdef MAST_EXT_EMULATE_CUDA
// A build for tests: the CUDA kernels run on the CPU (tests/emulation), on the CPU's tensors. With
// EMULATE_NOTHING in the environment the CPU's own kernels do, where they are part of the build.
inline bool uses_cuda_kernels(const at::Tensor&) {
  static const bool emulates = std::getenv("EMULATE_NOTHING") == nullptr;
  return emulates;
}

template <typename Cpu, typename Cuda>
void run_on(const at::Tensor& tensor, [[maybe_unused]] Cpu&& cpu, Cuda&& cuda) {
#ifndef MAST_EXT_WITHOUT_CPU_KERNELS
  if (!uses_cuda_kernels(tensor)) return cpu();
#else
  (void)tensor;
#endif
  const int error = cuda(static_cast<CUstream_st*>(nullptr));
  TORCH_CHECK(error == 0, "emulated CUDA: ", cudaGetErrorString(error));
}
#else
inline bool uses_cuda_kernels(const at::Tensor& tensor) { return tensor.is_cuda(); }

// Runs cpu(), or cuda(stream) on the current stream, by where `tensor` lives. `cuda` must be a
// generic lambda: a CPU-only build then never instantiates its body, nor asks the linker for the
// CUDA kernel.
template <typename Cpu, typename Cuda>
void run_on([[maybe_unused]] const at::Tensor& tensor, Cpu&& cpu, [[maybe_unused]] Cuda&& cuda) {
#ifdef MAST_EXT_WITH_CUDA
  if (tensor.is_cuda()) {
    const c10::cuda::CUDAGuard guard(tensor.device());
    C10_CUDA_CHECK(static_cast<cudaError_t>(cuda(c10::cuda::getCurrentCUDAStream().stream())));
    return;
  }
#endif
  cpu();
}
#endif

// Shares [0, rows) out over torch's threads as body(begin, end). `row_cost` is about how many
// scalar steps a row takes; little work stays on the calling thread. A thread takes the next rows
// when it is done, in about `turns` turns: one that wakes late, or whose core another program uses,
// has fewer of them. One turn each is for a body that begins with work of its own.
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
