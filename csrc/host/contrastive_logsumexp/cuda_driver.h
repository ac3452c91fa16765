// contrastive_logsumexp on CUDA: kernels compute everything from tiles of products. Only the
// backward of embeddings wider than most_fused_dims() writes weights to memory, for a chunk of rows
// at a time, and multiplies them by the vendor library.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "host/common/chunk_limit.h"
#include "host/contrastive_logsumexp/inputs.h"

namespace mast_ext {

class ContrastiveCudaDriver {
 public:
  explicit ContrastiveCudaDriver(const ContrastiveInputs& inputs) : in(inputs) {}

  // `finish(f)` takes the place of merging the splits' sums.
  template <typename Stream, typename Finish = std::nullptr_t>
  int forward(const Tensor& inv_norm_x, const Tensor& inv_norm_y, const Tensor& lse,
              const Tensor& positive, Stream stream, const Finish& finish = {}) const {
    if (lse.numel() == 0) return 0;
    const kernels::Contrastive p = params(in.x, in.y, inv_norm_x, inv_norm_y, in.offset);
    MaskedCopies copies(in, p, in.subspaces());
    const std::int64_t results = copies.group * (lse.numel() / in.subspaces());
    const ForwardGrid grid(in, copies.group);
    const Tensor partial = in.new_empty({grid.side > 0 ? 1 : 2, grid.splits, results});
    int error = 0;
    for (std::int64_t k = 0; k < in.subspaces() && error == 0; k += copies.group) {
      kernels::Contrastive part = subspaces_of(p, k, copies.group);
      error = copies.fill(part, stream);
      if (error != 0) break;
      const std::int64_t at = k * (lse.numel() / in.subspaces());
      const kernels::ContrastiveForward f{
          .p = part,
          .side = grid.side,
          .splits = grid.splits,
          .partial_max = mutable_floats(partial.select(0, -1)),
          .partial_sum = mutable_floats(partial.select(0, 0)),
          .lse = mutable_floats(lse) + at,
          .positive = in.options.has_positive ? mutable_floats(positive) + at : nullptr};
      error = kernels::contrastive_forward_cuda(f, stream);
      if (error != 0) break;
      if constexpr (std::is_same_v<Finish, std::nullptr_t>) {
        error = kernels::contrastive_merge_cuda(f, stream);
      } else {
        error = finish(f);
      }
    }
    return error;
  }

  template <typename Stream>
  int backward(const ContrastiveAnchors& rows, const ContrastiveAnchors& columns,
               const Tensor& inv_norm_x, const Tensor& inv_norm_y, ContrastiveGradients& grads,
               Stream stream) const {
    const bool both = columns.any();
    Sums x, y;
    int error = 0;
    if (grads.needs_x()) {
      error = row_gradient({.p = params(in.x, in.y, inv_norm_x, inv_norm_y, in.offset),
                            .row = rows.pointers(),
                            .column = columns.pointers()},
                           in.x, in.y, grads.wants_x ? &grads.x : nullptr, grads, x, stream);
    }
    if (error == 0 && !in.self && grads.needs_y(both)) {
      error = row_gradient({.p = params(in.y, in.x, inv_norm_y, inv_norm_x, -in.offset),
                            .row = {},
                            .column = rows.pointers()},
                           in.y, in.x, grads.wants_y ? &grads.y : nullptr, grads, y, stream);
      if (grads.wants_masks) x.masks = x.masks.sum(0, true).add(y.masks.sum(0, true));
    }
    if (error == 0) grads.finish(in, x.masks, x.dots, both);
    return error;
  }

 private:
  struct Sums {
    Tensor masks, dots;  // [slices, K, D], [slices]
  };

  kernels::Contrastive params(const Tensor& x, const Tensor& y, const Tensor& inv_norm_x,
                              const Tensor& inv_norm_y, std::int64_t partner) const {
    const auto floats = [](const Tensor& t) {
      return t.defined() ? static_cast<const float*>(t.const_data_ptr()) : nullptr;
    };
    return {.x = in.rows_of(x),
            .y = in.rows_of(y),
            .masks = floats(in.masks),
            .subspaces = in.subspaces(),
            .temperature = in.temperature,
            .temperature_tensor = floats(in.temperature_tensor),
            .partner = partner,
            .options = in.options,
            .inv_norm_x = floats(inv_norm_x),
            .inv_norm_y = floats(inv_norm_y)};
  }

