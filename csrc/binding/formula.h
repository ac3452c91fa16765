// What the derivatives in autograd.cpp are made of: a Formula runs an op under autograd and the
// transforms of torch.func, and helpers save and restore what its gradients need.
//
// Results that only the backward reads have no derivative. They are not outputs of
// torch::autograd::Function, where they would have to be marked as non-differentiable: compiled
// autograd does not support the mark.
#pragma once

#include <ATen/FuncTorchTLS.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "binding/op_handle.h"
#include "host/common/tensors.h"

namespace mast_ext {

using torch::autograd::AutogradContext;
using Tensors = torch::autograd::variable_list;

inline bool requires_grad(const Tensor& t) { return t.requires_grad(); }
inline bool requires_grad(const OptionalTensor& t) { return t && t->requires_grad(); }
inline bool requires_grad(at::TensorList list) {
  return std::ranges::any_of(list, [](const Tensor& t) { return t.requires_grad(); });
}
template <typename Option>
bool requires_grad(const Option&) {
  return false;
}

inline bool has_tangent(const Tensor& t) {
  return t.defined() && t._fw_grad(/*level=*/0).defined();
}
inline bool has_tangent(const OptionalTensor& t) { return t && has_tangent(*t); }
inline bool has_tangent(at::TensorList list) {
  return std::ranges::any_of(list, [](const Tensor& t) { return has_tangent(t); });
}
template <typename Option>
bool has_tangent(const Option&) {
  return false;
}

// Without this a tangent would be lost: it would look as if nothing depended on the input.
template <typename... Args>
void refuse_tangents(const char* op, const Args&... args) {
  TORCH_CHECK_NOT_IMPLEMENTED(!(has_tangent(args) || ...), op,
                              " has no forward-mode derivative (jvp, jacfwd, forward AD)");
}

// How many inputs an argument is to autograd.
inline std::size_t inputs_of(at::TensorList list) { return list.size(); }
template <typename Argument>
std::size_t inputs_of(const Argument&) {
  return 1;
}

// Whether the graph takes in an op of these arguments.
template <typename... Args>
bool is_recorded(const Args&... args) {
  return at::GradMode::is_enabled() && (requires_grad(args) || ...);
}

// The transforms of torch.func (grad, vjp, vmap, ...) that are active, exchanged for others while
// this lives.
//
// torch::autograd::Function::apply() refuses to run inside of one: called by anyone, its tensors
// may belong to several transforms. The dispatcher gives a derivative those of the innermost one,
// and comes to the next one below autograd. So apply() is shown none; what forward() calls sees
// them.
using Transforms = std::unique_ptr<at::functorch::FuncTorchTLSBase>;
class ExchangedTransforms {
 public:
  explicit ExchangedTransforms(Transforms& others) : others_(others) { exchange(); }
  ~ExchangedTransforms() { exchange(); }
  ExchangedTransforms(const ExchangedTransforms&) = delete;
  ExchangedTransforms& operator=(const ExchangedTransforms&) = delete;

 private:
  void exchange() { at::functorch::functorchTLSAccessor().swap(others_); }

  Transforms& others_;
};

// What all derivatives share. `Derivative` has
//   save(ctx, result, args)  saves what gradients() needs
//   gradients(ctx, grads)    returns the gradients of the inputs, in order, where every tensor of a
//                            list is an input: undefined tensors for those without one, which may
//                            be omitted at the end
//   differentiable           the number of results, the first ones, that have a derivative
template <typename Derivative, typename Op>
struct Formula;
template <typename Derivative, Name name, typename Result, typename... Args>
struct Formula<Derivative, Op<name, Result(Args...)>> : torch::autograd::Function<Derivative> {
  using Forward = Op<name, Result(Args...)>;
  static constexpr bool is_traceable = true;  // compiled autograd requires it
  static constexpr std::size_t differentiable = 1;

