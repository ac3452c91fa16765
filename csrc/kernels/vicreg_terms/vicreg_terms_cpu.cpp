#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/vicreg_terms/vicreg_terms.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {

void vicreg_terms_differences_cpu(const VicregTermsBackward& p, std::int64_t begin,
                                  std::int64_t end) {
  const Columns& z = p.z;
  visit_dtype(z.dtype, [&]<typename T>() {
    using A = accum_t<T>;
    const A factor = *static_cast<const A*>(p.grad) * static_cast<A>(p.difference_factor);
    const GroupedMeansInputs& groups = p.means.in;
    for (std::int64_t n = begin; n < end; ++n) {
      const A* of_group = nullptr;
      if (p.group != nullptr) {
        const std::int64_t g = p.group[n];
        if (g < 0 || g >= groups.groups) continue;
        of_group = static_cast<const A*>(p.means.grad_sums) + g * z.dim;
      }
      const T *x = row_of<T>(z, 0, n), *y = row_of<T>(z, 1, n);
      T* const grad_x = static_cast<T*>(p.batch.grad_z) + n * z.dim;
      T* const grad_y = grad_x + z.rows * z.dim;
      for (std::int64_t d = 0; d < z.dim; d += kLanes<A>) {
        const std::int64_t left = z.dim - d;
        const vec<A> difference = load_some(x + d, left) - load_some(y + d, left);
        const vec<A> pull = of_group == nullptr ? difference * factor
                                                : 2 * load_some(of_group + d, left) * difference;
        store_some(grad_x + d, load_some(grad_x + d, left) + pull, left);
        store_some(grad_y + d, load_some(grad_y + d, left) - pull, left);
      }
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(vicreg_terms_differences_cpu,
                   (const VicregTermsBackward& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