  static const float* factor_of(const ContrastiveGradients& grads) {
    return static_cast<const float*>(const_element(grads.factor));
  }

  static float* mutable_floats(const Tensor& t) {
    return static_cast<float*>(t.mutable_data_ptr());
  }

  // The same for subspaces [k, k + count), or as many as there are.
  static kernels::Contrastive subspaces_of(kernels::Contrastive p, std::int64_t k,
                                           std::int64_t count) {
    p.subspaces = std::min(count, p.subspaces - k);
    if (p.masks != nullptr) p.masks += k * p.x.dim;
    p.inv_norm_x += k * p.x.views * p.x.rows;
    p.inv_norm_y += k * p.y.views * p.y.rows;
    return p;
  }
  static kernels::ContrastiveAnchor subspaces_of(const kernels::ContrastiveAnchor& anchor,
                                                 std::int64_t at) {
    const auto from = [&](const void* values) -> const void* {
      return values == nullptr ? nullptr : static_cast<const float*>(values) + at;
    };
    return {from(anchor.lse), from(anchor.grad_lse), from(anchor.grad_positive)};
  }
  static kernels::ContrastiveBackward subspaces_of(const kernels::ContrastiveBackward& b,
                                                   std::int64_t k, std::int64_t count) {
    const std::int64_t blocks = k * b.p.x.views * b.p.y.views;
    return {.p = subspaces_of(b.p, k, count),
            .row = subspaces_of(b.row, blocks * b.p.x.rows),
            .column = subspaces_of(b.column, blocks * b.p.y.rows)};
  }

  // How the forward is divided among thread blocks, of which a large GPU wants 512.
  struct ForwardGrid {
    std::int64_t side = 0, splits = 1;

    ForwardGrid(const ContrastiveInputs& in, std::int64_t subspaces) {
      constexpr std::int64_t kTile = kernels::kSquareRows;
      const std::int64_t wanted = chunk_limit(512);
      const std::int64_t row_tiles = (in.rows() + kTile - 1) / kTile;
      const bool fixed_shift =
          !in.temperature_tensor.defined() && in.temperature >= kernels::kLeastFixedTemperature;
      if (in.self && fixed_shift) {
        // Squares of more than kSide tiles only where the work space would be too large.
        constexpr std::int64_t kSide = 8, kMostSums = 1 << 24;
        const std::int64_t views = in.x_views();
        const auto splits_of = [&](std::int64_t s) { return (row_tiles + s - 1) / s; };
        const auto squares_of = [&](std::int64_t s) {
          return subspaces * views * splits_of(s) * (views * splits_of(s) + 1) / 2;
        };
        const auto too_large = [&](std::int64_t s) {
          return splits_of(s) * subspaces * views * views * in.rows() > kMostSums;
        };
        side = 1;
        while (squares_of(2 * side) >= wanted && (side < kSide || too_large(side))) side *= 2;
        splits = splits_of(side);
        return;
      }
      // If there are few rows, columns are split.
      const std::int64_t tiles = row_tiles * subspaces * in.x_views() * in.y_views();
      const std::int64_t most = std::max<std::int64_t>(1, in.columns() / kTile);
      splits = std::clamp<std::int64_t>(wanted / tiles, 1, most);
    }
  };

  // Copies of bfloat16 embeddings with the masks applied, for `group` subspaces at a time: as many
  // as wanted, but not more than kMostElements, unless a single one has. Without masks, or of wider
  // numbers, there are no copies.
  struct MaskedCopies {
    static constexpr std::int64_t kMostElements = 1 << 24;
    std::int64_t group;
    Tensor x, y;

    MaskedCopies(const ContrastiveInputs& in, const kernels::Contrastive& p, std::int64_t wanted)
        : group(wanted), self_(p.x.data == p.y.data && in.self) {
      if (!in.masks.defined() || in.x.scalar_type() != at::kBFloat16) return;
      constexpr std::int64_t kPacket = kernels::kMaskedPacket;
      const std::int64_t dim = (in.dim() + kPacket - 1) / kPacket * kPacket;
      const std::int64_t rows = p.x.views * p.x.rows + (self_ ? 0 : p.y.views * p.y.rows);
      group = std::clamp<std::int64_t>(kMostElements / std::max<std::int64_t>(1, rows * dim), 1,
                                       std::max<std::int64_t>(1, wanted));
      x = in.x.new_empty({group, p.x.views, p.x.rows, dim});
      y = self_ ? x : in.x.new_empty({group, p.y.views, p.y.rows, dim});
    }

