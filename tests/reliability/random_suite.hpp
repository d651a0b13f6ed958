#pragma once

// Random operations on caches of random options, against a model; what fails is made as small as it
// gets.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "random_case.hpp"
#include "random_run.hpp"
#include "shrink.hpp"

namespace squat::test {

/// Statistics of another text, for caches of these options.
template <class Place, class T, int KeyBits, int ValueBits>
std::shared_ptr<const Prior> prior_for(Options options) {
  options.learning = LearningMode::first_tokens;
  options.keep_statistics = true;
  options.max_pages = Options{}.max_pages;
  typename Place::template Cache<T, KeyBits, ValueBits> cache(options);
  const SequenceId sequence = cache.add_sequence();
  for (int layer = 0; layer < options.layers; ++layer) {
    Inputs<> in(options, 200, 7 + 3 * static_cast<unsigned>(layer));
    typename Place::Copy q(in.q), k(in.k), v(in.v);
    cache.append(sequence, layer, q.view(), k.view(), v.view());
  }
  return std::make_shared<const Prior>(cache.statistics());
}

/// What goes wrong in a run; empty: nothing.
template <class Place, class T, int KeyBits, int ValueBits>
std::string violation(const Case &of) {
  std::size_t at = 0;
  try {
    Options options = of.options;
    if (of.prior) options.prior = prior_for<Place, T, KeyBits, ValueBits>(options);
    RandomRun<Place, T, KeyBits, ValueBits> run(options);
    for (; at < of.operations.size(); ++at) run.apply(of.operations[at]);
    run.finish();
  } catch (const std::exception &wrong) {
    return "operation " + std::to_string(at) + ": " + wrong.what();
  }
  return {};
}

/// Runs a case; where it fails, says how and prints the smallest that fails so.
template <class Place, class T, int KeyBits, int ValueBits>
void expect_holds(Case drawn, const std::string &types) {
  Place::restrict(drawn.options);
  const std::string wrong = violation<Place, T, KeyBits, ValueBits>(drawn);
  if (wrong.empty()) return;
  const auto fails = [&](const Case &of) {
    return letters(violation<Place, T, KeyBits, ValueBits>(of)) == letters(wrong);
  };
  const Case small = shrink(drawn, fails);
  ADD_FAILURE() << wrong << "\nof " << drawn.operations.size() << " operations, "
                << small.operations.size() << " are enough:\n"
                << violation<Place, T, KeyBits, ValueBits>(small) << "\n"
                << as_test(small, types);
}

/// A case of so many operations.
inline Case draw(unsigned seed, int operations, int key_bits, int value_bits) {
  Dice dice(seed);
  Case drawn{draw_options(dice, key_bits, value_bits), false, {}};
  drawn.prior = drawn.options.learning == LearningMode::frozen ? !dice.once_in(4) : dice.once_in(6);
  if (key_bits == 16 || drawn.options.coding == Coding::plain) drawn.prior = false;
  for (int i = 0; i < operations; ++i) drawn.operations.push_back(draw_operation(dice));
  return drawn;
}

/// A number of the environment.
inline int number_of(const char *variable, int usual) {
  const char *text = std::getenv(variable);
  return text != nullptr ? std::atoi(text) : usual;
}

}  // namespace squat::test
