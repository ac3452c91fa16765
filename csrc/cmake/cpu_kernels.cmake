# mast_ext_add_cpu_kernels(target source... [OPTIONS option...]): compiles every source once per
# instruction set of MAST_EXT_ISAS.
#
# Each copy has a namespace of its own, MAST_EXT_ISA; the baseline copy also holds the functions that
# forward to the others (csrc/kernels/common/isa.h). The baseline objects come first on the link
# line: of a weak symbol that several copies define, the linker keeps the first one, which runs on
# every machine.
#
# A copy is compiled alike whichever others there are, so that MAST_EXT_CPU=all after native only
# compiles what is missing.
include(CheckCXXCompilerFlag)

set(MAST_EXT_CPU all CACHE STRING "CPU kernels: all instruction sets, or native, the best one of this machine")
if(NOT MAST_EXT_CPU MATCHES "^(all|native)$")
  message(FATAL_ERROR "MAST_EXT_CPU must be all or native, got ${MAST_EXT_CPU}")
endif()

set(MAST_EXT_ISAS baseline)
set(MAST_EXT_NATIVE_ISA baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(MAST_EXT_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(MAST_EXT_ISA_FLAGS_avx512
      ${MAST_EXT_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  foreach(isa avx2 avx512)
    list(JOIN MAST_EXT_ISA_FLAGS_${isa} " " flags)
    check_cxx_compiler_flag("${flags}" MAST_EXT_HAS_${isa})
    if(MAST_EXT_HAS_${isa})
      list(APPEND MAST_EXT_ISAS ${isa})
    endif()
  endforeach()
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -march=native -dM -E -x c++ /dev/null
                  OUTPUT_VARIABLE _native)
  # All that the flags above ask for: virtual machines may hide some of it.
  foreach(isa avx2 avx512)
    set(_lacks FALSE)
    foreach(flag IN LISTS MAST_EXT_ISA_FLAGS_${isa})
      string(TOUPPER "${flag}" macro)
      string(REGEX REPLACE "^-M" "__" macro "${macro}__")
      if(NOT flag MATCHES "vector-width" AND NOT _native MATCHES "${macro}")
        set(_lacks TRUE)
      endif()
    endforeach()
    if(NOT _lacks AND isa IN_LIST MAST_EXT_ISAS)
      set(MAST_EXT_NATIVE_ISA ${isa})
    endif()
  endforeach()
endif()
if(MAST_EXT_CPU STREQUAL native)
  set(MAST_EXT_ISAS ${MAST_EXT_NATIVE_ISA})
endif()
list(JOIN MAST_EXT_ISAS " " MAST_EXT_CPU_ISAS)

function(mast_ext_add_cpu_kernels target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" OPTIONS)
  foreach(isa IN LISTS MAST_EXT_ISAS)
    string(TOUPPER ${isa} isa_upper)
    list(APPEND builds MAST_EXT_BUILDS_${isa_upper})
  endforeach()

  # What chooses among the copies runs on every machine, so that it can say what one lacks.
  add_library(${target}_isa OBJECT csrc/kernels/common/isa_cpu.cpp)
  target_include_directories(${target}_isa PRIVATE csrc)
  target_compile_definitions(${target}_isa PRIVATE ${builds})
  target_compile_options(${target}_isa PRIVATE -Wall -Wextra -Werror ${arg_OPTIONS})
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_isa>)

  foreach(isa IN LISTS MAST_EXT_ISAS)
    set(kernels ${target}_cpu_kernels_${isa})
    add_library(${kernels} OBJECT ${arg_UNPARSED_ARGUMENTS})
    string(TOUPPER ${isa} isa_upper)
    target_include_directories(${kernels} PRIVATE csrc)
    target_include_directories(${kernels} SYSTEM PRIVATE ${TORCH_DIR}/include)
    if(CMAKE_DISABLE_PRECOMPILE_HEADERS)
      target_compile_options(${kernels} PRIVATE -include ${PROJECT_SOURCE_DIR}/csrc/cmake/manylinux.h)
    endif()
    # What nearly all of them include, read once; half of the time to compile a small kernel. The first
    # one chooses symbols and must stand before everything else.
    target_precompile_headers(${kernels} PRIVATE ${PROJECT_SOURCE_DIR}/csrc/cmake/manylinux.h
                                                 ${PROJECT_SOURCE_DIR}/csrc/kernels/common/half_cpu.h)
    target_compile_definitions(${kernels} PRIVATE MAST_EXT_ISA=${isa} MAST_EXT_ISA_IS_${isa_upper})
    if(isa STREQUAL baseline)
      target_compile_definitions(${kernels} PRIVATE ${builds})
    endif()
    # -O2 compiles in half of the time, and is up to 20 % slower: on x86 few machines run the baseline.
    # It sees no end of loops over lanes, and warns of vectors that such a loop fills.
    set(optimization -O3)
    if(isa STREQUAL baseline AND NOT MAST_EXT_ISAS STREQUAL baseline)
      set(optimization -O2 -Wno-maybe-uninitialized)
    endif()
    # Contraction to fused multiply-adds is allowed, fast-math is not: NaN and Inf must propagate.
    target_compile_options(${kernels} PRIVATE
      -Wall -Wextra -Werror -Wno-psabi ${optimization} -fno-math-errno -fno-trapping-math -ffp-contract=fast
      -fno-semantic-interposition
      ${MAST_EXT_ISA_FLAGS_${isa}} ${arg_OPTIONS})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${kernels}>)
  endforeach()
endfunction()
