#include "chat.hpp"

#include <string_view>

namespace engine {
namespace {

struct Marks {
  int start = -1, end = -1;
  explicit operator bool() const { return start >= 0 && end >= 0; }
};

Marks chat_ml(const Tokenizer &tokenizer) {
  return {tokenizer.control("<|im_start|>"), tokenizer.control("<|im_end|>")};
}
Marks turns(const Tokenizer &tokenizer) {
  return {tokenizer.control("<start_of_turn>"), tokenizer.control("<end_of_turn>")};
}

/// Gemma knows two roles.
std::vector<Message> as_turns(const std::vector<Message> &messages) {
  std::vector<Message> two;
  std::string before;
  for (const Message &message : messages) {
    if (message.role == "system") {
      before += message.content + "\n\n";
      continue;
    }
    two.push_back({message.role == "assistant" ? "model" : message.role, before + message.content});
    before.clear();
  }
  if (!before.empty()) two.push_back({"user", before});
  return two;
}

}  // namespace

std::vector<int> chat_prompt(const std::vector<Message> &messages, const Tokenizer &tokenizer) {
  Marks marks = chat_ml(tokenizer);
  const bool in_turns = !marks && turns(tokenizer);
  if (in_turns) marks = turns(tokenizer);
  std::vector<int> prompt;
  if (tokenizer.begin_of_text() >= 0) prompt.push_back(tokenizer.begin_of_text());
  const auto add = [&](std::string_view text) {
    const std::vector<int> tokens = tokenizer.encode(text);
    prompt.insert(prompt.end(), tokens.begin(), tokens.end());
  };
  for (const Message &message : in_turns ? as_turns(messages) : messages) {
    if (marks) prompt.push_back(marks.start);
    add(message.role + (marks ? "\n" : ": ") + message.content);
    if (marks) prompt.push_back(marks.end);
    add("\n");
  }
  if (marks) prompt.push_back(marks.start);
  add(in_turns ? "model\n" : marks ? "assistant\n" : "assistant:");
  return prompt;
}

int end_of_message(const Tokenizer &tokenizer) {
  if (const Marks marks = chat_ml(tokenizer)) return marks.end;
  const Marks marks = turns(tokenizer);
  return marks ? marks.end : -1;
}

}  // namespace engine
