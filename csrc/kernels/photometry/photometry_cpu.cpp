#include "kernels/photometry/photometry.h"

#include "kernels/common/isa.h"
#include "kernels/common/levels_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

// The planes of one image's channels, one after the other.
template <typename L>
struct Planes {
  L* data;
  std::int64_t channels, height, width;

  std::int64_t pixels() const { return height * width; }
  L* channel(std::int64_t c) const { return data + c * pixels(); }
};

// Truncates toward zero; the value must not be negative.
template <typename T>
T truncated(T value) {
  return static_cast<T>(static_cast<std::int32_t>(value));
}

// Clamps to [0, kTop]; NaN becomes 0.
template <typename L>
number_t<L> clamped(number_t<L> value) {
  return std::min(std::max(number_t<L>{0}, value), Levels<L>::kTop);
}

// Luma (ITU-R 601-2), a level.
template <typename T>
T gray_of(T red, T green, T blue) {
  return truncated(red * T(0.2989) + green * T(0.587) + blue * T(0.114));
}

// body(red, green, blue) of pixels [begin, end), whose results become levels by truncation.
template <typename L, typename Body>
void each_color(const Planes<L>& planes, std::int64_t begin, std::int64_t end, const Body& body) {
  using T = number_t<L>;
  L* __restrict const red = planes.channel(0);
  L* __restrict const green = planes.channel(1);
  L* __restrict const blue = planes.channel(2);
  for (std::int64_t i = begin; i < end; ++i) {
    T r = red[i], g = green[i], b = blue[i];
    body(r, g, b);
    red[i] = static_cast<L>(r);
    green[i] = static_cast<L>(g);
    blue[i] = static_cast<L>(b);
  }
}

// The mean of `pixels` levels: their sum is exact. sum_of(begin, end) sums a part in 32 bits, which
// vectorize better.
template <typename L, typename SumOf>
number_t<L> mean_of(std::int64_t pixels, const SumOf& sum_of) {
  constexpr std::int64_t kPart = 1 << 14;
  std::int64_t sum = 0;
  for (std::int64_t begin = 0; begin < pixels; begin += kPart) {
    sum += sum_of(begin, std::min(begin + kPart, pixels));
  }
  return static_cast<number_t<L>>(static_cast<double>(sum) / static_cast<double>(pixels));
}

// Contrast about a mean that is multiplied by one minus the factor already.
template <typename L>
number_t<L> contrasted(number_t<L> value, number_t<L> contrast, number_t<L> rest) {
  return truncated(clamped<L>(value * contrast + rest));
}

// Turns the hue of HSV by a fraction of a turn; value and chroma are kept.
template <typename L>
struct HueShift {
  using T = number_t<L>;
  T shift;  // in sixths of a turn

  void operator()(T& r, T& g, T& b) const {
    const T top = std::max(std::max(r, g), b), chroma = top - std::min(std::min(r, g), b);
    const T per_chroma = 1 / std::max(chroma, T{1});  // levels are integers: only a zero is raised
    // From the sector in which the largest channel lies.
    const T of_red = (g - b) * per_chroma, of_green = (b - r) * per_chroma + 2,
            of_blue = (r - g) * per_chroma + 4;
    const T hue = (top == r ? of_red : top == g ? of_green : of_blue) + shift;
    // torchvision goes to [0, 1] and back with a factor just below 256 (of 16 bits, 65536).
    constexpr T kToLevels = (Levels<L>::kTop + 1 - 1e-3) / double{Levels<L>::kTop};
    const auto channel = [=](T offset) {
      const T position = hue + offset;
      const T sextant = position - std::floor(position * T(1.0 / 6)) * 6;  // modulo 6
      const T missing = std::min(std::max(T{0}, std::min(sextant, 4 - sextant)), T{1});
      return (top - missing * chroma) * kToLevels;
    };
    r = channel(5);
    g = channel(3);
    b = channel(1);
  }
};

