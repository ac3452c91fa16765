// photometry: what is done to the colors of views after they are cropped: brightness, contrast,
// saturation, hue, gray, blur, solarization; then they are normalized. On the CPU alone.
//
// This is the contract between the host code, which fills in the struct, and the kernel.
#pragma once

#include <cstdint>

namespace mast_ext::kernels {

// Columns of a row of augmentation parameters (mast_ext/augment/parameters.py) that are read here.
// Of jitter, grayscale, blur and solarize, more than a half means yes.
enum : std::int64_t {
  kJitter = 5,
  kBrightness,
  kContrast,
  kSaturation,
  kHue,
  kGrayscale,
  kBlur,
  kSigma,
  kSolarize,
  kColumns
};

// The largest sigma. Several times as wide, and the weights of 8-bit levels would all round to 0.
inline constexpr float kMostSigma = 1000;

struct Photometry {
  bool wide;  // levels are uint16, not uint8
  std::int64_t channels, height, width;
  const void* levels;  // [N, C, H, W], of any strides, in levels
  std::int64_t image_stride, channel_stride, row_stride, column_stride;
  const float* rows;                // [N, kColumns]
  std::int64_t solarize_threshold;  // levels from this one on are inverted
  bool normalize;                   // else the results are levels
  const float* mean;                // [C], of pixels in [0, 1]
  const float* std;                 // [C]
  void* out;                        // [N] dense images [C, H, W]; float or levels
  std::int64_t out_stride;          // from one to the next
};

// Images [begin, end).
void photometry_cpu(const Photometry& p, std::int64_t begin, std::int64_t end);

}  // namespace mast_ext::kernels
