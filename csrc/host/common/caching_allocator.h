// A caching allocator for the large results and workspaces of CPU operators. It keeps the memory of
// freed tensors for new ones, because new memory costs a page fault for every page, which takes
// longer than most operators take to fill the page.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mast_ext {

// Results of at least this many bytes are cached. malloc reuses the memory of smaller ones itself,
// but maps larger ones anew every time and unmaps them when they are freed.
inline constexpr std::int64_t kLargeResult = 32 << 20;

// An uninitialized tensor like `like`, of another shape and, if given, another type. The memory of
// a large one on the CPU is a cached block of about its size, if there is one, or new huge pages.
at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape);
at::Tensor new_result(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type);

// `count` of them, aligned to 64 bytes, which share a block if they are large together.
std::vector<at::Tensor> new_results(const at::Tensor& like, std::int64_t count,
                                    at::IntArrayRef shape);

// The same as new_result() for a workspace, which is cached from 1 MB on: between two calls malloc
// may return such memory to the system, and getting it back is slow, above all on a virtual
// machine.
at::Tensor new_workspace(const at::Tensor& like, at::IntArrayRef shape, at::ScalarType type);

}  // namespace mast_ext