    // Replaces the embeddings and masks of p, which has up to `group` subspaces, by copies.
    template <typename Stream>
    int fill(kernels::Contrastive& p, Stream stream) const {
      if (!x.defined()) return 0;
      int error = fill(p.x, x, p, stream);
      if (error == 0 && !self_) error = fill(p.y, y, p, stream);
      if (self_) p.y = p.x;
      p.masks = nullptr;
      return error;
    }

   private:
    template <typename Stream>
    static int fill(kernels::EmbeddingRows& z, const Tensor& to, const kernels::Contrastive& p,
                    Stream stream) {
      const int error = kernels::mask_rows_cuda(
          {.z = z, .masks = p.masks, .subspaces = p.subspaces, .to = to.mutable_data_ptr()},
          stream);
      z.data = to.const_data_ptr();
      z.subspace_stride = to.stride(0);
      z.view_stride = to.stride(1);
      z.row_stride = to.stride(2);
      z.dim = to.size(3);
      return error;
    }

    bool self_;
  };

  // The gradient of b's rows `z`, with the columns `other`.
  template <typename Stream>
  int row_gradient(const kernels::ContrastiveBackward& b, const Tensor& z, const Tensor& other,
                   Tensor* grad, const ContrastiveGradients& grads, Sums& sums,
                   Stream stream) const {
    if (in.dim() > kernels::most_fused_dims(dtype_of(z, "z"))) {
      return wide_row_gradient(b, z, other, grad, grads, sums, stream);
    }
    kernels::ContrastiveFusedPlan plan = kernels::contrastive_fused_plan_cuda(
        b.p, chunk_limit(kernels::kManyRows), chunk_limit(kernels::kFusedBlocks));
    const MaskedCopies copies(in, b.p, plan.subspaces);
    sums.dots = in.new_empty({plan.slices});
    if (in.subspaces() == 0) sums.dots.zero_();  // no kernel writes them
    if (grads.wants_masks) sums.masks = in.new_empty({plan.slices, in.subspaces(), in.dim()});
    const Tensor partial = in.new_empty({plan.partial});
    Tensor sum;
    if (grad != nullptr && copies.group < in.subspaces() &&
        z.scalar_type() != accumulation_type(z)) {
      sum = in.new_empty(z.sizes());
    }
    int error = 0;
    for (std::int64_t k = 0; k < in.subspaces() && error == 0; k += copies.group) {
      kernels::ContrastiveFusedBackward f{
          .b = subspaces_of(b, k, copies.group),
          .plan = plan,
          .first_subspace = k,
          .all_subspaces = in.subspaces(),
          .z = b.p.x,
          .masks = nullptr,
          .partial = mutable_floats(partial),
          .grad_x = grad != nullptr ? grad->mutable_data_ptr() : nullptr,
          .sum = sum.defined() ? mutable_floats(sum) : nullptr,
          .grad_masks = grads.wants_masks ? mutable_floats(sums.masks) : nullptr,
          .dots = mutable_floats(sums.dots),
          .factor = factor_of(grads)};
      f.masks = f.b.p.masks;
      error = copies.fill(f.b.p, stream);
      if (error == 0) error = kernels::contrastive_fused_backward_cuda(f, stream);
    }
    return error;
  }

  // How many rows, views and subspaces the wide backward takes at a time: enough to fill a large
  // GPU, and weights of bounded size. Several views are taken whole, and so are several subspaces.
  struct WideChunk {
    std::int64_t rows, views, subspaces;