// Brightness, contrast about the mean gray, saturation, hue; truncated to levels each time.
template <typename L>
void jitter_colors(const Planes<L>& planes, const float* row) {
  using T = number_t<L>;
  const T brightness = row[kBrightness], contrast = row[kContrast], saturation = row[kSaturation];
  const T no_contrast = 1 - row[kContrast], no_saturation = 1 - row[kSaturation];
  const T mean = mean_of<L>(planes.pixels(), [&](std::int64_t begin, std::int64_t end) {
    std::int32_t sum = 0;
    each_color(planes, begin, end, [&](T& r, T& g, T& b) {
      for (T* value : {&r, &g, &b}) *value = truncated(clamped<L>(*value * brightness));
      sum += static_cast<std::int32_t>(gray_of(r, g, b));
    });
    return sum;
  });
  const T rest = no_contrast * mean;
  const auto change = [=](T& r, T& g, T& b) {
    for (T* value : {&r, &g, &b}) *value = contrasted<L>(*value, contrast, rest);
    const T gray = gray_of(r, g, b) * no_saturation;
    for (T* value : {&r, &g, &b}) *value = truncated(clamped<L>(*value * saturation + gray));
  };
  if (row[kHue] == 0) {
    each_color(planes, 0, planes.pixels(), change);
    return;
  }
  each_color(planes, 0, planes.pixels(), [=, turn = HueShift<L>{6 * row[kHue]}](T& r, T& g, T& b) {
    change(r, g, b);
    turn(r, g, b);
  });
}

// Brightness, and contrast about each channel's own mean: bands of a satellite differ in their
// range.
template <typename L>
void jitter_channels(const Planes<L>& planes, const float* row) {
  using T = number_t<L>;
  const T brightness = row[kBrightness], contrast = row[kContrast];
  const T no_contrast = 1 - row[kContrast];
  const std::int64_t pixels = planes.pixels();
  for (std::int64_t c = 0; c < planes.channels; ++c) {
    L* const levels = planes.channel(c);
    const T mean = mean_of<L>(pixels, [&](std::int64_t begin, std::int64_t end) {
      std::int32_t sum = 0;
      for (std::int64_t i = begin; i < end; ++i) {
        levels[i] = static_cast<L>(clamped<L>(levels[i] * brightness));
        sum += levels[i];
      }
      return sum;
    });
    const T rest = no_contrast * mean;
    for (std::int64_t i = 0; i < pixels; ++i) {
      levels[i] = static_cast<L>(contrasted<L>(levels[i], contrast, rest));
    }
  }
}

template <typename L>
void to_gray(const Planes<L>& planes) {
  using T = number_t<L>;
  each_color(planes, 0, planes.pixels(), [](T& r, T& g, T& b) { r = g = b = gray_of(r, g, b); });
}

// One half of a Gaussian of sigma pixels, weights of the middle and of `radius` pixels beside it.
template <typename L>
number_t<L>* gaussian(float sigma, std::int64_t radius) {
  constexpr double kRaw = 1LL << (Levels<L>::kRawBits + 4), kOne = 1 << Levels<L>::kWeightBits;
  auto* half = scratch<number_t<L>, struct Half>(radius + 1);
  const auto raw = [=](std::int64_t k) {  // an integer, so that their sum has one value
    const double distance = static_cast<double>(k) / sigma;
    return std::rint(std::exp(-0.5 * (distance * distance)) * kRaw);
  };
  double total = raw(0);
  for (std::int64_t k = 1; k <= radius; ++k) total += 2 * raw(k);
  double others = 0;
  for (std::int64_t k = 1; k <= radius; ++k) {
    const double weight = std::rint(raw(k) / total * kOne) / kOne;
    half[k] = static_cast<number_t<L>>(weight);
    others += 2 * weight;
  }
  half[0] = static_cast<number_t<L>>(1 - others);  // a constant image stays as it is
  return half;
}

