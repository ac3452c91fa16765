// One CPU kernel, several instruction sets, chosen once per process.
//
// Each *_cpu.cpp is compiled per instruction set (csrc/cmake/cpu_kernels.cmake) into the
// namespace MAST_EXT_ISA. It declares its entry points with MAST_EXT_CPU_ENTRY; the baseline copy
// also defines the function that host code calls, which forwards to the chosen copy (isa_cpu.cpp).
#pragma once

namespace mast_ext::kernels {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best that is built in and that this CPU can run, or the one that the environment variable
// MAST_EXT_CPU_ISA names: baseline, avx2 or avx512. Throws std::invalid_argument where it names
// something else; importing the package asks first.
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

// Use after the entry point is defined in namespace MAST_EXT_ISA, at the scope of
// mast_ext::kernels. `params` is the parenthesised parameter list, `args` the names to pass on.
#define MAST_EXT_CPU_ENTRY(name, params, args)                                      \
  MAST_EXT_IF_AVX512(namespace avx512 { void name params; })                        \
  MAST_EXT_IF_AVX2(namespace avx2 { void name params; })                            \
  void name params {                                                                \
    MAST_EXT_IF_AVX512(if (isa_in_use() == Isa::kAvx512) return avx512::name args;) \
    MAST_EXT_IF_AVX2(if (isa_in_use() == Isa::kAvx2) return avx2::name args;)       \
    baseline::name args;                                                            \
  }

#else

#define MAST_EXT_CPU_ENTRY(name, params, args)

#endif