  static Result run(c10::DispatchKeySet keys, Args... args) {
    refuse_tangents(name.text, args...);
    if (!is_recorded(args...)) return Forward::below_autograd(keys, args...);
    Result result;
    Transforms transforms;
    const ExchangedTransforms hidden(transforms);
    const Tensors outputs = Derivative::apply(args..., keys, &result, &transforms);
    auto output = outputs.begin();
    each_result(result, [&](Tensor& t) {
      if (output != outputs.end()) t = *output++;
    });
    return result;
  }

  static Tensors forward(AutogradContext* ctx, Args... args, c10::DispatchKeySet keys,
                         Result* result, Transforms* transforms) {
    {
      // Gradients, which apply() has turned off, are those of the transforms around this one, too.
      const ExchangedTransforms seen(*transforms);
      const at::AutoGradMode recorded(true);
      *result = Forward::below_autograd(keys, args...);
    }
    ctx->set_materialize_grads(false);
    ctx->saved_data["inputs"] = static_cast<std::int64_t>((inputs_of(args) + ...));
    Derivative::save(ctx, *result, args...);
    Tensors outputs;
    each_result(*result, [&](const Tensor& t) {
      if (outputs.size() < Derivative::differentiable) outputs.push_back(t);
    });
    return outputs;
  }

  static Tensors backward(AutogradContext* ctx, const Tensors& grads) {
    const bool any = std::ranges::any_of(grads, [](const Tensor& grad) { return grad.defined(); });
    Tensors gradients = any ? Derivative::gradients(ctx, grads) : Tensors();
    // What forward() is given beside them counts as inputs, too.
    gradients.resize(ctx->saved_data["inputs"].toInt() + 3);
    return gradients;
  }
};

// The derivative of a backward op: an error, where autograd would otherwise compute zero.
template <typename Derivative>
struct NoSecondDerivative : Formula<NoSecondDerivative<Derivative>, typename Derivative::Backward> {
  static constexpr auto differentiable = std::numeric_limits<std::size_t>::max();  // all

  static void save(AutogradContext*, const auto&...) {}

  static Tensors gradients(AutogradContext*, const Tensors&) {
    TORCH_CHECK(false, Derivative::Forward::name,
                " has no second derivative: its gradient was differentiated");
  }
};

// Tensors that were not given are saved as undefined ones.
inline Tensor or_undefined(const OptionalTensor& t) { return t.value_or(Tensor()); }
inline OptionalTensor if_defined(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

template <typename... Ts>
void save_tensors(AutogradContext* ctx, const Ts&... tensors) {
  ctx->save_for_backward({or_undefined(tensors)...});
}
template <std::size_t count>
std::array<Tensor, count> saved_tensors(const AutogradContext* ctx) {
  std::array<Tensor, count> tensors;
  std::ranges::move(ctx->get_saved_variables(), tensors.begin());
  return tensors;
}

template <typename... Options>
void keep_options(AutogradContext* ctx, Options... options) {
  ctx->saved_data["options"] = std::tuple<Options...>(std::move(options)...);
}
template <typename... Options>
std::tuple<Options...> kept_options(AutogradContext* ctx) {
  const auto kept = ctx->saved_data["options"].toTupleRef().elements().asArrayRef();
  return [&]<std::size_t... i>(std::index_sequence<i...>) {
    return std::tuple<Options...>(kept[i].template to<Options>()...);
  }(std::index_sequence_for<Options...>());
}

// Which of an op's tensors need gradients. Those that were not given are not numbered.
template <typename... Inputs>
std::array<bool, sizeof...(Inputs)> which_wanted(const AutogradContext* ctx,
                                                 const Inputs&... inputs) {
  std::size_t number = 0;
  return {(inputs.defined() && ctx->needs_input_grad(number++))...};
}

// The gradients that a backward op returned, undefined where they are not wanted.
template <typename Grads, std::size_t count>
Tensors only(const std::array<bool, count>& wanted, Grads grads) {
  return std::apply(
      [&](auto&... grad) {
        std::size_t i = 0;
        return Tensors{(wanted[i++] ? std::move(grad) : Tensor())...};
      },
      grads);
}

}  // namespace mast_ext
