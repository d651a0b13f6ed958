#pragma once

// A conversation as a prompt.

#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace llama::serve {

struct Message {
  std::string role;
  std::string content;
};

/// In ChatML where the model knows its marks, <|im_start|> and <|im_end|>; else in lines that begin with
/// the role. The assistant's next message follows.
std::vector<int> chat_prompt(const std::vector<Message> &messages, const Tokenizer &tokenizer);

}  // namespace llama::serve