// A separable Gaussian of sigma pixels with window 2 ceil(3 sigma) + 1. The image is reflected
// without repeating its border (reflect-101), however large the window.
template <typename L>
void blur(const Planes<L>& planes, float sigma) {
  using T = number_t<L>;
  const auto radius = static_cast<std::int64_t>(std::ceil(3.0 * sigma)), count = 2 * radius + 1;
  const T* half = gaussian<L>(sigma, radius);
  T* const weights = scratch<T, struct Weights>(count);
  for (std::int64_t k = 0; k < count; ++k) weights[k] = half[k < radius ? radius - k : k - radius];
  const auto shown = [](std::int64_t place, std::int64_t size) {
    const std::int64_t period = std::max<std::int64_t>(2 * (size - 1), 1);
    const std::int64_t at = (place % period + period) % period;
    return std::min(at, period - at) % size;
  };
  const std::int64_t height = planes.height, width = planes.width, stride = whole_lines(width);
  // One row, then all rows, each with a reflected margin on both sides.
  T* const row = scratch<T, struct Row>(stride + 2 * radius);
  T* const rows = scratch<T, struct Rows>((height + 2 * radius) * stride);
  std::fill_n(row, stride + 2 * radius, T{0});
  for (std::int64_t c = 0; c < planes.channels; ++c) {
    L* const levels = planes.channel(c);
    for (std::int64_t y = 0; y < height; ++y) {
      const L* from = levels + y * width;
      for (std::int64_t x = 0; x < width; ++x) row[radius + x] = from[x];
      for (std::int64_t k = 1; k <= radius; ++k) {
        row[radius - k] = from[shown(-k, width)];
        row[radius + width - 1 + k] = from[shown(width - 1 + k, width)];
      }
      for (std::int64_t left = 0; left < stride; left += kLine) {
        Line<T> line = weighted_sum(weights, count, row + left, 1);
        for (vec<T>& part : line.parts) part = between_filters<L>(part);
        std::memcpy(rows + (radius + y) * stride + left, line.parts, sizeof(line.parts));
      }
    }
    for (std::int64_t k = 1; k <= radius; ++k) {
      const auto copy = [&](std::int64_t from, std::int64_t to) {
        std::copy_n(rows + (radius + from) * stride, stride, rows + (radius + to) * stride);
      };
      copy(shown(-k, height), -k);
      copy(shown(height - 1 + k, height), height - 1 + k);
    }
    for (std::int64_t y = 0; y < height; ++y) {
      for (std::int64_t left = 0; left < width; left += kLine) {
        store_levels(weighted_sum(weights, count, rows + y * stride + left, stride), width - left,
                     levels + y * width + left);
      }
    }
  }
}

template <typename L>
void solarize(const Planes<L>& planes, std::int64_t threshold) {
  constexpr int kTop = Levels<L>::kTop;
  const int least = static_cast<int>(std::min<std::int64_t>(threshold, kTop + 1));
  for (std::int64_t i = 0; i < planes.channels * planes.pixels(); ++i) {
    const int level = planes.data[i];
    planes.data[i] = static_cast<L>(level >= least ? kTop - level : level);
  }
}

template <typename L>
void copy_in(const Photometry& p, std::int64_t n, const Planes<L>& planes) {
  for (std::int64_t c = 0; c < p.channels; ++c) {
    for (std::int64_t y = 0; y < p.height; ++y) {
      const L* from = static_cast<const L*>(p.levels) + n * p.image_stride + c * p.channel_stride +
                      y * p.row_stride;
      L* to = planes.channel(c) + y * p.width;
      for (std::int64_t x = 0; x < p.width; ++x) to[x] = from[x * p.column_stride];
    }
  }
}

template <typename L>
void copy_out(const Photometry& p, std::int64_t n, const Planes<L>& planes) {
  const std::int64_t pixels = planes.pixels(), begin = n * p.out_stride;
  if (!p.normalize) {
    std::copy_n(planes.data, p.channels * pixels, static_cast<L*>(p.out) + begin);
    return;
  }
  for (std::int64_t c = 0; c < p.channels; ++c) {
    const L* from = planes.channel(c);
    float* to = static_cast<float*>(p.out) + begin + c * pixels;
    for (std::int64_t i = 0; i < pixels; ++i) {
      constexpr float kTop = Levels<L>::kTop;
      to[i] = (static_cast<float>(from[i]) / kTop - p.mean[c]) / p.std[c];
    }
  }
}

template <typename L>
void render(const Photometry& p, std::int64_t n) {
  const float* row = p.rows + n * kColumns;
  const auto applied = [&](std::int64_t column) { return row[column] > 0.5f; };
  const Planes<L> planes{scratch<L, struct Pixels>(p.channels * p.height * p.width), p.channels,
                         p.height, p.width};
  copy_in(p, n, planes);
  if (applied(kJitter)) p.channels == 3 ? jitter_colors(planes, row) : jitter_channels(planes, row);
  if (applied(kGrayscale)) to_gray(planes);
  if (applied(kBlur) && row[kSigma] > 0) blur(planes, row[kSigma]);
  if (applied(kSolarize)) solarize(planes, p.solarize_threshold);
  copy_out(p, n, planes);
}

}  // namespace

void photometry_cpu(const Photometry& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t n = begin; n < end; ++n) {
    p.wide ? render<std::uint16_t>(p, n) : render<std::uint8_t>(p, n);
  }
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(photometry_cpu, (const Photometry& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
