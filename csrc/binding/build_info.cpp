// What the library was built for, and constants that shape-only kernels need, as ops: so the library
// has no symbol of Python's, and serves all versions of it.
#include <torch/library.h>

#include <stdexcept>
#include <string>

#include "host/columns/forms.h"
#include "kernels/common/isa.h"

namespace {

// Lines of "name=value". Values have no line break.
std::string build_info() {
  return "torch=" MAST_EXT_TORCH_VERSION "\nbuild_type=" MAST_EXT_BUILD_TYPE
         "\ncpu_isas=" MAST_EXT_CPU_ISAS "\ncompiler=" __VERSION__
#ifdef MAST_EXT_WITH_CUDA
         "\ncuda=" MAST_EXT_CUDA_VERSION "\ncuda_archs=" MAST_EXT_CUDA_ARCHS;
#else
         "\ncuda=\ncuda_archs=";
#endif
}

// The instruction set of the CPU kernels in this process.
std::string cpu_isa() {
  try {
    return mast_ext::kernels::name_of(mast_ext::kernels::isa_in_use());
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

std::int64_t kept_elements() { return mast_ext::kKeptElements; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(mast_ext, m) {
  m.def("build_info() -> str", &build_info);
  m.def("cpu_isa() -> str", &cpu_isa);
  m.def("kept_elements() -> int", &kept_elements);
}
