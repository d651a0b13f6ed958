#pragma once

// A conversation as a prompt.

#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace engine {

struct Message {
  std::string role;
  std::string content;
};

/// In the form whose marks the model knows: ChatML (<|im_start|>, <|im_end|>: SmolLM2, Qwen) or Gemma's
/// turns
/// (<start_of_turn>, <end_of_turn>), in which the assistant is the model, and what the system says
/// begins the next message; else in lines that begin with the role. The assistant's next message
/// follows.
std::vector<int> chat_prompt(const std::vector<Message> &messages, const Tokenizer &tokenizer);

/// The token that ends a message, -1 where the model has no marks.
int end_of_message(const Tokenizer &tokenizer);

}  // namespace engine
