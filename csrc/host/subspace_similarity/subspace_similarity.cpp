#include "kernels/subspace_similarity/subspace_similarity.h"

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"
#include "host/pair_sums/pair_inputs.h"

namespace mast_ext {
namespace {

kernels::Metric metric_of(std::string_view name) {
  if (name == "cosine") return kernels::Metric::kCosine;
  TORCH_CHECK_VALUE(name == "sqeuclidean", "metric must be 'cosine' or 'sqeuclidean', got '",
                    std::string(name), "'");
  return kernels::Metric::kSquaredEuclidean;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> subspace_similarity(const Tensor& x, const OptionalTensor& y,
                                                       const OptionalTensor& masks,
                                                       std::string_view metric_name, double eps) {
  const PairInputs in(x, y, masks);
  const kernels::Metric metric = metric_of(metric_name);
  TORCH_CHECK_VALUE(eps > 0, "eps must be positive, got ", eps);
  const bool cosine = metric == kernels::Metric::kCosine;
  Tensor similarity = in.new_pairs();
  Tensor inv_norm_x = similarity.new_empty({in.subspaces(), cosine ? in.x_views() : 0, in.batch()});
  Tensor inv_norm_y =
      similarity.new_empty({in.subspaces(), cosine && !in.self ? in.y_views() : 0, in.batch()});

  kernels::SubspaceSimilarity p{
      .pairs = in.sums(cosine),
      .metric = metric,
      .eps = eps,
      .similarity = similarity.mutable_data_ptr(),
      .inv_norm_x = inv_norm_x.mutable_data_ptr(),
      .inv_norm_y = inv_norm_y.mutable_data_ptr(),
      .sums = nullptr,
  };
  run_on(
      x,
      [&] {
        parallel_rows(in.batch(), in.image_cost(p.pairs), [&](auto begin, auto end) {
          kernels::subspace_similarity_cpu(p, begin, end);
        });
      },
      [&](auto stream) {
        Tensor sums;
        if (!kernels::compares_two(p.pairs)) {
          sums = similarity.new_empty({p.pairs.rows.count(), in.subspaces(), in.batch()});
          p.sums = sums.mutable_data_ptr();
        }
        return kernels::subspace_similarity_cuda(p, stream);
      });
  return {similarity, inv_norm_x, inv_norm_y};
}

std::tuple<Tensor, Tensor, Tensor> subspace_similarity_backward(
    const Tensor& grad_similarity_, const Tensor& x, const OptionalTensor& y,
    const OptionalTensor& masks, const Tensor& similarity_, const Tensor& inv_norm_x_,
    const Tensor& inv_norm_y_, std::string_view metric_name, double eps,
    std::array<bool, 3> wanted) {
  const PairInputs in(x, y, masks);
  const kernels::Metric metric = metric_of(metric_name);
  check_shape(grad_similarity_, "grad_similarity", similarity_.sizes());
  check_like(grad_similarity_, "grad_similarity", similarity_, "similarity");
  const Tensor grad_similarity = grad_similarity_.contiguous();
  // The forward returns dense tensors, but a caller of the op may pass copies that are not.
  const Tensor similarity = similarity_.contiguous();
  const Tensor inv_norm_x = inv_norm_x_.contiguous(), inv_norm_y = inv_norm_y_.contiguous();
  PairGradients out(in, wanted[0], wanted[1], wanted[2]);

  kernels::SubspaceSimilarityBackward p{
      .pairs = in.sums(metric == kernels::Metric::kCosine),
      .metric = metric,
      .eps = eps,
      .grad_similarity = grad_similarity.const_data_ptr(),
      .similarity = similarity.const_data_ptr(),
      .inv_norm_x = inv_norm_x.const_data_ptr(),
      .inv_norm_y = inv_norm_y.const_data_ptr(),
      .grad = out.pointers(),
      .work = {},
  };
  run_on(
      x,
      [&] {
        out.run_slices(in, p, [](const auto& q, auto begin, auto end) {
          kernels::subspace_similarity_backward_cpu(q, begin, end);
        });
      },
      [&](auto stream) {
        p.work = out.cuda_workspace(in, p.pairs.rows.count());
        return kernels::subspace_similarity_backward_cuda(p, stream);
      });
  return {out.x, out.y, out.masks};
}

}  // namespace mast_ext
