# Libraries for tests without a GPU, in which the CUDA kernels run on the CPU:
#
#   .                  the CUDA kernels alone
#   races/             the same, with every load and store reported to the race detector
#   sanitized/         the CUDA and the CPU kernels, with AddressSanitizer and
#                      UndefinedBehaviorSanitizer; the environment variable EMULATE_NOTHING chooses
#                      the CPU kernels. The binding, which all share, is not instrumented
#   faults             a program of faulty kernels, by which the emulator is tested
#
# Where host code for CUDA takes chunks, the environment variable EMULATE_CHUNK_LIMIT makes them small
# (csrc/host/common/chunk_limit.h).
#
# Each one's CUDA kernels are in a library of their own, whose thread-local memory is the
# kernels' static shared memory and nothing else.
set(emulation ${CMAKE_CURRENT_SOURCE_DIR}/tests/emulation)
set(emulator ${emulation}/emulator.cpp)
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX
                            COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
# The instrumentation of these options calls functions in races.cpp, not a sanitizer's runtime.
set(watch -fsanitize=thread,alignment -g1)
# The first error ends the process. Virtual tables are not checked: PyTorch's are not visible.
set(sanitizers -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all -O0 -g1)

# What nearly all CUDA kernels include is read once per target.
function(mast_ext_precompile target)
  target_precompile_headers(${target} PRIVATE
    ${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/common/dtype_cuda.cuh
    ${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/common/launch.cuh)
endfunction()
set_source_files_properties(${emulator} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)

function(mast_ext_emulate target)
  target_include_directories(${target} PRIVATE ${emulation} csrc)
  target_include_directories(${target} SYSTEM PRIVATE ${TORCH_DIR}/include)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -O1 ${ARGN})
  target_compile_definitions(${target} PRIVATE MAST_EXT_CUDA_VERSION="" MAST_EXT_CUDA_ARCHS="80-real")
endfunction()

list(GET TORCH_MINORS 0 torch)
mast_ext_compile_binding(binding torch::${torch})

add_library(emulated_kernels SHARED ${cuda_sources} ${emulator})
mast_ext_emulate(emulated_kernels)
mast_ext_precompile(emulated_kernels)
mast_ext_add_library(emulated torch::${torch} binding emulated_kernels)
target_compile_definitions(emulated PRIVATE MAST_EXT_WITHOUT_CPU_KERNELS)
set(MAST_EXT_ISAS baseline)
# Host code uses this one outside of the lambdas that run_on() does not instantiate.
mast_ext_add_cpu_kernels(emulated csrc/kernels/common/products_cpu.cpp OPTIONS -O0)

add_library(watched_kernels OBJECT ${cuda_sources})
mast_ext_emulate(watched_kernels ${watch})
mast_ext_precompile(watched_kernels)
add_library(emulated_races SHARED $<TARGET_OBJECTS:watched_kernels> ${emulator} ${emulation}/races.cpp)
mast_ext_emulate(emulated_races)
set_target_properties(emulated_races PROPERTIES LIBRARY_OUTPUT_DIRECTORY races
                                                OUTPUT_NAME emulated_kernels)
add_custom_command(OUTPUT races/copied DEPENDS emulated emulated_races
  COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_FILE:emulated> $<TARGET_FILE_DIR:emulated_races>
  COMMAND ${CMAKE_COMMAND} -E touch races/copied)
add_custom_target(races ALL DEPENDS races/copied)

add_executable(faults ${emulation}/faults.cpp ${emulator} ${emulation}/races.cpp)
mast_ext_emulate(faults -Wno-unknown-pragmas)
set_source_files_properties(${emulation}/faults.cpp PROPERTIES COMPILE_OPTIONS "${watch}")

add_library(sanitized_kernels SHARED ${cuda_sources} ${emulator})
mast_ext_emulate(sanitized_kernels ${sanitizers})
mast_ext_precompile(sanitized_kernels)
target_link_options(sanitized_kernels PRIVATE ${sanitizers})
mast_ext_add_library(sanitized torch::${torch} binding sanitized_kernels)
target_compile_options(sanitized PRIVATE ${sanitizers})
target_link_options(sanitized PRIVATE ${sanitizers})
set(MAST_EXT_ISAS ${MAST_EXT_NATIVE_ISA})  # the tests run no other
mast_ext_add_cpu_kernels(sanitized ${cpu_sources} OPTIONS ${sanitizers})
set_target_properties(sanitized sanitized_kernels PROPERTIES LIBRARY_OUTPUT_DIRECTORY sanitized)
set_target_properties(sanitized_kernels PROPERTIES OUTPUT_NAME emulated_kernels)

foreach(library emulated sanitized)
  target_compile_definitions(${library} PRIVATE MAST_EXT_EMULATE_CUDA)
  # Of the kernels it knows weak names alone, for which some linkers would leave their library out.
  target_link_options(${library} BEFORE PRIVATE -Wl,--no-as-needed)
  set_target_properties(${library} PROPERTIES OUTPUT_NAME mast_ext)
endforeach()
target_compile_definitions(binding PRIVATE MAST_EXT_EMULATE_CUDA)
