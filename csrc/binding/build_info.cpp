// What the libraries were built for, and constants that shape-only kernels need, as ops: so no
// library has a symbol of Python's, and one serves all versions of it.
#include <torch/library.h>

#include <stdexcept>
#include <string>

#include "host/columns/forms.h"
#include "host/common/run_on.h"
#include "kernels/common/cuda_library.h"
#include "kernels/common/isa.h"

namespace {

using namespace mast_ext;

// Lines of "name=value". Values have no line break.
std::string build_info() {
  const bool cuda = kernels::has_cuda_library();
  return std::string("torch=" MAST_EXT_TORCH_VERSION "\nbuild_type=" MAST_EXT_BUILD_TYPE
                     "\ncpu_isas=" MAST_EXT_CPU_ISAS "\ncompiler=" __VERSION__ "\ncuda=") +
         (cuda ? kernels::cuda_version() : "") +
         "\ncuda_archs=" + (cuda ? kernels::cuda_architectures() : "");
}

// The instruction set of the CPU kernels in this process.
std::string cpu_isa() {
  try {
    return kernels::name_of(kernels::isa_in_use());
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

std::int64_t kept_elements() { return kKeptElements; }

void no_cuda_library([[maybe_unused]] std::string reason) {
#ifndef MAST_EXT_EMULATE_CUDA
  why_no_cuda_library() = std::move(reason);
#endif
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mast_ext, m) {
  m.def("build_info() -> str", &build_info);
  m.def("cpu_isa() -> str", &cpu_isa);
  m.def("kept_elements() -> int", &kept_elements);
  m.def("no_cuda_library(str reason) -> ()", &no_cuda_library);
}
