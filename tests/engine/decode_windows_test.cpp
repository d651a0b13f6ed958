// Windows and codings that advance together predict what each predicts alone.

#include "decode_windows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "tokenizer.hpp"

namespace engine::test::decode_windows_test {
namespace {

constexpr int window_count = 3, length = 90, prompt = 40;

class DecodeWindows : public testing::Test {
 protected:
  DecodeWindows() {
    std::string text;
    while (text.size() < 1000) text += std::to_string(text.size()) + " in the inn, then ";
    tokens_ = Tokenizer(file_).encode(text);
  }

  /// What the codings, and an exact cache before them, come to.
  std::vector<CodingRun> decode(const std::vector<std::string> &codings, int batch) {
    const std::unique_ptr<Engine> engine = make_engine("cpu", file_);
    std::vector<CodingRun> runs;
    runs.push_back({.spec = parse_cache_spec("exact"), .options = {}});
    for (const std::string &coding : codings)
      runs.push_back({.spec = parse_cache_spec(coding), .options = {}});
    for (CodingRun &run : runs) {
      run.options = run.spec.options_for(engine->config());
      run.options.groups[0].options.statistics_tokens = prompt;
    }
    std::vector<int> progress;
    decode_windows(*engine, {tokens_, window_count, length, prompt}, batch, runs,
                   [&](int done) { progress.push_back(done); });
    EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
    EXPECT_EQ(progress.back(), window_count * length);
    return runs;
  }

  const Gguf file_{small_model()};
  std::vector<int> tokens_;
};

/// The same results, in whichever order windows were decoded.
void expect_same(const CodingRun &a, const CodingRun &b) {
  const Summary one = summarize(a.predictions), other = summarize(b.predictions);
  ASSERT_EQ(a.predictions.size(), b.predictions.size());
  EXPECT_NEAR(one.perplexity, other.perplexity, 1e-6 * one.perplexity) << a.spec.text;
  EXPECT_NEAR(one.kl_mean, other.kl_mean, 1e-5) << a.spec.text;
  EXPECT_NEAR(one.kl_p99, other.kl_p99, 1e-4) << a.spec.text;
  EXPECT_EQ(one.top1, other.top1) << a.spec.text;
  ASSERT_EQ(a.memory.size(), b.memory.size());
  for (std::size_t window = 0; window < a.memory.size(); ++window) {
    EXPECT_EQ(a.memory[window].packed_tokens, b.memory[window].packed_tokens) << a.spec.text;
    EXPECT_EQ(a.memory[window].total(), b.memory[window].total()) << a.spec.text;
  }
}

const std::vector<std::string> codings = {"plain:k2v2:g16:w16", "orthogonal:k2v2:g16:w16",
                                          "subspace:k2v2:g16:w16"};

TEST_F(DecodeWindows, CountEveryTokenBehindThePrompt) {
  for (const CodingRun &run : decode(codings, 32)) {
    EXPECT_EQ(run.predictions.size(), std::size_t{window_count} * (length - prompt - 1));
    EXPECT_EQ(run.memory.size(), std::size_t{window_count});
  }
}

TEST_F(DecodeWindows, DoNotDependOnTheBatch) {
  const std::vector<CodingRun> one_by_one = decode(codings, 1), pairs = decode(codings, 8),
                               together = decode(codings, 1024);
  for (std::size_t i = 0; i < together.size(); ++i) {
    expect_same(one_by_one[i], together[i]);
    expect_same(pairs[i], together[i]);
  }
}

TEST_F(DecodeWindows, DoNotDependOnTheOtherCodings) {
  const std::vector<CodingRun> together = decode(codings, 32);
  for (std::size_t i = 0; i < codings.size(); ++i)
    expect_same(decode({codings[i]}, 32)[1], together[i + 1]);
}

TEST_F(DecodeWindows, DivergeOnlyWhereACodingRounds) {
  const std::vector<CodingRun> runs = decode(codings, 32);
  EXPECT_EQ(summarize(runs[0].predictions).kl_mean, 0);
  for (std::size_t i = 1; i < runs.size(); ++i)
    EXPECT_GT(summarize(runs[i].predictions).kl_mean, 0) << runs[i].spec.text;
}

TEST_F(DecodeWindows, APromptForAllIsAPromptForEach) {
  const std::unique_ptr<Engine> engine = make_engine("cpu", file_);
  std::vector<std::unique_ptr<ModelCache>> caches;
  std::vector<SequenceRows> shared, own;
  for (std::vector<SequenceRows> *sequences : {&shared, &own}) {
    for (const std::string &coding : codings) {
      const CacheSpec spec = parse_cache_spec(coding);
      squat::ModelOptions options = spec.options_for(engine->config());
      options.groups[0].options.statistics_tokens = prompt;
      caches.push_back(engine->make_cache(options));
      sequences->push_back({caches.back().get(), caches.back()->add_sequence(), prompt});
    }
  }
  const std::span text(tokens_);
  const RowMatrix after_prompt = engine->prefill(text.first(prompt), shared);
  ASSERT_EQ(after_prompt.rows(), 1);
  for (std::size_t i = 0; i < codings.size(); ++i) {
    const RowMatrix alone = engine->forward(text.first(prompt), std::span(&own[i], 1));
    EXPECT_LT((alone - after_prompt).norm(), 1e-5 * alone.norm()) << codings[i];
    own[i].tokens = shared[i].tokens = 1;
    const RowMatrix step = engine->forward(text.subspan(prompt, 1), std::span(&own[i], 1));
    const RowMatrix shared_step = engine->forward(text.subspan(prompt, 1), std::span(&shared[i], 1));
    EXPECT_LT((step - shared_step).norm(), 1e-5 * step.norm()) << codings[i];
  }
}

}  // namespace
}  // namespace engine::test::decode_windows_test
