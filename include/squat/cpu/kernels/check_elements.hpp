#pragma once

// Elements that no kernel may meet: not finite, or too large for float16.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Whether `count` elements, a multiple of 16, are finite and within float16's
/// range. Magnitudes compare as their bits do, those of infinity and NaN above
/// all others.
template <Element Scalar>
bool in_range(const Scalar *elements, Index count) {
  using Bits = std::conditional_t<sizeof(Scalar) == 4, std::int32_t, std::int16_t>;
  typedef Bits Vector __attribute__((vector_size(16 * sizeof(Scalar))));
  const Scalar largest =
      static_cast<Scalar>(std::is_same_v<Scalar, bfloat16> ? 65280.0f : largest_element);
  constexpr Bits magnitude = std::numeric_limits<Bits>::max();
  Vector room = {};  // negative where one lane's magnitude was too large
  for (Index i = 0; i < count; i += 16) {
    Vector bits;
    std::memcpy(&bits, elements + i, sizeof bits);
    room |= std::bit_cast<Bits>(largest) - (bits & magnitude);
  }
  Bits any = 0;
  for (int lane = 0; lane < 16; ++lane) any |= room[lane];
  return any >= 0;
}

/// Throws Error unless every element is finite and within float16's range. first: which of the
/// argument's tokens the view begins with.
template <Element Scalar>
void check_elements(std::string_view name, TensorView<const Scalar> view, Index first) {
  for (Index token = 0; token < view.tokens; ++token) {
    for (Index head = 0; head < view.heads; ++head) {
      const Scalar *row = view.row(token, head);
      if (in_range(row, view.head_dim)) continue;
      const Scalar *bad = std::find_if(row, row + view.head_dim - 1, [](Scalar element) {
        return !(std::abs(static_cast<float>(element)) <= largest_element);
      });
      throw_out_of_range(name, first + token, head, bad - row, static_cast<float>(*bad));
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
