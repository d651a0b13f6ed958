#pragma once

// The range of the elements an engine hands over, and what is said of one
// outside it.

#include <string>
#include <string_view>

#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/tensor.hpp"

namespace squat {

/// The largest magnitude of a query, key or value: zeros, scales and exact
/// pages are float16.
inline constexpr float largest_element = 65504.0f;

/// Rows of an argument, from `first` on, and its name.
template <class Scalar>
struct NamedTensor {
  std::string_view name;
  TensorView<const Scalar> view;
  Index first = 0;
};

/// Throws the Error of an element that is not finite or too large.
[[noreturn]] inline void throw_out_of_range(std::string_view name, Index token, Index head,
                                            Index channel, float element) {
  throw_invalid(std::string(name) + "[" + std::to_string(token) + "," + std::to_string(head) + "," +
                    std::to_string(channel) + "]",
                element, "finite and of magnitude at most", largest_element);
}

}  // namespace squat
