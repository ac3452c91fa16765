# The PyTorchs that there will be a binding for, each an imported target torch::MINOR ("torch::2.11";
# the whole version if it is not of a release). TORCH_MINORS lists them; TORCH_DIR and
# TORCH_CUDA_VERSION are of the first one.
#
# Not by find_package(Torch), whose configuration is PyTorch's own build script: it requires the
# whole CUDA toolkit (nvrtc, cuBLAS, ...) even for a CPU-only extension, and overrides
# CMAKE_CUDA_ARCHITECTURES.
set(MAST_EXT_TORCH "" CACHE STRING "The folders of the PyTorchs to build for; empty for the installed one")
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_torch.py ${MAST_EXT_TORCH}
  OUTPUT_VARIABLE _torch
  RESULT_VARIABLE _failed)
if(_failed)
  message(FATAL_ERROR "no PyTorch in ${Python_EXECUTABLE}: install torch first (pip install torch), "
                      "then run `pip install --no-build-isolation .` in that same environment")
endif()
string(REGEX REPLACE "\n$" "" _torch "${_torch}")
string(REPLACE "\n" ";" _torch "${_torch}")

set(TORCH_MINORS)
while(_torch)
  list(POP_FRONT _torch _dir _version _cuda)
  if(_version VERSION_LESS 2.11)
    message(FATAL_ERROR "mast_ext needs PyTorch 2.11 or newer, found ${_version}: pip install -U torch")
  endif()
  # All releases of a minor version are alike to a library. What comes before a release is not.
  string(REGEX REPLACE "^([0-9]+\\.[0-9]+)\\.[0-9]+(\\+.*)?$" "\\1" _minor "${_version}")
  message(STATUS "PyTorch ${_version} (CUDA: ${_cuda}) in ${_dir}")
  if(NOT TORCH_MINORS)
    set(TORCH_DIR ${_dir})
    set(TORCH_CUDA_VERSION ${_cuda})
  endif()
  list(APPEND TORCH_MINORS ${_minor})
  add_library(torch::${_minor} INTERFACE IMPORTED)
  target_include_directories(torch::${_minor} SYSTEM INTERFACE ${_dir}/include)
  # ATen's headers otherwise include all operators' instead of those that they use.
  target_compile_definitions(torch::${_minor} INTERFACE
    AT_PER_OPERATOR_HEADERS "MAST_EXT_TORCH_VERSION=\"${_version}\"")
  target_link_directories(torch::${_minor} INTERFACE ${_dir}/lib)
  target_link_libraries(torch::${_minor} INTERFACE c10 torch_cpu)
endwhile()
