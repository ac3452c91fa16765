// How much host code for CUDA takes at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace mast_ext {

// `usual`, the size up to which a chunk of elements or rows may grow on a GPU. In builds with
// emulated kernels (tests/emulation) the environment variable EMULATE_CHUNK_LIMIT lowers it, so
// that tests have several chunks of inputs that the emulator takes in little time.
inline std::int64_t chunk_limit(std::int64_t usual) {
#ifdef MAST_EXT_EMULATE_CUDA
  if (const char* lower = std::getenv("EMULATE_CHUNK_LIMIT")) {
    return std::min<std::int64_t>(usual, std::atoll(lower));
  }
#endif
  return usual;
}

}  // namespace mast_ext
