#include "tokenizer.hpp"

#include <unicode/utf8.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>

namespace engine {
namespace {

/// What tokens are, numbered as in the file.
constexpr double normal = 1, user_defined = 4, byte_itself = 6;  // all others: control

/// GPT-2 writes a token's bytes as printable characters: those that are printable as themselves, the
/// others as U+0100 and up in their order. This is the table back.
std::array<int, 512> printable_to_byte() {
  std::array<int, 512> table;
  table.fill(-1);
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    table[static_cast<std::size_t>(printable ? byte : next++)] = byte;
  }
  return table;
}

std::string to_bytes(const std::string &printable) {
  static const std::array<int, 512> table = printable_to_byte();
  std::string bytes;
  const auto *from = reinterpret_cast<const std::uint8_t *>(printable.data());
  const auto size = static_cast<std::int64_t>(printable.size());
  for (std::int64_t i = 0; i < size;) {
    UChar32 point;
    U8_NEXT(from, i, size, point);
    if (point < 0 || point >= 512 || table[static_cast<std::size_t>(point)] < 0) return printable;
    bytes.push_back(static_cast<char>(table[static_cast<std::size_t>(point)]));
  }
  return bytes;
}

/// SentencePiece writes a blank as U+2581.
std::string with_blanks(std::string piece) {
  constexpr std::string_view mark = "\xe2\x96\x81";
  for (std::size_t at = 0; (at = piece.find(mark, at)) != std::string::npos; ++at)
    piece.replace(at, mark.size(), " ");
  return piece;
}

/// The byte of "<0xAB>".
int byte_of(const std::string &name) {
  int byte = -1;
  const char *const end = name.data() + name.size();
  if (name.size() == 6 && name.starts_with("<0x") && name.back() == '>' &&
      std::from_chars(name.data() + 3, end - 1, byte, 16).ptr == end - 1 && byte >= 0)
    return byte;
  throw FileError("token " + name + " is said to be a byte, must be <0x00> to <0xFF> then");
}

PreTokenizer pre_tokenizer_of(const Gguf &file) {
  const std::string pre = file.has("tokenizer.ggml.pre") ? file.string("tokenizer.ggml.pre") : "gpt-2";
  if (pre == "gpt-2" || pre == "default") return PreTokenizer::gpt2;
  if (pre == "smollm") return PreTokenizer::smollm;
  if (pre == "qwen2") return PreTokenizer::qwen2;
  throw FileError("pre-tokenizer " + pre + " is not supported (gpt-2, qwen2 and smollm are)");
}

std::uint64_t pair_key(int left, int right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

}  // namespace

Tokenizer::Tokenizer(const Gguf &file) {
  const std::string &model = file.string("tokenizer.ggml.model");
  if (model != "gpt2" && model != "llama")
    throw FileError("tokenizer " + model + " is not supported (gpt2 and llama are)");
  by_scores_ = model == "llama";
  read_pieces(file);
  if (by_scores_) {
    read_scores(file);
    space_prefix_ = file.integer_or("tokenizer.ggml.add_space_prefix", 1, 0, 1) != 0;
  } else {
    pre_tokenizer_ = pre_tokenizer_of(file);
    read_merges(file);
  }
  const auto token = [&](const char *key) { return file.integer_or(key, -1, 0, size() - 1); };
  end_of_text_ = token("tokenizer.ggml.eos_token_id");
  unknown_ = token("tokenizer.ggml.unknown_token_id");
  if (file.integer_or("tokenizer.ggml.add_bos_token", by_scores_ ? 1 : 0, 0, 1) != 0)
    begin_of_text_ = token("tokenizer.ggml.bos_token_id");
}

void Tokenizer::read_pieces(const Gguf &file) {
  const Strings &names = file.strings("tokenizer.ggml.tokens");
  const Numbers &types = file.numbers("tokenizer.ggml.token_type");
  if (names.empty() || names.size() != types.size() || names.size() > 1u << 24) {
    throw FileError("the vocabulary is empty, too large or without types");
  }
  pieces_.resize(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    const int token = static_cast<int>(i);
    if (types[i] == normal) {
      pieces_[i] = by_scores_ ? with_blanks(names[i]) : to_bytes(names[i]);
      tokens_.emplace(pieces_[i], token);
    } else if (types[i] == byte_itself && by_scores_) {
      const int byte = byte_of(names[i]);
      pieces_[i] = std::string(1, static_cast<char>(byte));
      bytes_[static_cast<std::size_t>(byte)] = token;
    } else {
      if (types[i] == user_defined) add_mark(names[i], token);
      controls_.emplace(names[i], token);
    }
  }
  for (auto &[first, marks] : marks_) {
    std::stable_sort(marks.begin(), marks.end(),
                     [&](int a, int b) { return decode(a).size() > decode(b).size(); });
  }
}

void Tokenizer::add_mark(const std::string &name, int token) {
  if (name.empty()) return;
  pieces_[static_cast<std::size_t>(token)] = name;
  marks_[name.front()].push_back(token);
}

void Tokenizer::read_merges(const Gguf &file) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto token = tokens_.find(std::string(1, static_cast<char>(byte)));
    if (token != tokens_.end()) bytes_[static_cast<std::size_t>(byte)] = token->second;
  }
  const Strings &merges = file.strings("tokenizer.ggml.merges");
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::size_t blank = merges[rank].find(' ', 1);
    if (blank == std::string::npos) throw FileError("merge " + std::to_string(rank) + " is no pair");
    const std::string left = to_bytes(merges[rank].substr(0, blank)),
                      right = to_bytes(merges[rank].substr(blank + 1));
    const auto a = tokens_.find(left), b = tokens_.find(right), both = tokens_.find(left + right);
    if (a == tokens_.end() || b == tokens_.end() || both == tokens_.end()) continue;
    merges_.emplace(pair_key(a->second, b->second), Merge{static_cast<double>(rank), both->second});
  }
}

