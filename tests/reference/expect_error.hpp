#pragma once

// What a call throws that is refused.

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "squat/core/error.hpp"

namespace squat::test {

/// Expects a squat::Error whose text holds all of `words`.
inline void expect_error(const std::function<void()> &call, const std::vector<std::string> &words) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with " << words[0];
  } catch (const Error &error) {
    for (const std::string &word : words) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
          << error.what() << " lacks " << word;
    }
  }
}

}  // namespace squat::test
