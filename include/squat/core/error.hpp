#pragma once

// The one exception type, and the one way its text is made.

#include <array>
#include <charconv>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace squat {

/// What a public entry point throws when an argument cannot be served. The text
/// names the argument, its value and what was allowed. Whatever threw it left
/// the cache as it was.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Writes a value of an argument; a floating-point one in the fewest digits that tell it from its
/// neighbours.
template <class Value>
void write_value(std::ostream &text, const Value &value) {
  if constexpr (std::is_floating_point_v<Value>) {
    std::array<char, 32> digits;
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    text.write(digits.data(), end - digits.data());
  } else {
    text << value;
  }
}

/// Throws "squat: ARGUMENT is VALUE, must be ALLOWED".
template <class Value>
[[noreturn]] void throw_invalid(std::string_view argument, const Value &value,
                                std::string_view allowed) {
  std::ostringstream text;
  text << "squat: " << argument << " is ";
  write_value(text, value);
  text << ", must be " << allowed;
  throw Error(text.str());
}

/// The same where `allowed` ends in a limit known only at run time: "must be
/// ALLOWED LIMIT".
template <class Value, class Limit>
[[noreturn]] void throw_invalid(std::string_view argument, const Value &value, std::string_view allowed,
                                const Limit &limit) {
  std::ostringstream text;
  text << allowed << ' ';
  write_value(text, limit);
  throw_invalid(argument, value, text.str());
}

}  // namespace squat
