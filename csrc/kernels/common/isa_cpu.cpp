#include "kernels/common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mast_ext::kernels {
namespace {

constexpr Isa kBestFirst[] = {Isa::kAvx512, Isa::kAvx2, Isa::kBaseline};

bool is_usable(Isa isa) {
  switch (isa) {
#ifdef MAST_EXT_BUILDS_AVX512
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
#ifdef MAST_EXT_BUILDS_AVX2
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
#endif
#ifdef MAST_EXT_BUILDS_BASELINE
    case Isa::kBaseline:
      return true;
#endif
    default:
      return false;
  }
}

Isa choose() {
  const char* variable = std::getenv("MAST_EXT_CPU_ISA");
  const std::string_view wanted = variable == nullptr ? "" : variable;
  std::string usable;
  for (const Isa isa : kBestFirst) {
    if (!is_usable(isa)) continue;
    if (wanted.empty() || wanted == name_of(isa)) return isa;
    usable += usable.empty() ? name_of(isa) : std::string(", ") + name_of(isa);
  }
  if (usable.empty()) {
    throw std::invalid_argument(
        "mast_ext was built with MAST_EXT_CPU=native, for an instruction set that this CPU lacks: "
        "build it again on this machine (in a clone after `make clean`)");
  }
  throw std::invalid_argument(
      "MAST_EXT_CPU_ISA must be one of what this CPU and this build have, " + usable + "; got " +
      std::string(wanted));
}

}  // namespace

Isa isa_in_use() {
  static const Isa isa = choose();
  return isa;
}

const char* name_of(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

}  // namespace mast_ext::kernels
