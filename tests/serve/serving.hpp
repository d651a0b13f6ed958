#pragma once

// The small model being served, and a client that remembers.

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "scheduler.hpp"
#include "tokenizer.hpp"

namespace engine::serve::test {

class Recorder : public Client {
 public:
  void on_refused(const std::string &why) override { refusal = why; }
  void on_text(std::string_view piece) override { text += piece; }
  void on_end(const Outcome &end) override {
    EXPECT_FALSE(outcome);
    tokens.assign(end.tokens.begin(), end.tokens.end());
    outcome = end;
    outcome->tokens = {};
  }
  bool is_gone() const override { return gone; }

  bool gone = false;
  std::string text, refusal;
  std::vector<int> tokens;
  std::optional<Outcome> outcome;
};

class Serving : public testing::Test {
 protected:
  std::unique_ptr<ModelCache> make_cache(const std::string &coding) const {
    const CacheSpec spec = parse_cache_spec(coding);
    return engine->make_cache(spec.options_for(engine->config()));
  }

  std::vector<int> encode(std::string_view text) const { return tokenizer.encode(text); }

  /// A prompt of its own, from the first token on.
  std::vector<int> prompt(int number, std::size_t tokens) const {
    std::string text;
    while (text.size() < 2 * tokens)
      text += std::to_string(number * 7919 + static_cast<int>(text.size())) + " in the ";
    std::vector<int> encoded = encode(text);
    encoded.resize(tokens);
    return encoded;
  }

  /// Takes steps until all is done.
  static void serve_all(Scheduler &scheduler) {
    for (int step = 0; !scheduler.idle(); ++step) {
      ASSERT_LT(step, 5000) << "requests that never end";
      scheduler.step();
    }
  }

  const Gguf file{engine::test::small_model()};
  const Tokenizer tokenizer{file};
  const std::unique_ptr<Engine> engine = make_engine("cpu", file);
};

}  // namespace engine::serve::test
