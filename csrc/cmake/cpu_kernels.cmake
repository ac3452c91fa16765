# mast_ext_add_cpu_kernels(target source... [OPTIONS option...]): compiles every source once per
# instruction set.
#
# Each copy has a namespace of its own, MAST_EXT_ISA; the baseline copy also holds the dispatcher
# (csrc/kernels/common/isa.h). The baseline objects come first on the link line: of a weak symbol
# that several copies define, the linker keeps the first one, which runs on every machine.
include(CheckCXXCompilerFlag)

set(MAST_EXT_ISAS baseline)
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
endif()
list(JOIN MAST_EXT_ISAS " " MAST_EXT_CPU_ISAS)

function(mast_ext_add_cpu_kernels target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" OPTIONS)
  foreach(isa IN LISTS MAST_EXT_ISAS)
    set(kernels ${target}_cpu_kernels_${isa})
    add_library(${kernels} OBJECT ${arg_UNPARSED_ARGUMENTS})
    string(TOUPPER ${isa} isa_upper)
    target_include_directories(${kernels} PRIVATE csrc)
    target_link_libraries(${kernels} PRIVATE torch::libs)
    target_compile_definitions(${kernels} PRIVATE MAST_EXT_ISA=${isa} MAST_EXT_ISA_IS_${isa_upper})
    foreach(other IN LISTS MAST_EXT_ISAS)
      string(TOUPPER ${other} other_upper)
      target_compile_definitions(${kernels} PRIVATE MAST_EXT_BUILDS_${other_upper})
    endforeach()
    # Contraction to fused multiply-adds is allowed, fast-math is not: NaN and Inf must propagate.
    target_compile_options(${kernels} PRIVATE
      -Wall -Wextra -Werror -Wno-psabi -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast
      ${MAST_EXT_ISA_FLAGS_${isa}} ${arg_OPTIONS})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${kernels}>)
  endforeach()
endfunction()
