// The parts of the example engine: tokenizer, block formats, SPECs and the transformer over caches.

#include "engine.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache_spec.hpp"
#include "dequantize.hpp"
#include "gguf.hpp"
#include "llama/small_model.hpp"
#include "metrics.hpp"
#include "tokenizer.hpp"

namespace llama::test {
namespace {

using Words = std::vector<std::string_view>;

TEST(SplitWords, IsGpt2s) {
  EXPECT_EQ(
      split_words("I'm the 2nd, aren't  I?\n\n ok ", false),
      (Words{"I", "'m", " the", " 2", "nd", ",", " aren", "'t", " ", " I", "?", "\n\n", " ok", " "}));
  EXPECT_EQ(split_words("caf\u00e9 \u2013 \u00fcber", false),
            (Words{"caf\u00e9", " \u2013", " \u00fcber"}));
}

TEST(SplitWords, TakesDigitsOneByOne) {
  EXPECT_EQ(split_words("in 1984,", true), (Words{"in", " ", "1", "9", "8", "4", ","}));
}

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

Tensor tensor_of(TensorType type, std::uint64_t elements, const std::vector<std::byte> &bytes) {
  return {type, {elements}, bytes};
}

std::vector<std::byte> patterned(std::size_t size, std::initializer_list<std::size_t> half_scales) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 37 + 11);
  for (std::size_t at : half_scales) {
    const Eigen::half scale(.25f + .001f * static_cast<float>(at));
    std::memcpy(&bytes[at], &scale, 2);
  }
  return bytes;
}

float half_at(const std::vector<std::byte> &bytes, std::size_t at) {
  Eigen::half value;
  std::memcpy(&value, &bytes[at], 2);
  return static_cast<float>(value);
}

int byte_at(const std::vector<std::byte> &bytes, std::size_t at) {
  return std::to_integer<int>(bytes[at]);
}

TEST(Dequantize, FourAndEightBitBlocks) {
  const auto q4_0 = patterned(18, {0}), q4_1 = patterned(20, {0, 2}), q8_0 = patterned(34, {0});
  const auto a = dequantize(tensor_of(TensorType::q4_0, 32, q4_0)),
             b = dequantize(tensor_of(TensorType::q4_1, 32, q4_1)),
             c = dequantize(tensor_of(TensorType::q8_0, 32, q8_0));
  for (std::size_t i = 0; i < 32; ++i) {
    const int shift = i < 16 ? 0 : 4;
    EXPECT_EQ(a[i],
              half_at(q4_0, 0) * static_cast<float>(((byte_at(q4_0, 2 + i % 16) >> shift) & 15) - 8));
    EXPECT_FLOAT_EQ(b[i],
                    half_at(q4_1, 0) * static_cast<float>((byte_at(q4_1, 4 + i % 16) >> shift) & 15) +
                        half_at(q4_1, 2));
    EXPECT_EQ(c[i],
              half_at(q8_0, 0) * static_cast<float>(static_cast<std::int8_t>(byte_at(q8_0, 2 + i))));
  }
}

TEST(Dequantize, SixBitBlocks) {
  const auto bytes = patterned(210, {208});
  const auto x = dequantize(tensor_of(TensorType::q6_k, 256, bytes));
  for (std::size_t i = 0; i < 256; ++i) {
    // element i: half i / 128, run r = i / 32 % 4, column i % 32
    const std::size_t part = i / 128, run = i / 32 % 4, column = i % 32;
    const int nibble = (byte_at(bytes, part * 64 + run % 2 * 32 + column) >> (run < 2 ? 0 : 4)) & 15;
    const int upper = (byte_at(bytes, 128 + part * 32 + column) >> (2 * run)) & 3;
    const auto scale = static_cast<std::int8_t>(byte_at(bytes, 192 + part * 8 + run * 2 + column / 16));
    EXPECT_FLOAT_EQ(x[i], half_at(bytes, 208) * static_cast<float>(scale) *
                              static_cast<float>((nibble | upper << 4) - 32));
  }
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
  const squat::Options published = parse_cache_spec("orthogonal:k2v2:published").options_for(config);
  EXPECT_EQ(published.orthogonal.rank, 32);
  EXPECT_EQ(published.page_tokens, 32);
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
  const std::unique_ptr<Cache> cache = engine->make_cache(spec, spec.options_for(engine->config()));
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
}  // namespace llama::test
