#include "chat.hpp"

#include <string_view>

namespace llama::serve {

std::vector<int> chat_prompt(const std::vector<Message> &messages, const Tokenizer &tokenizer) {
  const int start = tokenizer.control("<|im_start|>"), end = tokenizer.control("<|im_end|>");
  const bool marks = start >= 0 && end >= 0;
  std::vector<int> prompt;
  const auto add = [&](std::string_view text) {
    const std::vector<int> tokens = tokenizer.encode(text);
    prompt.insert(prompt.end(), tokens.begin(), tokens.end());
  };
  for (const Message &message : messages) {
    if (marks) prompt.push_back(start);
    add(message.role + (marks ? "\n" : ": ") + message.content);
    if (marks) prompt.push_back(end);
    add("\n");
  }
  if (marks) prompt.push_back(start);
  add(marks ? "assistant\n" : "assistant:");
  return prompt;
}

}  // namespace llama::serve
