#include "kernels/photometry/photometry.h"

#include <algorithm>

#include "host/common/caching_allocator.h"
#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// Whether a row changes what only images of red, green and blue have.
bool changes_color(const float* row) {
  return row[kernels::kSaturation] != 1 || row[kernels::kHue] != 0 || row[kernels::kGrayscale] != 0;
}

// Checks what is read of a row, which is that of image n.
void check_row(const float* row, std::int64_t n, std::int64_t channels) {
  const auto finite = [](float value) { return value - value == 0; };
  if (row[kernels::kJitter] > 0.5f) {
    TORCH_CHECK_VALUE(std::all_of(row + kernels::kBrightness, row + kernels::kHue + 1, finite),
                      "brightness, contrast, saturation and hue must be finite, those of row ", n,
                      " are not");
  }
  if (row[kernels::kBlur] > 0.5f) {
    const float sigma = row[kernels::kSigma];
    TORCH_CHECK_VALUE(finite(sigma) && sigma <= kernels::kMostSigma, "sigma must be at most ",
                      kernels::kMostSigma, " pixels, got ", sigma, " in row ", n);
  }
  TORCH_CHECK_VALUE(channels == 3 || !changes_color(row), "row ", n,
                    " changes saturation, hue or grayscale, and images of ", channels,
                    " channels have no color");
}

}  // namespace

Tensor new_pixels(const Tensor& like, at::IntArrayRef shape) {
  return new_workspace(like, shape, like.scalar_type());
}

void photometry(const Tensor& levels, const Tensor& rows_, std::int64_t solarize_threshold,
                const OptionalTensor& mean_, const OptionalTensor& deviation_, const Tensor& out) {
  TORCH_CHECK_VALUE(levels.dim() == 4, "levels must have shape [N, C, H, W], got ", levels.sizes());
  check_levels(levels, "levels");
  const std::int64_t count = levels.size(0), channels = levels.size(1);
  check_shape(rows_, "rows", {count, kernels::kColumns});
  TORCH_CHECK_VALUE(mean_.has_value() == deviation_.has_value(),
                    "mean and std must be given together or not at all");
  const auto dense_floats = [&](const Tensor& tensor, const char* name) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, name, " must be float32, got ",
                     tensor.scalar_type());
    check_device(tensor, name, levels, "levels");
    return tensor.contiguous();
  };
  const Tensor rows = dense_floats(rows_, "rows");
  Tensor mean, deviation;
  if (mean_) {
    mean = dense_floats(*mean_, "mean");
    deviation = dense_floats(*deviation_, "std");
    check_shape(mean, "mean", {channels});
    check_shape(deviation, "std", {channels});
  }
  const at::ScalarType type = mean_ ? at::kFloat : levels.scalar_type();
  check_shape(out, "out", levels.sizes());
  check_device(out, "out", levels, "levels");
  TORCH_CHECK_TYPE(out.scalar_type() == type, "out must be ", type, ", got ", out.scalar_type());
  if (levels.numel() == 0) return;
  TORCH_CHECK_VALUE(
      out.select(0, 0).is_contiguous() && (count == 1 || out.stride(0) >= levels.numel() / count),
      "each image of out must be contiguous and apart from the others, got strides ",
      out.strides());

  const kernels::Photometry p{
      .wide = levels.scalar_type() == at::kUInt16,
      .channels = channels,
      .height = levels.size(2),
      .width = levels.size(3),
      .levels = levels.const_data_ptr(),
      .image_stride = levels.stride(0),
      .channel_stride = levels.stride(1),
      .row_stride = levels.stride(2),
      .column_stride = levels.stride(3),
      .rows = static_cast<const float*>(rows.const_data_ptr()),
      .solarize_threshold = solarize_threshold,
      .normalize = mean_.has_value(),
      .mean = static_cast<const float*>(const_element(mean)),
      .std = static_cast<const float*>(const_element(deviation)),
      .out = out.mutable_data_ptr(),
      .out_stride = out.stride(0),
  };
  for (std::int64_t n = 0; n < count; ++n) {
    check_row(p.rows + n * kernels::kColumns, n, channels);
  }
  run_on_cpu([&] {
    const std::int64_t cost = 8 * channels * p.height * p.width;
    parallel_rows(count, cost,
                  [&](auto begin, auto end) { kernels::photometry_cpu(p, begin, end); });
  });
}

}  // namespace mast_ext
