#include "host/ops.h"
#include "host/sigmoid_contrast/cpu_driver.h"
#include "host/sigmoid_contrast/cuda_driver.h"
#include "host/sigmoid_contrast/inputs.h"

namespace mast_ext {
namespace {

void run_sweep(const SigmoidInputs& in, const SigmoidSweepResults& results) {
  run_on(
      in.pairs.x, [&] { SigmoidCpuDriver(in).sweep(results); },
      [&](auto stream) { return SigmoidCudaDriver(in).sweep(results, stream); });
}

}  // namespace

Tensor sigmoid_contrast(const Tensor& x, const Tensor& y, const Tensor& scale, const Tensor& bias,
                        std::optional<std::int64_t> offset) {
  const PlainTensors plain;
  const SigmoidInputs in(x, y, scale, bias, offset);
  const Tensor loss = in.pairs.new_empty({in.rows()});
  run_sweep(in, {.loss = loss, .row_grads = {}});
  return loss;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_contrast_backward(
    const Tensor& grad_loss, const Tensor& x, const Tensor& y, const Tensor& scale,
    const Tensor& bias, std::optional<std::int64_t> offset, std::array<bool, 4> wanted) {
  const PlainTensors plain;
  const SigmoidInputs in(x, y, scale, bias, offset);
  SigmoidGradients grads(in, wanted);
  if (grads.any()) {
    run_sweep(in, {.loss = {}, .row_grads = in.of_rows(grad_loss, "grad_loss"), .grads = &grads});
  }
  return {grads.x, grads.y, grads.scale, grads.bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sigmoid_contrast_with_grad(
    const Tensor& x, const Tensor& y, const Tensor& scale, const Tensor& bias,
    const Tensor& weights_, std::optional<std::int64_t> offset, std::array<bool, 4> wanted) {
  const PlainTensors plain;
  const SigmoidInputs in(x, y, scale, bias, offset);
  const Tensor weights = in.of_rows(weights_, "weights");
  SigmoidGradients grads(in, wanted);
  const Tensor loss = in.pairs.new_empty({in.rows()});
  if (grads.any()) {
    run_sweep(in, {.loss = loss, .row_grads = weights, .grads = &grads});
  } else {
    run_sweep(in, {.loss = loss, .row_grads = {}});
  }
  const Tensor terms = loss.mul_(weights);
  const Tensor sum = uses_cuda_kernels(x)
                         ? terms.sum()
                         : in.pairs.new_empty({}).fill_(SigmoidCpuDriver::total(terms));
  return {sum, grads.x, grads.y, grads.scale, grads.bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sigmoid_contrast_with_grad_backward(
    const Tensor& grad, const Tensor& grad_x, const Tensor& grad_y, const Tensor& grad_scale,
    const Tensor& grad_bias) {
  const PlainTensors plain;
  return {grad_x.mul(grad), grad_y.mul(grad), grad_scale.mul(grad), grad_bias.mul(grad)};
}

}  // namespace mast_ext
