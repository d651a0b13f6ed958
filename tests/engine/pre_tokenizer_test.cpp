// Text is cut into words as the models' own pre-tokenizers cut it.

#include "pre_tokenizer.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace engine::test::pre_tokenizer_test {
namespace {

using Words = std::vector<std::string_view>;

TEST(SplitWords, IsGpt2s) {
  EXPECT_EQ(
      split_words("I'm the 2nd, aren't  I?\n\n ok ", PreTokenizer::gpt2),
      (Words{"I", "'m", " the", " 2", "nd", ",", " aren", "'t", " ", " I", "?", "\n\n", " ok", " "}));
  EXPECT_EQ(split_words("caf\u00e9 \u2013 \u00fcber", PreTokenizer::gpt2),
            (Words{"caf\u00e9", " \u2013", " \u00fcber"}));
}

TEST(SplitWords, TakesDigitsOneByOneForSmolLm) {
  EXPECT_EQ(split_words("in 1984,", PreTokenizer::smollm), (Words{"in", " ", "1", "9", "8", "4", ","}));
}

TEST(SplitWords, IsQwen2s) {
  const auto words = [](std::string_view text) { return split_words(text, PreTokenizer::qwen2); };
  EXPECT_EQ(words("I'M he'Ll don't"), (Words{"I", "'M", " he", "'Ll", " don", "'t"}));
  EXPECT_EQ(words("in 1984, x2"), (Words{"in", " ", "1", "9", "8", "4", ",", " x", "2"}));
  // Any one mark goes with the letters behind it; marks take the line ends behind them.
  EXPECT_EQ(words("f(x)\n\n  y;\r\nz \"Q\""),
            (Words{"f", "(x", ")\n\n", " ", " y", ";\r\n", "z", " \"", "Q", "\""}));
  // White space ends at its last line end, and else one before a word.
  EXPECT_EQ(words("a \n \n  b   "), (Words{"a", " \n \n", " ", " b", "   "}));
  EXPECT_EQ(words("\tcaf\u00e9\n7 \u00fc"), (Words{"\tcaf\u00e9", "\n", "7", " \u00fc"}));
}

TEST(SplitWords, KeepsEveryByte) {
  const std::string_view text = "\xff x'\xc3 '' \n\t1\u00e9\xe2\x80";
  for (PreTokenizer kind : {PreTokenizer::gpt2, PreTokenizer::smollm, PreTokenizer::qwen2}) {
    std::string all;
    for (std::string_view word : split_words(text, kind)) {
      EXPECT_FALSE(word.empty());
      all += word;
    }
    EXPECT_EQ(all, text);
  }
}

}  // namespace
}  // namespace engine::test::pre_tokenizer_test
