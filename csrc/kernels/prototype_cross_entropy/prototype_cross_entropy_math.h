// The partial a chunk of prototypes leaves of one image, and how partials merge; for both devices.
//
//   of student view s      largest logit m_s and sum of exp((x - m_s) / r)
//   of teacher view t      largest logit m_t and l_t, the sum of e_t = exp((y - center - m_t) / u)
//   of a pair (t, s)       A_ts = sum of e_t (x - m_s)
//
// Logits enter as differences from the largest only, so that nothing is lost to a common offset.
// With M the largest of the chunks' m, a chunk adds e^((m_t - M_t) / u) (A_ts + (m_s - M_s)
// l_t) to the whole's A_ts, and
//
//   CE_ts = log l_s - A_ts / (l_t r)
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace mast_ext::kernels::prototype_math {

// Where things are in a partial.
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

// What is taken off a row whose largest logit is `max`: a row of nothing but -inf has exponentials
// of 0, not NaN; one with +inf or NaN is NaN by its sum.
template <typename A>
MAST_EXT_HD A shift_of(A max) {
  return max - max == 0 ? max : A{0};
}

// exp((max - all) / temperature), the weight of a chunk in its row: NaN where all are -inf.
template <typename A>
MAST_EXT_HD A chunk_weight(A max, A all, A inverse_temperature) {
  return std::exp((max - all) * inverse_temperature);
}

}  // namespace mast_ext::kernels::prototype_math
