#include "kernels/weighted_terms/weighted_terms.h"

#include <array>

#include "host/common/checks.h"
#include "host/common/run_on.h"
#include "host/ops.h"

namespace mast_ext {
namespace {

constexpr std::array kNames{"first", "second", "third"};
static_assert(kNames.size() == kernels::kMostTerms);

using Inputs = std::array<Tensor, kernels::kMostTerms>;

// The terms that are given, dense; checked to be alike.
std::pair<Inputs, int> checked_terms(const Tensor& first, const OptionalTensor& second,
                                     const OptionalTensor& third) {
  Inputs terms{first, second.value_or(Tensor()), third.value_or(Tensor())};
  TORCH_CHECK_VALUE(!third || second, "second must be given where third is");
  dtype_of(first, "first");
  TORCH_CHECK_TYPE(first.scalar_type() == accumulation_type(first),
                   "first must be float32 or float64, got ", first.scalar_type());
  int count = 0;
  for (; count < kernels::kMostTerms && terms[count].defined(); ++count) {
    check_like(terms[count], kNames[count], first, "first");
    terms[count] = terms[count].contiguous();
  }
  return {terms, count};
}

void check_numbers(at::ArrayRef<double> numbers, const char* name, int count) {
  TORCH_CHECK_VALUE(static_cast<int>(numbers.size()) == count, name,
                    " must have a number for each of the ", count, " terms, got ", numbers.size());
}

}  // namespace

std::tuple<Tensor, Tensor> weighted_terms(const Tensor& first, const OptionalTensor& second,
                                          const OptionalTensor& third, at::ArrayRef<double> scales,
                                          at::ArrayRef<double> weights) {
  const auto [terms, count] = checked_terms(first, second, third);
  check_numbers(scales, "scales", count);
  check_numbers(weights, "weights", count);
  Tensor total = first.new_empty({}), values = first.new_empty({count});
  kernels::WeightedTerms p{.dtype = dtype_of(first, "first"),
                           .count = count,
                           .parts = {},
                           .terms = values.mutable_data_ptr(),
                           .total = total.mutable_data_ptr()};
  for (int i = 0; i < count; ++i) {
    p.parts[i] = {terms[i].const_data_ptr(), terms[i].numel(), scales[i], weights[i]};
  }
  run_on(
      first, [&] { kernels::weighted_terms_cpu(p); },
      [&](auto stream) { return kernels::weighted_terms_cuda(p, stream); });
  return {total, values};
}

std::tuple<Tensor, Tensor, Tensor> weighted_terms_backward(const Tensor& grad_, const Tensor& first,
                                                           const OptionalTensor& second,
                                                           const OptionalTensor& third,
                                                           at::ArrayRef<double> factors,
                                                           std::array<bool, 3> wanted) {
  const auto [terms, count] = checked_terms(first, second, third);
  check_numbers(factors, "factors", count);
  check_shape(grad_, "grad", {});
  check_like(grad_, "grad", first, "first");
  kernels::WeightedTermsBackward p{
      .dtype = dtype_of(first, "first"), .grad = grad_.const_data_ptr(), .parts = {}};
  Inputs grads;
  for (int i = 0; i < kernels::kMostTerms; ++i) {
    const bool want = i < count && wanted[i];
    grads[i] = want ? first.new_empty(terms[i].sizes()) : first.new_empty({0});
    if (want) p.parts[i] = {grads[i].mutable_data_ptr(), grads[i].numel(), factors[i]};
  }
  run_on(
      first, [&] { kernels::weighted_terms_backward_cpu(p); },
      [&](auto stream) { return kernels::weighted_terms_backward_cuda(p, stream); });
  return {grads[0], grads[1], grads[2]};
}

}  // namespace mast_ext
