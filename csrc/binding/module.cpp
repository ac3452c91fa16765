// The Python module mast_ext._C. Importing it registers the ops (library.cpp); its attributes
// describe the build and hold the constants that shape-only kernels need.
#include <pybind11/pybind11.h>

#include "host/columns/forms.h"
#include "kernels/common/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of mast_ext; call its ops through mast_ext.functional.";
  py::dict build;
  build["torch"] = MAST_EXT_TORCH_VERSION;
  build["build_type"] = MAST_EXT_BUILD_TYPE;
  build["cpu_isas"] = MAST_EXT_CPU_ISAS;
  build["compiler"] = __VERSION__;
#ifdef MAST_EXT_WITH_CUDA
  build["cuda"] = MAST_EXT_CUDA_VERSION;
  build["cuda_archs"] = MAST_EXT_CUDA_ARCHS;
#else
  build["cuda"] = py::none();
  build["cuda_archs"] = "";
#endif
  m.attr("build") = build;
  m.attr("kept_elements") = mast_ext::kKeptElements;
  m.def(
      "cpu_isa", [] { return mast_ext::kernels::name_of(mast_ext::kernels::isa_in_use()); },
      "The instruction set of the CPU kernels in this process.");
}
