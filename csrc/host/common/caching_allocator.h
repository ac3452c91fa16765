// Where a CPU operator's large results and workspaces lie in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace mast_ext {

// What malloc takes from the system anew every time, and gives back; smaller memory it reuses.
inline constexpr std::int64_t kLargeResult = 32 << 20;

// An uninitialized tensor like `like`, of another shape and, if given, another type. A large one on
// the CPU lies on huge pages, populated, in memory that an earlier one of about its size had where
// there is any: fresh pages take longer to come by than most operators to fill them.
at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape);
at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type);

// The same from 1 MB on, for what an operator works in: memory that the allocator has given back
// in between is slow to come by, most of all on a virtual machine.
at::Tensor new_workspace(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type);

}  // namespace mast_ext
