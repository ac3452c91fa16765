// The partial of an image, computed from one chunk of prototypes, and how partials merge. Shared by
// CPU and CUDA.
//
//   of student view s      largest logit m_s and sum of exp((x - m_s) / r)
//   of teacher view t      largest logit m_t and l_t, the sum of e_t = exp((y - center - m_t) / u)
//   of a pair (t, s)       A_ts = sum of e_t (x - m_s)
//
// Only differences from the largest logit are used, so that a common offset costs no precision.
// With M the largest of all chunks' m, a chunk adds e^((m_t - M_t) / u) (A_ts + (m_s - M_s) l_t) to
// the A_ts of the whole row, and
//
//   CE_ts = log l_s - A_ts / (l_t r)
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels::prototype_math {

// The index of every value in a partial.
struct PartialLayout {
  std::int64_t students, teachers;

  MAST_EXT_HD std::int64_t student_max(std::int64_t s) const { return s; }
  MAST_EXT_HD std::int64_t student_sum(std::int64_t s) const { return students + s; }
  MAST_EXT_HD std::int64_t teacher_max(std::int64_t t) const { return 2 * students + t; }
  MAST_EXT_HD std::int64_t teacher_sum(std::int64_t t) const { return 2 * students + teachers + t; }
  MAST_EXT_HD std::int64_t dot(std::int64_t t, std::int64_t s) const {
    return 2 * (students + teachers) + t * students + s;
  }
  MAST_EXT_HD std::int64_t size() const { return dot(teachers, 0); }
};

// What is subtracted from a row whose largest logit is `max`: 0 if that is not finite. The
// exponentials of a row of -inf are then 0 instead of NaN; a row with +inf or NaN becomes NaN by
// its sum.
template <typename A>
MAST_EXT_HD A shift_of(A max) {
  return max - max == 0 ? max : A{0};
}

// exp((max - all) / temperature), the weight of a chunk with the largest logit `max` in a row with
// the largest logit `all`: NaN if both are -inf.
template <typename A>
MAST_EXT_HD A chunk_weight(A max, A all, A inverse_temperature) {
  return std::exp((max - all) * inverse_temperature);
}

}  // namespace mast_ext::kernels::prototype_math
