#pragma once

// What a call throws that is refused.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "squat/core/error.hpp"

namespace squat::test {

/// The text of the Error that a call throws; "none" where it throws none.
template <class Call>
std::string refusal_of(Call &&call) {
  try {
    call();
  } catch (const Error &error) {
    return error.what();
  }
  return "none";
}

/// Expects an Error whose text holds all of `words`.
template <class Call>
void expect_error(Call &&call, const std::vector<std::string> &words) {
  const std::string refusal = refusal_of(call);
  for (const std::string &word : words)
    EXPECT_NE(refusal.find(word), std::string::npos) << refusal << " lacks " << word;
}

}  // namespace squat::test
