// Which columns can be read in packets.
#pragma once

#include "kernels/columns/columns.h"
#include "kernels/common/packets.cuh"

namespace mast_ext::kernels {

// Whether all rows can be read in packets of N elements of `bytes` each.
inline bool in_packets(const Columns& z, std::int64_t bytes, std::int64_t N) {
  const auto list = [&](const Columns::List& from) {
    return aligned(from.data, bytes * N) && from.view_stride % N == 0 && from.row_stride % N == 0;
  };
  return z.dim % N == 0 && list(z.x) && list(z.y);
}

}  // namespace mast_ext::kernels
