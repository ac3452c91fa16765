# Modules for tests without a GPU, in which the CUDA kernels run on the CPU:
#
#   _C                 them alone
#   races/_C           the same, with every load and store told to the race detector
#   sanitized/_C       them and the CPU's kernels, with AddressSanitizer and
#                      UndefinedBehaviorSanitizer; EMULATE_NOTHING chooses the CPU's
#   faults             a program of faulty kernels, which the emulator is tested with
#
# The kernels are a library beside each module: its thread-local memory is the kernels' shared
# memory and nothing else.
set(emulation ${CMAKE_CURRENT_SOURCE_DIR}/tests/emulation)
set(emulator ${emulation}/emulator.cpp)
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX
                            COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
# The functions that these make the compiler call are in races.cpp, not in the compiler's library.
set(watch -fsanitize=thread,alignment -g1)
# The first fault ends the process. No check of virtual tables: those of PyTorch are not seen.
set(sanitizers -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all -O0 -g1)

function(mast_ext_emulate target)
  target_include_directories(${target} PRIVATE ${emulation} csrc)
  target_include_directories(${target} SYSTEM PRIVATE ${TORCH_DIR}/include)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -O1 ${ARGN})
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET default)
endfunction()

add_library(emulated_kernels SHARED ${cuda_sources} ${emulator})
mast_ext_emulate(emulated_kernels)
mast_ext_add_module(_C)
target_compile_definitions(_C PRIVATE MAST_EXT_WITHOUT_CPU_KERNELS)
set(MAST_EXT_ISAS baseline)
# Which host code names outside the bodies that run_on() leaves out.
mast_ext_add_cpu_kernels(_C csrc/kernels/common/isa_cpu.cpp csrc/kernels/common/products_cpu.cpp
                         OPTIONS -O0)
target_link_libraries(_C PRIVATE emulated_kernels)

add_library(watched_kernels OBJECT ${cuda_sources})
mast_ext_emulate(watched_kernels ${watch})
add_library(emulated_races SHARED $<TARGET_OBJECTS:watched_kernels> ${emulator} ${emulation}/races.cpp)
mast_ext_emulate(emulated_races)
set_target_properties(emulated_races PROPERTIES LIBRARY_OUTPUT_DIRECTORY races
                                                OUTPUT_NAME emulated_kernels)
add_custom_command(TARGET emulated_races POST_BUILD
  COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_FILE:_C> $<TARGET_FILE_DIR:emulated_races>)
add_dependencies(emulated_races _C)

add_executable(faults ${emulation}/faults.cpp ${emulator} ${emulation}/races.cpp)
mast_ext_emulate(faults -Wno-unknown-pragmas)
set_source_files_properties(${emulation}/faults.cpp PROPERTIES COMPILE_OPTIONS "${watch}")

add_library(sanitized_kernels SHARED ${cuda_sources} ${emulator})
mast_ext_emulate(sanitized_kernels ${sanitizers})
target_link_options(sanitized_kernels PRIVATE ${sanitizers})
mast_ext_add_module(sanitized)
target_compile_options(sanitized PRIVATE ${sanitizers})
target_link_options(sanitized PRIVATE ${sanitizers})
target_link_libraries(sanitized PRIVATE sanitized_kernels)
# Of the CPU kernels, those that this machine runs, and the dispatcher.
execute_process(COMMAND ${CMAKE_CXX_COMPILER} -march=native -dM -E -x c++ /dev/null
                OUTPUT_VARIABLE native)
if(native MATCHES "__AVX512DQ__")
  set(MAST_EXT_ISAS baseline avx512)
elseif(native MATCHES "__AVX2__")
  set(MAST_EXT_ISAS baseline avx2)
endif()
mast_ext_add_cpu_kernels(sanitized ${cpu_sources} OPTIONS ${sanitizers})
set_target_properties(sanitized PROPERTIES OUTPUT_NAME _C)
set_target_properties(sanitized sanitized_kernels PROPERTIES LIBRARY_OUTPUT_DIRECTORY sanitized)
set_target_properties(sanitized_kernels PROPERTIES OUTPUT_NAME emulated_kernels)

foreach(module _C sanitized)
  target_compile_definitions(${module} PRIVATE MAST_EXT_EMULATE_CUDA)
  target_link_options(${module} PRIVATE "-Wl,-rpath,$ORIGIN")
endforeach()
target_compile_definitions(binding PRIVATE MAST_EXT_EMULATE_CUDA)
