// A vocabulary with scores (SentencePiece) merges by them, and falls back on bytes.

#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "tokenizer.hpp"

namespace engine::test::scored_tokenizer_test {
namespace {

const std::string blank = "\xe2\x96\x81";  // as files write it

struct Vocabulary {
  std::vector<std::string> tokens = {"<unk>", "<bos>", "a",    "b",      "c",      blank,      "ab",
                                     "bc",    "abc",   "\n\n", "<0xC3>", "<0xA9>", blank + "a"};
  std::vector<std::int32_t> types = {2, 3, 1, 1, 1, 1, 1, 1, 1, 4, 6, 6, 1};
  std::vector<float> scores = {0, 0, -9, -9, -9, -9, -2, -1, -3, 0, 0, 0, -8};
  std::uint32_t space_prefix = 0;

  Gguf file() const { return Gguf(bytes()); }

  std::vector<std::byte> bytes() const {
    GgufWriter writer;
    writer.put<std::uint32_t>(0x46554747);
    writer.put<std::uint32_t>(3);
    writer.put<std::uint64_t>(0);
    writer.put<std::uint64_t>(7);
    writer.string("tokenizer.ggml.model", "llama");
    writer.strings("tokenizer.ggml.tokens", tokens);
    writer.integers("tokenizer.ggml.token_type", types);
    writer.reals("tokenizer.ggml.scores", scores);
    writer.integer("tokenizer.ggml.unknown_token_id", 0);
    writer.integer("tokenizer.ggml.bos_token_id", 1);
    writer.integer("tokenizer.ggml.add_space_prefix", space_prefix);
    writer.align(32);
    return writer.take();
  }
};

std::vector<std::string> pieces(const Tokenizer &tokenizer, const std::string &text) {
  std::vector<std::string> all;
  for (int token : tokenizer.encode(text)) all.push_back(tokenizer.decode(token));
  return all;
}

using Pieces = std::vector<std::string>;

TEST(ScoredTokenizer, MergesTheBestPairFirst) {
  const Tokenizer tokenizer(Vocabulary().file());
  EXPECT_EQ(pieces(tokenizer, "abc"), (Pieces{"abc"}));  // bc, the better one, and then a + bc
  EXPECT_EQ(pieces(tokenizer, "abab"), (Pieces{"ab", "ab"}));
  EXPECT_EQ(pieces(tokenizer, "b a"), (Pieces{"b", " a"}));
  EXPECT_EQ(pieces(tokenizer, "b  b"), (Pieces{"b", " ", " ", "b"}));
}

TEST(ScoredTokenizer, WritesUnknownCharactersInBytes) {
  const Tokenizer tokenizer(Vocabulary().file());
  EXPECT_EQ(tokenizer.encode("a\u00e9"), (std::vector<int>{2, 10, 11}));
  EXPECT_EQ(pieces(tokenizer, "a\u00e9"), (Pieces{"a", "\xc3", "\xa9"}));
  EXPECT_EQ(tokenizer.encode("z"), (std::vector<int>{0}));  // nor is its byte there
}

TEST(ScoredTokenizer, FindsTokensThatStandForTheirText) {
  const Tokenizer tokenizer(Vocabulary().file());
  EXPECT_EQ(pieces(tokenizer, "ab\n\nc"), (Pieces{"ab", "\n\n", "c"}));
}

TEST(ScoredTokenizer, BeginsAPromptAsTheFileSays) {
  Vocabulary vocabulary;
  EXPECT_EQ(Tokenizer(vocabulary.file()).encode_prompt("ab"), (std::vector<int>{1, 6}));
  vocabulary.space_prefix = 1;
  EXPECT_EQ(pieces(Tokenizer(vocabulary.file()), "ab"), (Pieces{" ", "ab"}));
}

TEST(ScoredTokenizer, SurvivesThreeThousandMutations) {
  const std::vector<std::byte> whole = Vocabulary().bytes();
  std::mt19937 random(3);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::byte> bytes = whole;
    for (unsigned change = 0; change <= random() % 3; ++change)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    try {
      const Gguf file(std::move(bytes));
      const Tokenizer tokenizer(file);
      for (int token : tokenizer.encode_prompt("abc a\n\n\u00e9 zb")) {
        ASSERT_GE(token, 0);
        ASSERT_LT(token, tokenizer.size());
      }
    } catch (const FileError &) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 300);
  EXPECT_LT(refused, 3000);
}

TEST(ScoredTokenizer, RefusesWhatIsNone) {
  Vocabulary few, bad, endless;
  few.scores.pop_back();
  EXPECT_THROW(Tokenizer(few.file()), FileError);
  bad.tokens[10] = "<0xG3>";
  EXPECT_THROW(Tokenizer(bad.file()), FileError);
  endless.scores[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(Tokenizer(endless.file()), FileError);
}

}  // namespace
}  // namespace engine::test::scored_tokenizer_test
