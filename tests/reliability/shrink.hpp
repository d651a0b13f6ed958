#pragma once

// Makes what fails as small as it gets.

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <iterator>
#include <string>
#include <utility>

#include "random_case.hpp"

namespace squat::test {

/// A text without its numbers: what a failure is, wherever it is met.
inline std::string letters(const std::string &text) {
  std::string letters;
  std::copy_if(text.begin(), text.end(), std::back_inserter(letters),
               [](unsigned char character) { return std::isalpha(character) != 0; });
  return letters;
}

/// A smaller case that fails too: operations dropped, numbers lowered, options simple. fails(case):
/// whether it does.
template <class Fails>
Case shrink(Case failing, Fails &&fails) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  const auto take = [&](Case smaller) {
    if (std::chrono::steady_clock::now() > end || !fails(smaller)) return false;
    failing = std::move(smaller);
    return true;
  };
  const auto drop = [&] {
    bool dropped = false;
    for (std::size_t count = failing.operations.size(); count > 0; count /= 2) {
      for (std::size_t first = 0; first < failing.operations.size();) {
        Case smaller = failing;
        const auto begin = smaller.operations.begin() + static_cast<std::ptrdiff_t>(first);
        smaller.operations.erase(begin, begin + static_cast<std::ptrdiff_t>(
                                                    std::min(count, failing.operations.size() - first)));
        if (take(std::move(smaller))) {
          dropped = true;
        } else {
          first += count;
        }
      }
    }
    return dropped;
  };
  const auto lower = [&] {
    bool lowered = false;
    const auto try_with = [&](std::size_t at, auto &&change) {
      Case smaller = failing;
      change(smaller.operations[at]);
      lowered |= take(std::move(smaller));
    };
    for (std::size_t at = 0; at < failing.operations.size(); ++at) {
      const Operation usual, now = failing.operations[at];
      if (now.fails_at != 0) try_with(at, [&](Operation &operation) { operation.fails_at = 0; });
      if (now.padded) try_with(at, [&](Operation &operation) { operation.padded = false; });
      if (!now.learn) try_with(at, [&](Operation &operation) { operation.learn = true; });
      using Number = int Operation::*;  // by name, for nvcc writes it with parentheses of its own
      for (const Number number : {&Operation::tokens, &Operation::more, &Operation::first,
                                  &Operation::by, &Operation::sequence, &Operation::sequences}) {
        for (const int less : {0, now.*number / 2, now.*number - 1}) {
          if (now.*number > less && less >= usual.*number)
            try_with(at, [&](Operation &operation) { operation.*number = less; });
        }
      }
    }
    return lowered;
  };
  const auto simplify = [&] {
    const auto try_with = [&](auto &&change) {
      Case smaller = failing;
      change(smaller.options);
      take(std::move(smaller));
    };
    try_with([](Options &options) {
      options.layers = 1, options.rotary.resize(std::min<std::size_t>(1, options.rotary.size()));
    });
    try_with([](Options &options) { options.query_heads = options.kv_heads; });
    try_with([](Options &options) { options.query_heads = options.kv_heads = 1; });
    try_with([](Options &options) { options.rotary.clear(), options.tile_tokens.reset(); });
    try_with([](Options &options) { options.sinks = 0; });
    try_with([](Options &options) { options.residual = 0; });
    try_with([](Options &options) { options.codes.reset(); });
    try_with([](Options &options) { options.allocation.reset(); });
    try_with([](Options &options) { options.values.reset(); });
    try_with([](Options &options) { options.tail = TailCoding::exact; });
    try_with([](Options &options) { options.keep_statistics = false; });
    try_with([](Options &options) { options.learning = LearningMode::first_tokens; });
    try_with([](Options &options) { options.coding = Coding::plain; });
    try_with([](Options &options) { options.max_pages = Options{}.max_pages; });
  };
  drop();
  simplify();
  while (lower() || drop()) {
  }
  return failing;
}

}  // namespace squat::test
