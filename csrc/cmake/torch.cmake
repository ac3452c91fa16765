# The installed PyTorch as one imported target, `torch::libs`.
#
# Not by find_package(Torch), whose configuration is PyTorch's own build script: it requires the
# whole CUDA toolkit (nvrtc, cuBLAS, ...) even for a CPU-only extension, and overrides
# CMAKE_CUDA_ARCHITECTURES. Nor by importing it, which takes seconds, and libraries that `make` still
# downloads while this compiles.
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_torch.py
  OUTPUT_VARIABLE _torch
  ERROR_QUIET
  RESULT_VARIABLE _failed)
if(_failed)
  message(FATAL_ERROR "no PyTorch in ${Python_EXECUTABLE}: install torch first (pip install torch), "
                      "then run `pip install --no-build-isolation .` in that same environment")
endif()
list(GET _torch 0 TORCH_DIR)
list(GET _torch 1 TORCH_VERSION)
list(GET _torch 2 TORCH_CUDA_VERSION)
if(TORCH_VERSION VERSION_LESS 2.7)
  message(FATAL_ERROR "mast_ext needs PyTorch 2.7 or newer, found ${TORCH_VERSION}: pip install -U torch")
endif()

add_library(torch::libs INTERFACE IMPORTED)
target_include_directories(torch::libs SYSTEM INTERFACE ${TORCH_DIR}/include)
# ATen's headers otherwise include all operators' instead of those that they use.
target_compile_definitions(torch::libs INTERFACE AT_PER_OPERATOR_HEADERS)
target_link_directories(torch::libs INTERFACE ${TORCH_DIR}/lib)
target_link_libraries(torch::libs INTERFACE c10 torch torch_cpu)
message(STATUS "PyTorch ${TORCH_VERSION} (CUDA '${TORCH_CUDA_VERSION}') in ${TORCH_DIR}")
