// resized_crops: crops of images, resized by an antialiased bilinear filter and mirrored. On the
// CPU alone.
//
// This is the contract between the host code, which fills in the struct, and the kernel.
#pragma once

#include <cstdint>

namespace mast_ext::kernels {

struct ResizedCrops {
  bool wide;  // levels are uint16, not uint8
  std::int64_t channels;
  std::int64_t size;   // of the results, both sides
  const void* images;  // [N, C, H, W], of any strides, in levels
  std::int64_t image_stride, channel_stride, row_stride, column_stride;
  const std::int64_t* boxes;  // [N, 4]: top, left, height, width; inside the image, not empty
  const bool* flipped;        // [N]
  void* to;                   // [N, size, size, C], dense
};

// Images [begin, end).
void resized_crops_cpu(const ResizedCrops& p, std::int64_t begin, std::int64_t end);

}  // namespace mast_ext::kernels
