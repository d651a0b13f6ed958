#pragma once

// What two objects of one program do, each compiled for an instruction set of its own.

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "squat/squat.hpp"

#define SQUAT_TEST_TEXT(text) #text
#define SQUAT_TEST_NAME(macro) SQUAT_TEST_TEXT(macro)

struct Outcome {
  std::string instruction_set;
  std::vector<float> prompt, decoded;
};

namespace {

/// A prompt, the statistics, bases and pages it brings, and one token that attends to all of it.
[[maybe_unused]] Outcome run_cache() {
  squat::Options options{.layers = 1, .query_heads = 6, .kv_heads = 2, .head_dim = 64};
  squat::RotaryTable rotary;
  for (int i = 0; i < 32; ++i)
    rotary.inverse_frequencies.push_back(1.0f / static_cast<float>(1 + i * i));
  options.rotary = {rotary};
  squat::KVCache<squat::half, 4> cache(options);
  const squat::SequenceId sequence = cache.add_sequence();
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::size_t count) {
    std::vector<float> x(count);
    std::generate(x.begin(), x.end(), [&] { return normal(random); });
    return x;
  };
  const auto attend = [&](squat::Index tokens) {
    const auto count = static_cast<std::size_t>(tokens);
    std::vector<float> q = fill(count * 6 * 64), k = fill(count * 2 * 64), v = fill(count * 2 * 64);
    std::vector<float> out(q.size());
    cache.attend(sequence, 0, squat::TensorView<float>(q.data(), tokens, 6, 64),
                 squat::TensorView<float>(k.data(), tokens, 2, 64),
                 squat::TensorView<float>(v.data(), tokens, 2, 64),
                 squat::TensorView<float>(out.data(), tokens, 6, 64));
    return out;
  };
  Outcome outcome;
  outcome.instruction_set = SQUAT_TEST_NAME(SQUAT_CPU_NAMESPACE);
  outcome.prompt = attend(700);
  outcome.decoded = attend(1);
  return outcome;
}

}  // namespace