void Tokenizer::read_scores(const Gguf &file) {
  scores_ = file.numbers("tokenizer.ggml.scores");
  if (scores_.size() != pieces_.size())
    throw FileError("the vocabulary has " + std::to_string(pieces_.size()) + " tokens and " +
                    std::to_string(scores_.size()) + " scores");
  if (!std::all_of(scores_.begin(), scores_.end(), [](double score) { return std::isfinite(score); }))
    throw FileError("scores of the vocabulary are not finite");
}

/// The longest mark that the text begins with, -1 where there is none.
int Tokenizer::mark_at(std::string_view text) const {
  const auto marks = marks_.find(text.front());
  if (marks == marks_.end()) return -1;
  for (int token : marks->second)
    if (text.starts_with(decode(token))) return token;
  return -1;
}

std::vector<int> Tokenizer::encode(std::string_view text) const {
  std::vector<int> tokens;
  std::size_t first = 0;
  for (std::size_t i = 0; i < text.size();) {
    const int mark = mark_at(text.substr(i));
    if (mark < 0) {
      ++i;
      continue;
    }
    encode_span(text.substr(first, i - first), tokens);
    tokens.push_back(mark);
    first = i += decode(mark).size();
  }
  encode_span(text.substr(first), tokens);
  return tokens;
}

std::vector<int> Tokenizer::encode_prompt(std::string_view text) const {
  std::vector<int> tokens = encode(text);
  if (begin_of_text_ >= 0) tokens.insert(tokens.begin(), begin_of_text_);
  return tokens;
}

/// Text without marks.
void Tokenizer::encode_span(std::string_view text, std::vector<int> &tokens) const {
  if (text.empty()) return;
  if (!by_scores_) {
    for (std::string_view word : split_words(text, pre_tokenizer_)) encode_bytes(word, tokens);
  } else if (space_prefix_) {
    encode_characters(" " + std::string(text), tokens);
  } else {
    encode_characters(text, tokens);
  }
}

void Tokenizer::encode_bytes(std::string_view word, std::vector<int> &tokens) const {
  const std::size_t first = tokens.size();
  for (char byte : word) {
    const int token = bytes_[static_cast<unsigned char>(byte)];
    if (token >= 0) tokens.push_back(token);
  }
  merge_pairs(tokens, first, [&](int left, int right) -> std::optional<Merge> {
    const auto merge = merges_.find(pair_key(left, right));
    if (merge == merges_.end()) return std::nullopt;
    return merge->second;
  });
}

/// A character that is no token becomes its bytes, and where these are none, the unknown token.
void Tokenizer::encode_characters(std::string_view text, std::vector<int> &tokens) const {
  const std::size_t first = tokens.size();
  const auto *from = reinterpret_cast<const std::uint8_t *>(text.data());
  const auto size = static_cast<std::int64_t>(text.size());
  for (std::int64_t i = 0; i < size;) {
    const auto begin = static_cast<std::size_t>(i);
    U8_FWD_1(from, i, size);
    const std::string_view character = text.substr(begin, static_cast<std::size_t>(i) - begin);
    if (const auto token = tokens_.find(std::string(character)); token != tokens_.end()) {
      tokens.push_back(token->second);
      continue;
    }
    for (char byte : character) {
      const int token = bytes_[static_cast<unsigned char>(byte)];
      if (token >= 0 || unknown_ >= 0) tokens.push_back(token >= 0 ? token : unknown_);
    }
  }
  merge_pairs(tokens, first, [&](int left, int right) { return merge_by_score(left, right); });
}

std::optional<Merge> Tokenizer::merge_by_score(int left, int right) const {
  if (decode(left).empty() || decode(right).empty()) return std::nullopt;  // no text
  const auto both = tokens_.find(decode(left) + decode(right));
  if (both == tokens_.end()) return std::nullopt;
  return Merge{-scores_[static_cast<std::size_t>(both->second)], both->second};
}

std::vector<int> encode_file(const std::string &path, const Tokenizer &tokenizer, std::size_t most) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::invalid_argument("cannot open " + path);
  std::stringstream text;
  text << in.rdbuf();
  std::vector<int> tokens = tokenizer.encode(text.str());
  if (tokens.empty()) throw std::invalid_argument(path + " is empty");
  tokens.resize(std::min(tokens.size(), most));
  return tokens;
}

}  // namespace engine
