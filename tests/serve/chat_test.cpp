// A conversation becomes a prompt that the assistant goes on with.

#include "chat.hpp"

#include <gtest/gtest.h>

#include <string>

#include "serve/serving.hpp"

namespace llama::serve::test {
namespace {

TEST_F(Serving, ChatsAreLinesOfRolesWhereTheModelHasNoMarks) {
  const std::vector<Message> messages = {{"system", "Be brief."}, {"user", "the inn?"}};
  std::string text;
  for (int token : chat_prompt(messages, tokenizer)) text += tokenizer.decode(token);
  EXPECT_EQ(text, "system: Be brief.\nuser: the inn?\nassistant:");
}

}  // namespace
}  // namespace llama::serve::test
