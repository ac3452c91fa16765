// How much host code for CUDA takes at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace mast_ext {

// `usual`, the size up to which a chunk of elements or rows may grow on a GPU, or the number of
// thread blocks or threads among which work is divided, so that each has a share of a certain size.
// In builds with emulated kernels (tests/emulation) the environment variable EMULATE_CHUNK_LIMIT
// lowers it, so that tests have several chunks, or large shares, of inputs that the emulator takes
// in little time.
inline std::int64_t chunk_limit(std::int64_t usual) {
#ifdef MAST_EXT_EMULATE_CUDA
  if (const char* lower = std::getenv("EMULATE_CHUNK_LIMIT")) {
    return std::min<std::int64_t>(usual, std::atoll(lower));
  }
#endif
  return usual;
}

}  // namespace mast_ext
