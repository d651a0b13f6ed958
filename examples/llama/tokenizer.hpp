#pragma once

// Byte-level byte-pair encoding (GPT-2), vocabulary and merges read from the model file.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"

namespace llama {

/// Splits text as the GPT-2 pre-tokenizer does: contractions, letters, digits, other marks and white
/// space, a word with the blank before it. `single_digits`: every digit a piece of its own (SmolLM).
std::vector<std::string_view> split_words(std::string_view text, bool single_digits);

class Tokenizer {
 public:
  /// Throws FileError where the file holds no such vocabulary.
  explicit Tokenizer(const Gguf &file);

  /// Plain text to tokens; names of control tokens in it are text too.
  std::vector<int> encode(std::string_view text) const;

  /// The bytes a token stands for; nothing for control tokens.
  const std::string &decode(int token) const { return pieces_[static_cast<std::size_t>(token)]; }

  int size() const { return static_cast<int>(pieces_.size()); }
  int end_of_text() const { return end_of_text_; }
  /// The control token of that name, -1 where there is none.
  int control(const std::string &name) const {
    const auto found = controls_.find(name);
    return found == controls_.end() ? -1 : found->second;
  }

 private:
  struct Merge {
    int rank;
    int token;
  };

  void encode_word(std::string_view word, std::vector<int> &tokens) const;

  std::vector<std::string> pieces_;
  std::unordered_map<std::string, int> tokens_, controls_;
  std::unordered_map<std::uint64_t, Merge> merges_;  // of two tokens
  std::vector<int> bytes_;                           // the token of every byte
  int end_of_text_ = -1;
  bool single_digits_ = false;
};

/// The first tokens of a text file, at most `most`. Throws std::invalid_argument where it cannot be read
/// or is empty.
std::vector<int> encode_file(const std::string &path, const Tokenizer &tokenizer,
                             std::size_t most = std::numeric_limits<std::size_t>::max());

}  // namespace llama
