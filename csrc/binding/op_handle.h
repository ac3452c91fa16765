// Calls ops of library.cpp through the dispatcher, so that compilers trace each call as one op and
// the tensors' device chooses the implementation.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

namespace mast_ext {

template <std::size_t size>
struct Name {  // a string as a template argument
  char text[size];
  constexpr Name(const char (&name)[size]) { std::copy_n(name, size, text); }
};

// Pointers to the results of an op that returns one tensor or a tuple of them.
inline std::array<at::Tensor*, 1> results_of(at::Tensor& result) { return {&result}; }
template <typename... Ts>
std::array<at::Tensor*, sizeof...(Ts)> results_of(std::tuple<Ts...>& results) {
  return std::apply([](Ts&... t) { return std::array{&t...}; }, results);
}

template <Name op_name, typename Signature>
struct Op;
template <Name op_name, typename Result_, typename... Args>
struct Op<op_name, Result_(Args...)> {
  using Result = Result_;
  static constexpr std::string_view name = op_name.text;
  static constexpr std::size_t results =
      std::tuple_size_v<decltype(results_of(std::declval<Result&>()))>;

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
