// The choice among the instruction sets that CPU kernels are compiled for, made once per process.
//
// csrc/cmake/cpu_kernels.cmake compiles each *_cpu.cpp once per instruction set, with MAST_EXT_ISA
// defined as the name of the namespace that holds this copy. MAST_EXT_CPU_ENTRY defines the
// function that host code calls: in the baseline copy it forwards to the chosen copy. The others'
// are weak and forward to their own copy; one is linked where that copy is the only one
// (MAST_EXT_CPU=native).
#pragma once

namespace mast_ext::kernels {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best instruction set that was compiled and that this CPU has, or the one that the environment
// variable MAST_EXT_CPU_ISA names: baseline, avx2 or avx512. Throws std::invalid_argument if that
// one is unknown or unavailable, or if this CPU has none of those that were compiled; importing the
// package makes the first call, and so reports it.
Isa isa_in_use();
const char* name_of(Isa isa);

}  // namespace mast_ext::kernels

#ifdef MAST_EXT_ISA_IS_BASELINE

#ifdef MAST_EXT_BUILDS_AVX512
#define MAST_EXT_IF_AVX512(statement) statement
#else
#define MAST_EXT_IF_AVX512(statement)
#endif
#ifdef MAST_EXT_BUILDS_AVX2
#define MAST_EXT_IF_AVX2(statement) statement
#else
#define MAST_EXT_IF_AVX2(statement)
#endif

// To be used in namespace mast_ext::kernels, after the entry point is defined in its namespace
// MAST_EXT_ISA. `params` is the parenthesized parameter list, `args` the parenthesized names.
#define MAST_EXT_CPU_ENTRY(name, params, args)                                      \
  MAST_EXT_IF_AVX512(namespace avx512 { void name params; })                        \
  MAST_EXT_IF_AVX2(namespace avx2 { void name params; })                            \
  void name params {                                                                \
    MAST_EXT_IF_AVX512(if (isa_in_use() == Isa::kAvx512) return avx512::name args;) \
    MAST_EXT_IF_AVX2(if (isa_in_use() == Isa::kAvx2) return avx2::name args;)       \
    baseline::name args;                                                            \
  }

#else

#define MAST_EXT_CPU_ENTRY(name, params, args) \
  __attribute__((weak)) void name params { MAST_EXT_ISA::name args; }

#endif
