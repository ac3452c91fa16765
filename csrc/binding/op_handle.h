// Calls ops of library.cpp through the dispatcher, so that compilers trace each call as one op and
// the tensors' device chooses the implementation.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace mast_ext {

template <std::size_t size>
struct Name {  // a string as a template argument
  char text[size];
  constexpr Name(const char (&name)[size]) { std::copy_n(name, size, text); }
};

// Calls visit(tensor) for every result of an op that returns a tensor, a list of them, or a tuple.
template <typename Visit>
void each_result(at::Tensor& result, const Visit& visit) {
  visit(result);
}
template <typename Visit>
void each_result(std::vector<at::Tensor>& results, const Visit& visit) {
  for (at::Tensor& result : results) visit(result);
}
template <typename... Ts, typename Visit>
void each_result(std::tuple<Ts...>& results, const Visit& visit) {
  std::apply([&](Ts&... result) { (each_result(result, visit), ...); }, results);
}

template <Name op_name, typename Signature>
struct Op;
template <Name op_name, typename Result_, typename... Args>
struct Op<op_name, Result_(Args...)> {
  using Result = Result_;
  static constexpr std::string_view name = op_name.text;

  static Result call(Args... args) { return handle().call(args...); }

  static Result below_autograd(c10::DispatchKeySet keys, Args... args) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return handle().redispatch(keys & c10::after_autograd_keyset, args...);
  }

 private:
  static const c10::TypedOperatorHandle<Result(Args...)>& handle() {
    static const auto found =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow(std::string("mast_ext::").append(name).c_str(), "")
            .template typed<Result(Args...)>();
    return found;
  }
};

}  // namespace mast_ext
