// Checks of the ops' arguments. Every message names the argument, what it must be, and what it is.
#pragma once

#include "host/common/tensors.h"
#include "kernels/common/dtype.h"

namespace mast_ext {

inline void check_shape(const Tensor& t, const char* name, at::IntArrayRef want) {
  TORCH_CHECK_VALUE(t.sizes() == want, name, " must have shape ", want, ", got ", t.sizes());
}

inline void check_device(const Tensor& t, const char* name, const Tensor& ref,
                         const char* ref_name) {
  TORCH_CHECK_VALUE(t.device() == ref.device(), name, " must be on ", ref.device(), " like ",
                    ref_name, ", got ", t.device());
}

inline void check_like(const Tensor& t, const char* name, const Tensor& ref, const char* ref_name) {
  check_device(t, name, ref, ref_name);
  TORCH_CHECK_TYPE(t.scalar_type() == ref.scalar_type(), name, " must be ", ref.scalar_type(),
                   " like ", ref_name, ", got ", t.scalar_type());
}

// The kernel dtype of t, or a TypeError.
inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      TORCH_CHECK_TYPE(t.is_cpu(), name, " may be float64 on the CPU only, got a tensor on ",
                       t.device());
      return DType::kFloat64;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, float16, bfloat16 or float64, got ",
                       t.scalar_type());
  }
}

// The dtype of sums over t's elements, and of the results of ops.
inline at::ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Checks that t has the dtype of sums over x's elements. `what` names x's elements in the plural.
inline void check_accumulation(const Tensor& t, const char* name, const Tensor& x,
                               const char* what) {
  TORCH_CHECK_TYPE(t.scalar_type() == accumulation_type(x), name, " must be ", accumulation_type(x),
                   " beside ", x.scalar_type(), " ", what, ", got ", t.scalar_type());
}

inline void check_long(const Tensor& t, const char* name) {
  TORCH_CHECK_TYPE(t.scalar_type() == at::kLong, name, " must be Long, got ", t.scalar_type());
}

// Checks that t has pixels on the CPU: levels of 8 or 16 bits.
inline void check_levels(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.is_cpu(), name, " must be on the CPU, got ", t.device());
  TORCH_CHECK_TYPE(t.scalar_type() == at::kByte || t.scalar_type() == at::kUInt16, name,
                   " must be uint8 or uint16, got ", t.scalar_type());
}

// Checks masks [K, D] for embeddings `x` of width D: float32, or float64 for float64 embeddings.
// Values are checked on the CPU only, because the check would have to wait for a GPU.
inline void check_masks(const Tensor& masks, const Tensor& x, const char* x_name = "x") {
  const auto dim = x.size(-1);
  TORCH_CHECK_VALUE(masks.dim() == 2 && masks.size(1) == dim, "masks must have shape [K, ", dim,
                    "] to fit ", x_name, " of shape ", x.sizes(), ", got ", masks.sizes());
  check_device(masks, "masks", x, x_name);
  check_accumulation(masks, "masks", x, "embeddings");
  if (!masks.is_cpu()) return;
  const Tensor dense = masks.contiguous();
  visit_dtype(dtype_of(dense, "masks"), [&]<typename T>() {
    const auto* values = static_cast<const T*>(dense.const_data_ptr());
    float least = 0;
    for (std::int64_t i = 0; i < dense.numel(); ++i) {
      least = values[i] < least ? static_cast<float>(values[i]) : least;
    }
    TORCH_CHECK_VALUE(least == 0, "masks must be non-negative, got a minimum of ", least);
  });
}

// Returns the center [C] of logits [..., C], dense; undefined if not given.
inline Tensor checked_center(const OptionalTensor& center, const Tensor& logits,
                             const char* logits_name) {
  if (!center) return {};
  check_shape(*center, "center", {logits.size(-1)});
  check_device(*center, "center", logits, logits_name);
  check_accumulation(*center, "center", logits, "logits");
  return center->contiguous();
}

// Checks that CUDA kernels which index in 32 bits can count the rows of a view and the elements of
// a row of `t` [V, N, D].
inline void check_countable(const Tensor& t, const char* name, std::int64_t most) {
  TORCH_CHECK_VALUE(t.size(1) <= most && t.size(2) <= most, name, " must have at most ", most,
                    " rows in a view and elements in a row on a GPU, got shape ", t.sizes());
}

}  // namespace mast_ext
