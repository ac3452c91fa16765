#include "kernels/epps_pulley_distance/epps_pulley_distance.h"

#include "kernels/common/isa.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename A>
A distance_of_view(const EppsPulleySums& in, std::int64_t view) {
  constexpr std::int64_t kSums = 16;  // side by side, which the compiler makes lanes of a vector
  const A images = number_of_images<A>(in);
  const A* x = static_cast<const A*>(in.sums) + view * in.rows_of_view() * in.slices;
  double total = 0;
  for (std::int64_t row = 0; row < in.rows_of_view(); ++row, x += in.slices) {
    const EppsPulleyRow<A> of(in, row, images);
    double sums[kSums] = {}, sum = 0;
    std::int64_t m = 0;
    for (; m + kSums <= in.slices; m += kSums) {
      for (std::int64_t j = 0; j < kSums; ++j) {
        const A difference = of.difference(x[m + j]);
        sums[j] += difference * difference;
      }
    }
    for (; m < in.slices; ++m) sum += of.difference(x[m]) * of.difference(x[m]);
    for (const double part : sums) sum += part;
    total += of.weight * sum;
  }
  return static_cast<A>(images / static_cast<double>(in.slices) * total);
}

template <typename A>
void grads_of_row(const EppsPulleyDistanceBackward& p, std::int64_t row) {
  const EppsPulleySums& in = p.in;
  const EppsPulleyRow<A> of(in, row % in.rows_of_view(), number_of_images<A>(in));
  const A grad = static_cast<const A*>(p.grad)[row / in.rows_of_view()];
  const A factor = 2 * grad * of.weight / static_cast<A>(in.slices);
  const A* x = static_cast<const A*>(in.sums) + row * in.slices;
  A* const to = static_cast<A*>(p.grad_sums) + row * in.slices;
  for (std::int64_t m = 0; m < in.slices; ++m) to[m] = factor * of.difference(x[m]);
}

}  // namespace

void epps_pulley_distance_cpu(const EppsPulleyDistance& p, std::int64_t begin, std::int64_t end) {
  visit_accumulation(p.in.dtype, [&]<typename A>() {
    for (std::int64_t view = begin; view < end; ++view) {
      static_cast<A*>(p.distance)[view] = distance_of_view<A>(p.in, view);
    }
  });
}

void epps_pulley_distance_backward_cpu(const EppsPulleyDistanceBackward& p, std::int64_t begin,
                                       std::int64_t end) {
  visit_accumulation(p.in.dtype, [&]<typename A>() {
    for (std::int64_t row = begin; row < end; ++row) grads_of_row<A>(p, row);
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(epps_pulley_distance_cpu,
                   (const EppsPulleyDistance& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))
MAST_EXT_CPU_ENTRY(epps_pulley_distance_backward_cpu,
                   (const EppsPulleyDistanceBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
