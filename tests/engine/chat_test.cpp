// A conversation becomes a prompt that the assistant goes on with.

#include "chat.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/small_model.hpp"
#include "gguf.hpp"

namespace engine::test::chat_test {
namespace {

const std::vector<Message> messages = {
    {"system", "Be brief."}, {"user", "the inn?"}, {"assistant", "in"}, {"user", "thin"}};

/// The prompt over a vocabulary with two marks, which are written as their names.
std::string prompt_with(const std::string &start, const std::string &end) {
  GgufWriter file;
  SmallVocabulary vocabulary = small_vocabulary();
  for (const std::string &mark : {start, end}) {
    vocabulary.tokens.push_back(mark);
    vocabulary.types.push_back(3);
  }
  file.put<std::uint32_t>(0x46554747);
  file.put<std::uint32_t>(3);
  file.put<std::uint64_t>(0);
  file.put<std::uint64_t>(4);
  file.string("tokenizer.ggml.model", "gpt2");
  file.strings("tokenizer.ggml.tokens", vocabulary.tokens);
  file.integers("tokenizer.ggml.token_type", vocabulary.types);
  file.strings("tokenizer.ggml.merges", {});
  file.align(32);
  const Gguf gguf(file.take());
  const Tokenizer tokenizer(gguf);
  EXPECT_EQ(end_of_message(tokenizer), start == "a" ? -1 : tokenizer.size() - 1);
  std::string text;
  for (int token : chat_prompt(messages, tokenizer)) {
    const std::string &piece = tokenizer.decode(token);
    text += piece.empty() ? vocabulary.tokens[static_cast<std::size_t>(token)] : piece;
  }
  return text;
}

TEST(Chat, IsChatMlWhereTheModelKnowsIt) {
  EXPECT_EQ(prompt_with("<|im_start|>", "<|im_end|>"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe inn?<|im_end|>\n"
            "<|im_start|>assistant\nin<|im_end|>\n<|im_start|>user\nthin<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST(Chat, IsTurnsForGemma) {
  EXPECT_EQ(prompt_with("<start_of_turn>", "<end_of_turn>"),
            "<start_of_turn>user\nBe brief.\n\nthe inn?<end_of_turn>\n<start_of_turn>model\nin"
            "<end_of_turn>\n<start_of_turn>user\nthin<end_of_turn>\n<start_of_turn>model\n");
}

TEST(Chat, IsLinesOfRolesWhereTheModelHasNoMarks) {
  EXPECT_EQ(prompt_with("a", "b"),
            "system: Be brief.\nuser: the inn?\nassistant: in\nuser: thin\nassistant:");
}

}  // namespace
}  // namespace engine::test::chat_test