    WideChunk(std::int64_t all_rows, std::int64_t all_views, std::int64_t all_subspaces,
              std::int64_t columns) {
      constexpr std::int64_t kMostElements = 1 << 24, kWantedElements = 1 << 22;
      for (std::int64_t* count : {&all_rows, &all_views, &all_subspaces, &columns}) {
        *count = std::max<std::int64_t>(*count, 1);
      }
      rows = std::clamp<std::int64_t>(kMostElements / columns,
                                      std::min<std::int64_t>(128, all_rows), all_rows);
      const std::int64_t view = all_rows * columns;
      views = rows < all_rows ? 1 : std::clamp<std::int64_t>(kWantedElements / view, 1, all_views);
      subspaces = views < all_views ? 1
                                    : std::clamp<std::int64_t>(kWantedElements / (view * all_views),
                                                               1, all_subspaces);
    }
  };

  template <typename Stream>
  int wide_row_gradient(const kernels::ContrastiveBackward& b, const Tensor& z, const Tensor& other,
                        Tensor* grad, const ContrastiveGradients& grads, Sums& sums,
                        Stream stream) const {
    constexpr std::int64_t kSlices = 256;
    const std::int64_t views = z.size(0), rows = z.size(1), columns = other.size(0) * other.size(1);
    const at::ScalarType type =
        z.scalar_type() == at::kBFloat16 ? at::kBFloat16 : accumulation_type(z);
    const Tensor operand = other.to(type).contiguous().view({columns, in.dim()});
    WideChunk chunk(rows, views, in.subspaces(), columns);
    const MaskedCopies copies(in, b.p, chunk.subspaces);
    chunk.subspaces = copies.group;
    const Tensor buffer =
        z.new_empty({chunk.subspaces * chunk.views * chunk.rows, columns}, z.options().dtype(type));
    Tensor total = grad != nullptr ? *grad : Tensor();
    if (grad != nullptr && in.subspaces() > 1 && z.scalar_type() != accumulation_type(z)) {
      total = in.new_empty(z.sizes());
    }
    sums.dots = in.new_empty({kSlices}).zero_();
    sums.masks = in.new_empty({grads.wants_masks ? in.subspaces() : 0, kSlices, in.dim()}).zero_();
    int error = 0;
    for (std::int64_t k = 0; k < in.subspaces() && error == 0; k += chunk.subspaces) {
      kernels::ContrastiveBackward part = subspaces_of(b, k, chunk.subspaces);
      const std::int64_t subspaces = part.p.subspaces;
      error = copies.fill(part.p, stream);
      for (std::int64_t first = 0; first < views * rows && error == 0;) {
        const std::int64_t view = first / rows, row = first % rows;
        const std::int64_t count = std::min(chunk.rows, rows - row);
        const std::int64_t some_views = std::min(chunk.views, views - view);
        const std::int64_t in_subspace = some_views * count;
        const Tensor weights = buffer.narrow(0, 0, subspaces * in_subspace);
        error = kernels::contrastive_weights_cuda({.b = part,
                                                   .view = view,
                                                   .views = some_views,
                                                   .first = row,
                                                   .count = count,
                                                   .dtype = dtype_of(weights, "weights"),
                                                   .weights = weights.mutable_data_ptr()},
                                                  stream);
        if (error != 0) return error;
        const Tensor products = weights.mm(operand);
        for (std::int64_t of = 0; of < subspaces && error == 0; ++of) {
          error = kernels::contrastive_rows_cuda(
              {.z = ContrastiveInputs::embedding_rows(z),
               .mask = in.mask(k + of),
               .inv_norm = b.p.inv_norm_x + (k + of) * views * rows,
               .first = first,
               .count = in_subspace,
               .products_dtype = dtype_of(products, "products"),
               .products = const_element(products, of * in_subspace * in.dim()),
               .add = k + of > 0,
               .grad_dtype = total.defined() ? dtype_of(total, "total") : dtype_of(z, "z"),
               .grad = total.defined() ? total.mutable_data_ptr() : nullptr,
               .slices = kSlices,
               .grad_mask =
                   grads.wants_masks ? sums.masks.select(0, k + of).mutable_data_ptr() : nullptr,
               .dots = sums.dots.mutable_data_ptr(),
               .factor = factor_of(grads)},
              stream);
        }
        first += in_subspace;
      }
    }
    sums.masks = sums.masks.transpose(0, 1);
    if (total.defined() && !total.is_same(*grad)) grad->copy_(total);
    return error;
  }

  const ContrastiveInputs& in;
};

}  // namespace mast_ext
