#include "kernels/resized_crops/resized_crops.h"

#include <memory>

#include "kernels/common/isa.h"
#include "kernels/common/levels_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

constexpr int kChannels = 4;                 // that are filtered at a time
constexpr std::int64_t kMostKept = 1 << 21;  // numbers

// A filter along an axis: output o is the sum of weights[o * most + k] * input[first[o] + k] over
// all k < count[o].
template <typename T>
struct Taps {
  std::int64_t outputs, most;
  std::int64_t* first;
  std::int64_t* count;
  T* weights;
};

// The triangle filter of Pillow and torch, from `extent` pixels to `size`: its half width is one
// input pixel when enlarging and one output pixel when shrinking, and it ends at the crop's border.
template <typename L, typename Tag>
Taps<number_t<L>> resize_taps(std::int64_t extent, std::int64_t size, bool flipped) {
  using T = number_t<L>;
  const T scale = static_cast<T>(extent) / static_cast<T>(size), reach = std::max(scale, T{1});
  const auto most = static_cast<std::int64_t>(std::ceil(2 * reach)) + 1;
  auto* ends = scratch<std::int64_t, Tag>(2 * size);
  const Taps<T> taps{size, most, ends, ends + size, scratch<T, Tag>(size * most)};
  for (std::int64_t o = 0; o < size; ++o) {
    const T center = (static_cast<T>(flipped ? size - 1 - o : o) + T(0.5)) * scale;
    const auto first = std::max<std::int64_t>(std::ceil(center - reach - T(0.5)), 0);
    const auto count = std::min(most, extent - first);
    T* weights = taps.weights + o * most;
    T sum = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      const T distance = std::abs((static_cast<T>(first + k) + T(0.5)) - center);
      const T weight = std::max(distance / -reach + 1, T{0});
      // Integers, whose sum is exact unless more than 256 pixels become one.
      weights[k] = std::rint(weight * (1 << Levels<L>::kRawBits));
      sum += weights[k];
    }
    constexpr T kOne = 1 << Levels<L>::kWeightBits;
    const T factor = kOne / sum;
    for (std::int64_t k = 0; k < count; ++k) weights[k] = std::rint(weights[k] * factor) / kOne;
    taps.first[o] = first;
    taps.count[o] = count;
  }
  return taps;
}

// Copies a row of pixels, whose channels then lie beside each other.
template <typename L>
void load_row(const ResizedCrops& p, const L* from, std::int64_t width, number_t<L>* to) {
  if (p.channel_stride == 1 && p.column_stride == p.channels) {
    for (std::int64_t i = 0; i < width * p.channels; ++i) to[i] = from[i];
    return;
  }
  for (std::int64_t c = 0; c < p.channels; ++c) {
    for (std::int64_t x = 0; x < width; ++x) {
      to[x * p.channels + c] = from[x * p.column_stride + c * p.channel_stride];
    }
  }
}

// Filters a row of pixels, four channels at a time. The last four may reach past the last channel:
// then up to three numbers too many are read, and as many written, which the next pixel overwrites.
template <typename L>
void filter_row(const number_t<L>* from, std::int64_t channels, const Taps<number_t<L>>& across,
                number_t<L>* to) {
  using T = number_t<L>;
  typedef T Pixel __attribute__((vector_size(kChannels * sizeof(T))));
  for (std::int64_t o = 0; o < across.outputs; ++o) {
    const T* weights = across.weights + o * across.most;
    for (std::int64_t c = 0; c < channels; c += kChannels) {
      const T* input = from + across.first[o] * channels + c;
      Pixel sum{};
#pragma GCC unroll 4
      for (std::int64_t k = 0; k < across.count[o]; ++k, input += channels) {
        Pixel pixel;
        std::memcpy(&pixel, input, sizeof(pixel));
        sum += weights[k] * pixel;
      }
      sum = between_filters<L>(sum);
      std::memcpy(to + o * channels + c, &sum, sizeof(sum));
    }
  }
}

template <typename L>
void resized_crop(const ResizedCrops& p, std::int64_t n) {
  using T = number_t<L>;
  const std::int64_t *box = p.boxes + 4 * n, height = box[2], width = box[3];
  const auto across = resize_taps<L, struct Across>(width, p.size, p.flipped[n]);
  const auto down = resize_taps<L, struct Down>(height, p.size, false);
  const L* corner = static_cast<const L*>(p.images) + n * p.image_stride + box[0] * p.row_stride +
                    box[1] * p.column_stride;
  const std::int64_t length = p.size * p.channels, stride = whole_lines(length + kChannels);
  T* const row = scratch<T, struct Row>(width * p.channels + kChannels);
  // Kept for the next image, but for those of a very tall one.
  std::unique_ptr<T[]> tall;
  if (height * stride > kMostKept) tall = std::make_unique_for_overwrite<T[]>(height * stride);
  T* const rows = tall ? tall.get() : scratch<T, struct Rows>(height * stride);
  for (std::int64_t y = 0; y < height; ++y) {
    load_row(p, corner + y * p.row_stride, width, row);
    filter_row<L>(row, p.channels, across, rows + y * stride);
  }
  L* to = static_cast<L*>(p.to) + n * p.size * length;
  for (std::int64_t o = 0; o < p.size; ++o, to += length) {
    for (std::int64_t left = 0; left < length; left += kLine) {
      store_levels(weighted_sum(down.weights + o * down.most, down.count[o],
                                rows + down.first[o] * stride + left, stride),
                   length - left, to + left);
    }
  }
}

}  // namespace

void resized_crops_cpu(const ResizedCrops& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t n = begin; n < end; ++n) {
    p.wide ? resized_crop<std::uint16_t>(p, n) : resized_crop<std::uint8_t>(p, n);
  }
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(resized_crops_cpu, (const ResizedCrops& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
