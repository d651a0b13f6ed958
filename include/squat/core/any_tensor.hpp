#pragma once

// A tensor whose element type is known at run time.

#include <concepts>
#include <string_view>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/tensor.hpp"

namespace squat {

/// The element types of tensors: float, half and bfloat16.
enum class ElementType { float32, float16, bfloat16 };

/// The name of Scalar.
template <Element Scalar>
constexpr ElementType element_type() {
  if constexpr (std::same_as<Scalar, float>) return ElementType::float32;
  if constexpr (std::same_as<Scalar, half>) return ElementType::float16;
  return ElementType::bfloat16;
}

/// Calls run.template operator()<Scalar>() for the type that is named.
template <class Run>
decltype(auto) with_element(ElementType type, Run &&run) {
  switch (type) {
    case ElementType::float32:
      return run.template operator()<float>();
    case ElementType::float16:
      return run.template operator()<half>();
    default:
      return run.template operator()<bfloat16>();
  }
}

/// A TensorView of one of the element types. Whoever makes one of const elements reads it as such.
class AnyTensor {
 public:
  /// The same view. Scalar: an Element, const or not.
  template <class Scalar>
  AnyTensor(TensorView<Scalar> view)
      : type_(element_type<std::remove_const_t<Scalar>>()),
        view_(reinterpret_cast<std::byte *>(const_cast<std::remove_const_t<Scalar> *>(view.data)),
              view.tokens, view.heads, view.head_dim, view.token_stride, view.head_stride) {}

  /// What the elements are.
  ElementType type() const { return type_; }

  /// The view again; Scalar is of type(), const or not.
  template <class Scalar>
  TensorView<Scalar> as() const {
    SQUAT_ASSERT(element_type<std::remove_const_t<Scalar>>() == type_);
    return {reinterpret_cast<Scalar *>(view_.data),
            view_.tokens,
            view_.heads,
            view_.head_dim,
            view_.token_stride,
            view_.head_stride};
  }

 private:
  ElementType type_;
  TensorView<std::byte> view_;  // its strides count elements
};

}  // namespace squat
