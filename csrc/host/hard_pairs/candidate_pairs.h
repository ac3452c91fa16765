// The argument that the selection ops share: the pairs of views to choose from.
#pragma once

#include <ATen/core/Tensor.h>

#include "host/common/checks.h"
#include "host/common/tensors.h"
#include "kernels/hard_pairs/hardest_pair.h"

namespace mast_ext {

// Marks [V, V], of which the part above the diagonal counts. Whether any pair is marked is checked
// on the CPU only, because the check would have to wait for a GPU.
struct CandidateMarks {
  Tensor marks;  // undefined: every pair
  std::int64_t views;

  CandidateMarks(const OptionalTensor& candidates, const Tensor& x, const char* x_name)
      : views(x.size(0)) {
    constexpr std::int64_t kMostViews = 1 << 12;  // pairs are counted in 32 bits
    TORCH_CHECK_VALUE(views >= 2 && views <= kMostViews, x_name, " must have 2 to ", kMostViews,
                      " views to choose a pair from, got shape ", x.sizes());
    if (!candidates) return;
    check_shape(*candidates, "candidates", {views, views});
    check_device(*candidates, "candidates", x, x_name);
    TORCH_CHECK_TYPE(candidates->scalar_type() == at::kBool, "candidates must be Bool, got ",
                     candidates->scalar_type());
    marks = candidates->contiguous();
    TORCH_CHECK_VALUE(!marks.is_cpu() || any(),
                      "candidates must hold a pair of views i < j, got none above the diagonal");
  }

  kernels::CandidatePairs pairs() const {
    return {.views = static_cast<std::int32_t>(views),
            .marks = static_cast<const bool*>(const_element(marks))};
  }

 private:
  bool any() const {
    const kernels::CandidatePairs of = pairs();
    for (std::int32_t i = 0; i < of.views; ++i) {
      for (std::int32_t j = i + 1; j < of.views; ++j) {
        if (of.has(i, j)) return true;
      }
    }
    return false;
  }
};

}  // namespace mast_ext
