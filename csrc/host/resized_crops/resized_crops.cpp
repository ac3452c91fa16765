#include "kernels/resized_crops/resized_crops.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {

Tensor resized_crops(const Tensor& images, const Tensor& boxes_, const Tensor& flipped_,
                     std::int64_t size) {
  TORCH_CHECK_VALUE(images.dim() == 4, "images must have shape [N, C, H, W], got ", images.sizes());
  check_levels(images, "images");
  const std::int64_t count = images.size(0), height = images.size(2), width = images.size(3);
  check_shape(boxes_, "boxes", {count, 4});
  check_long(boxes_, "boxes");
  check_shape(flipped_, "flipped", {count});
  TORCH_CHECK_TYPE(flipped_.scalar_type() == at::kBool, "flipped must be Bool, got ",
                   flipped_.scalar_type());
  check_device(boxes_, "boxes", images, "images");
  check_device(flipped_, "flipped", images, "images");
  TORCH_CHECK_VALUE(size >= 1, "size must be at least 1, got ", size);
  const Tensor boxes = boxes_.contiguous(), flipped = flipped_.contiguous();
  const auto* box = static_cast<const std::int64_t*>(boxes.const_data_ptr());
  const auto within = [](std::int64_t start, std::int64_t extent, std::int64_t length) {
    return start >= 0 && extent >= 1 && start <= length - extent;
  };
  for (std::int64_t n = 0; n < count; ++n, box += 4) {
    TORCH_CHECK_VALUE(within(box[0], box[2], height) && within(box[1], box[3], width),
                      "boxes must be non-empty and inside the image, got (y, x, h, w) = (", box[0],
                      ", ", box[1], ", ", box[2], ", ", box[3], ") of image ", n, " of ", height,
                      " x ", width);
  }
  // Channels last, as images come from files: so they are resized faster.
  const Tensor to = images.new_empty({count, size, size, images.size(1)});
  const kernels::ResizedCrops p{
      .wide = images.scalar_type() == at::kUInt16,
      .channels = images.size(1),
      .size = size,
      .images = images.const_data_ptr(),
      .image_stride = images.stride(0),
      .channel_stride = images.stride(1),
      .row_stride = images.stride(2),
      .column_stride = images.stride(3),
      .boxes = static_cast<const std::int64_t*>(boxes.const_data_ptr()),
      .flipped = static_cast<const bool*>(flipped.const_data_ptr()),
      .to = to.mutable_data_ptr(),
  };
  run_on_cpu([&] {
    const std::int64_t cost = 4 * p.channels * size * size;
    parallel_rows(count, cost,
                  [&](auto begin, auto end) { kernels::resized_crops_cpu(p, begin, end); });
  });
  return to.permute({0, 3, 1, 2});
}

}  // namespace mast_ext
