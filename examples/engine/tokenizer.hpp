#pragma once

// Byte-pair encoding, vocabulary and merges read from the model file: of bytes (GPT-2, Qwen) or of
// characters by their scores (SentencePiece: Llama 2, Gemma).

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"
#include "merge_pairs.hpp"
#include "pre_tokenizer.hpp"

namespace engine {

class Tokenizer {
 public:
  /// Throws FileError where the file holds no such vocabulary.
  explicit Tokenizer(const Gguf &file);

  /// Plain text to tokens; names of control tokens in it are text too.
  std::vector<int> encode(std::string_view text) const;

  /// The tokens of a text at which a sequence begins: behind begin_of_text() where there is one.
  std::vector<int> encode_prompt(std::string_view text) const;

  /// The bytes a token stands for; nothing for control tokens.
  const std::string &decode(int token) const { return pieces_[static_cast<std::size_t>(token)]; }

  int size() const { return static_cast<int>(pieces_.size()); }
  /// The token that every sequence is to begin with, -1 where there is none.
  int begin_of_text() const { return begin_of_text_; }
  int end_of_text() const { return end_of_text_; }
  /// The control token of that name, -1 where there is none.
  int control(const std::string &name) const {
    const auto found = controls_.find(name);
    return found == controls_.end() ? -1 : found->second;
  }

 private:
  void read_pieces(const Gguf &file);
  void read_merges(const Gguf &file);
  void read_scores(const Gguf &file);
  void add_mark(const std::string &name, int token);
  int mark_at(std::string_view text) const;
  void encode_span(std::string_view text, std::vector<int> &tokens) const;
  void encode_bytes(std::string_view word, std::vector<int> &tokens) const;
  void encode_characters(std::string_view text, std::vector<int> &tokens) const;
  std::optional<Merge> merge_by_score(int left, int right) const;

  bool by_scores_ = false;  // else of bytes, by merges
  std::vector<std::string> pieces_;
  std::unordered_map<std::string, int> tokens_, controls_;
  // Tokens that stand for their text wherever it is found, the longest first, by its first byte.
  std::unordered_map<char, std::vector<int>> marks_;
  std::unordered_map<std::uint64_t, Merge> merges_;  // of two tokens
  std::vector<double> scores_;
  std::vector<int> bytes_ = std::vector<int>(256, -1);  // the token of every byte
  int begin_of_text_ = -1, end_of_text_ = -1, unknown_ = -1;
  bool space_prefix_ = false;  // text begins with a blank
  PreTokenizer pre_tokenizer_ = PreTokenizer::gpt2;
};

/// The first tokens of a text file, at most `most`. Throws std::invalid_argument where it cannot be read
/// or is empty.
std::vector<int> encode_file(const std::string &path, const Tokenizer &tokenizer,
                             std::size_t most = std::numeric_limits<std::size_t>::max());

}  // namespace engine
