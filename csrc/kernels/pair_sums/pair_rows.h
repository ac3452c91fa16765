// Which pairs of views the subspace operators visit, and in what order.
//
// A *row* is an unordered pair of views (left, right) from one list: the views of x, followed by
// those of y if y is given. Without y (self comparison) the rows are all i <= j, and those with
// i = j are the squared norms. With y they are all (x_i, y_j), followed, if the formula needs
// norms, by a row (v, v) for every view.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels {

struct PairRows {
  std::int32_t x_views;  // Vx
  std::int32_t y_views;  // Vy; equal to Vx in self comparison
  bool self;             // y is x
  bool norms;            // rows (v, v) follow the pairs when y is given

  MAST_EXT_HD std::int32_t views() const { return self ? x_views : x_views + y_views; }

  MAST_EXT_HD std::int32_t count() const {
    if (self) return x_views * (x_views + 1) / 2;
    return x_views * y_views + (norms ? x_views + y_views : 0);
  }

  // The row of x's view i and y's view j; in self comparison, in either order.
  MAST_EXT_HD std::int32_t pair(std::int32_t i, std::int32_t j) const {
    if (!self) return i * y_views + j;
    const std::int32_t low = i < j ? i : j, high = i < j ? j : i;
    return low * x_views - low * (low - 1) / 2 + (high - low);
  }

  // The row of a view with itself; `view` counts through x, then y.
  MAST_EXT_HD std::int32_t norm(std::int32_t view) const {
    return self ? pair(view, view) : x_views * y_views + view;
  }

  MAST_EXT_HD void views_of(std::int32_t row, std::int32_t& left, std::int32_t& right) const {
    if (self) {
      left = 0;
      while (row >= x_views - left) row -= x_views - left++;
      right = left + row;
    } else if (row < x_views * y_views) {
      left = row / y_views;
      right = x_views + row % y_views;
    } else {
      left = right = row - x_views * y_views;
    }
  }
};

}  // namespace mast_ext::kernels
