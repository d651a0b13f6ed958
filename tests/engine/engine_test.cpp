// The parts of the example engine: tokenizer, SPECs and the transformer over caches.

#include "engine.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache_spec.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "metrics.hpp"
#include "tokenizer.hpp"

namespace engine::test::engine_test {
namespace {

TEST(TokenizerOfAFile, MergesByRankAndDecodesBack) {
  const Gguf file(small_model());
  const Tokenizer tokenizer(file);
  const std::vector<int> tokens = tokenizer.encode("then the inn");
  ASSERT_EQ(tokens.size(), 6u);  // the|n| the| |in|n
  EXPECT_EQ(tokenizer.decode(tokens[0]), "the");
  EXPECT_EQ(tokenizer.decode(tokens[2]), " the");
  EXPECT_EQ(tokenizer.control("<end>"), 0);
  EXPECT_EQ(tokenizer.control("the"), -1);
  const std::string text = "any bytes: \x01\xff caf\u00e9\n 7";
  std::string back;
  for (int token : tokenizer.encode(text)) back += tokenizer.decode(token);
  EXPECT_EQ(back, text);
}

TEST(CacheSpecs, SayWhatTheyMean) {
  const CacheSpec spec = parse_cache_spec("plain:k4v2:g32:w80:s0");
  EXPECT_EQ(spec.options.coding, squat::Coding::plain);
  EXPECT_EQ(spec.key_bits, 4);
  EXPECT_EQ(spec.value_bits, 2);
  EXPECT_EQ(spec.options.page_tokens, 32);
  EXPECT_EQ(spec.options.residual, 80);
  EXPECT_EQ(spec.options.sinks, 0);
  EXPECT_EQ(parse_cache_spec("exact").key_bits, 16);
  EXPECT_EQ(parse_cache_spec("subspace:k2v2:trellis").options.codes, squat::Codes::trellis);
  EXPECT_EQ(parse_cache_spec("subspace:k2v2").options.codes, std::nullopt);
  EXPECT_EQ(parse_cache_spec("subspace:k2v2:layer").options.allocation, squat::Allocation::layer);
  EXPECT_EQ(parse_cache_spec("subspace:k2v2:t16").options.tail, squat::TailCoding::exact);
  EXPECT_EQ(parse_cache_spec("subspace:k4v4:t8").options.tail, squat::TailCoding::int8);
  const Config config{.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 64};
  const squat::Options published =
      parse_cache_spec("orthogonal:k2v2:published").options_for(config).groups[0].options;
  EXPECT_EQ(published.orthogonal.rank, 32);
  EXPECT_EQ(published.page_tokens, 32);
}

TEST(CacheSpecs, KeepWhatTheModelSays) {
  const Config config{.layers = 1,
                      .query_heads = 6,
                      .kv_heads = 2,
                      .head_dim = 64,
                      .attention_scale = .5f,
                      .attention_soft_cap = 30,
                      .differences = {.biases = true}};
  for (const char *coding : {"exact", "subspace:k2v2", "orthogonal:k2v2:published"}) {
    const squat::Options options = parse_cache_spec(coding).options_for(config).groups[0].options;
    EXPECT_EQ(options.query_heads, 6);
    EXPECT_EQ(options.kv_heads, 2);
    EXPECT_EQ(options.head_dim, 64);
    EXPECT_EQ(options.attention_scale, .5f);
    EXPECT_EQ(options.soft_cap, 30);
    EXPECT_TRUE(options.keys_have_biases);
    EXPECT_FALSE(options.rotary.empty());
  }
}

TEST(CacheSpecs, UnknownOnesListWhatExists) {
  for (const char *text : {"", "kivi:k2v2", "plain", "plain:k2", "plain:k5v2", "plain:k2v2:x3",
                           "plain:k2v2:g", "plain:k2v2:g3x", "plain:k2v2:published", "exact:k2v2"}) {
    try {
      parse_cache_spec(text);
      ADD_FAILURE() << text;
    } catch (const std::invalid_argument &error) {
      EXPECT_NE(std::string(error.what()).find("plain, orthogonal"), std::string::npos) << error.what();
    }
  }
}

RowMatrix logits_of(const std::vector<int> &pieces, const std::string &text) {
  const Gguf file(small_model());
  const std::vector<int> tokens = Tokenizer(file).encode(text);
  const std::unique_ptr<Engine> engine = make_engine("cpu", file);
  const CacheSpec spec = parse_cache_spec("exact");
  const std::unique_ptr<ModelCache> cache = engine->make_cache(spec.options_for(engine->config()));
  SequenceRows rows{cache.get(), cache->add_sequence()};
  RowMatrix logits;
  std::size_t first = 0;
  for (int piece : pieces) {
    const auto count = static_cast<std::size_t>(piece);
    rows.tokens = piece;
    logits = engine->forward(std::span(tokens).subspan(first, count), std::span(&rows, 1));
    first += count;
  }
  return logits;
}

TEST(Transformer, PiecesGiveTheSameLogits) {
  const std::string text = "some sixty bytes of text that no vocabulary merges, 0123456789";
  const RowMatrix whole = logits_of({60}, text);
  for (const std::vector<int> &pieces : {std::vector<int>(60, 1), std::vector<int>{7, 40, 1, 12}}) {
    const RowMatrix cut = logits_of(pieces, text);
    EXPECT_LT((whole - cut).norm() / whole.norm(), 2e-3);  // the exact cache keeps float16 rows
  }
}

TEST(Metrics, AreThoseOfTwoKnownDistributions) {
  const Eigen::RowVectorXf exact =
      Eigen::RowVector3f(std::log(.5f), std::log(.25f), std::log(.25f)).array() + 3;
  const Eigen::RowVectorXf coded =
      Eigen::RowVector3f(std::log(.25f), std::log(.5f), std::log(.25f)).array() - 7;
  const Prediction prediction = compare(exact, coded, 1);
  EXPECT_NEAR(prediction.kl, .5 * std::log(2) - .25 * std::log(2), 1e-6);
  EXPECT_NEAR(prediction.negative_log_likelihood, std::log(2), 1e-6);
  EXPECT_FALSE(prediction.top1);
  const Summary summary = summarize({prediction, {.negative_log_likelihood = 0, .kl = 0, .top1 = true}});
  EXPECT_NEAR(summary.perplexity, std::sqrt(2), 1e-6);
  EXPECT_DOUBLE_EQ(summary.top1, .5);
}

}  // namespace
}  // namespace engine::test::engine_test
