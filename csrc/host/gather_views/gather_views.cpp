#include "kernels/gather_views/gather_views.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

// A tensor [N, B, ...] whose row (n, b) is one contiguous piece of memory, with its dimensions in
// any order. A tensor with gaps in its rows is copied.
struct Rows {
  Tensor t;
  std::int64_t length = 1;  // elements of a row

  Rows(const Tensor& tensor, const char* name) {
    TORCH_CHECK_VALUE(tensor.dim() >= 2, name, " must have shape [V, B, ...], got ",
                      tensor.sizes());
    for (std::int64_t d = 2; d < tensor.dim(); ++d) length *= tensor.size(d);
    // contiguous() leaves a tensor without elements its strides, whatever they are.
    t = tensor.numel() == 0 ? tensor.new_empty(tensor.sizes())
        : dense(tensor)     ? tensor
                            : tensor.contiguous();
  }

  std::int64_t batch() const { return t.size(1); }

  // A new dense tensor [count, B, ...] whose rows have the same layout.
  Tensor new_rows(std::int64_t count) const {
    std::vector<std::int64_t> sizes = t.sizes().vec(), strides = t.strides().vec();
    sizes[0] = count;
    if (count * batch() * length == 0) return t.new_empty(sizes);
    strides[0] = batch() * length;
    strides[1] = length;
    return t.new_empty_strided(sizes, strides);
  }

  kernels::Views views(std::int64_t unit) const {
    return {.data = t.const_data_ptr(),
            .view_stride = t.stride(0) * unit,
            .batch_stride = t.stride(1) * unit};
  }

 private:
  static bool dense(const Tensor& tensor) {
    std::vector<std::pair<std::int64_t, std::int64_t>> axes;  // stride, size
    for (std::int64_t d = 2; d < tensor.dim(); ++d) {
      if (tensor.size(d) != 1) axes.emplace_back(tensor.stride(d), tensor.size(d));
    }
    std::sort(axes.begin(), axes.end());
    std::int64_t expected = 1;
    for (const auto& [stride, size] : axes) {
      if (stride != expected) return false;
      expected *= size;
    }
    return true;
  }
};

// Checks an index [S, B] and returns it dense. Values are checked on the CPU only, because the
// check would have to wait for a GPU.
Tensor checked_index(const Tensor& index, const Rows& rows, std::int64_t views, const char* name) {
  TORCH_CHECK_VALUE(index.dim() == 2 && index.size(1) == rows.batch(), "index must have shape [S, ",
                    rows.batch(), "] to fit ", name, " of shape ", rows.t.sizes(), ", got ",
                    index.sizes());
  check_device(index, "index", rows.t, name);
  check_long(index, "index");
  const Tensor dense = index.contiguous();
  if (uses_cuda_kernels(dense)) return dense;
  const auto* values = static_cast<const std::int64_t*>(dense.const_data_ptr());
  for (std::int64_t i = 0; i < dense.numel(); ++i) {
    TORCH_CHECK_VALUE(values[i] >= 0 && values[i] < views, "index must be in [0, ", views,
                      "), the views there are, got ", values[i], " at [", i / rows.batch(), ", ",
                      i % rows.batch(), "]");
  }
  return dense;
}

}  // namespace

Tensor gather_views(const Tensor& views, const Tensor& index_) {
  const Rows from(views, "views");
  const std::int64_t count = views.size(0), batch = from.batch();
  const Tensor index = checked_index(index_, from, count, "views");
  const auto bytes = static_cast<std::int64_t>(views.element_size());
  Tensor out = from.new_rows(index.size(0));
  if (out.numel() == 0) return out;

  const kernels::GatherViews p{
      .views = count,
      .selected = index.size(0),
      .batch = batch,
      .row_bytes = from.length * bytes,
      .from = from.views(bytes),
      .index = static_cast<const std::int64_t*>(index.const_data_ptr()),
      .to = out.mutable_data_ptr(),
      // All bits set is NaN in every floating type.
      .no_view = static_cast<unsigned char>(views.scalar_type() == at::kBool ? 1 : 0xff),
  };
  run_on(
      views,
      [&] {
        parallel_rows(p.selected * batch, p.row_bytes / 4,
                      [&](auto begin, auto end) { kernels::gather_views_cpu(p, begin, end); });
      },
      [&](auto stream) { return kernels::gather_views_cuda(p, stream); });
  return out;
}

Tensor gather_views_backward(const Tensor& grad_, const Tensor& index_, std::int64_t views) {
  const Rows grad(grad_, "grad");
  const std::int64_t batch = grad.batch();
  const DType dtype = dtype_of(grad_, "grad");
  const Tensor index = checked_index(index_, grad, views, "grad");
  check_shape(index, "index", {grad_.size(0), batch});
  Tensor out = grad.new_rows(views);
  if (out.numel() == 0) return out;

  const kernels::GatherViewsBackward p{
      .dtype = dtype,
      .views = views,
      .selected = index.size(0),
      .batch = batch,
      .row = grad.length,
      .grad = grad.views(1),
      .index = static_cast<const std::int64_t*>(index.const_data_ptr()),
      .grad_views = out.mutable_data_ptr(),
  };
  run_on(
      grad.t,
      [&] {
        parallel_rows(views * batch, grad.length, [&](auto begin, auto end) {
          kernels::gather_views_backward_cpu(p, begin, end);
        });
      },
      [&](auto stream) { return kernels::gather_views_backward_cuda(p, stream); });
  return out;
}

}  // namespace mast_ext
