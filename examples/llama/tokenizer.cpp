#include "tokenizer.hpp"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace llama {
namespace {

enum class Kind { letter, number, space, other, end };

/// The text's code points one after another; bytes that are no UTF-8 count as marks of their own.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  std::size_t position() const { return position_; }
  void move_to(std::size_t position) { position_ = position; }

  Kind peek() const {
    std::size_t ignored = position_;
    return next(ignored);
  }
  Kind take() { return next(position_); }

  /// Passes all code points of one kind.
  void skip(Kind kind) {
    while (peek() == kind) take();
  }

  /// Passes a contraction ('s, 't, 're, 've, 'm, 'll, 'd) if one is here.
  bool skip_contraction() {
    for (std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      if (text_.substr(position_).starts_with(ending)) {
        position_ += ending.size();
        return true;
      }
    }
    return false;
  }

  bool at_blank() const { return position_ < text_.size() && text_[position_] == ' '; }

 private:
  Kind next(std::size_t &position) const {
    if (position >= text_.size()) return Kind::end;
    const auto *bytes = reinterpret_cast<const std::uint8_t *>(text_.data());
    auto i = static_cast<std::int64_t>(position);
    const auto size = static_cast<std::int64_t>(text_.size());
    UChar32 point;
    U8_NEXT(bytes, i, size, point);
    position = static_cast<std::size_t>(i);
    if (point < 0) return Kind::other;
    const auto mask = U_GET_GC_MASK(point);
    if (mask & U_GC_L_MASK) return Kind::letter;
    if (mask & U_GC_N_MASK) return Kind::number;
    return u_isUWhiteSpace(point) ? Kind::space : Kind::other;
  }

  std::string_view text_;
  std::size_t position_ = 0;
};

/// White space at the scanner: all of it up to the last one where a word follows, which takes that one
/// along.
void skip_space(Scanner &scanner) {
  std::size_t last = scanner.position();
  bool several = false;
  scanner.take();
  while (scanner.peek() == Kind::space) {
    several = true;
    last = scanner.position();
    scanner.take();
  }
  if (several && scanner.peek() != Kind::end) scanner.move_to(last);
}

void split_span(std::string_view text, std::vector<std::string_view> &words) {
  Scanner scanner(text);
  while (scanner.peek() != Kind::end) {
    const std::size_t first = scanner.position();
    if (!scanner.skip_contraction()) {
      const bool blank = scanner.at_blank();
      if (blank) scanner.take();
      const Kind kind = scanner.peek();
      if (kind == Kind::letter || kind == Kind::number || kind == Kind::other) {
        scanner.skip(kind);
      } else {
        scanner.move_to(first);
        skip_space(scanner);
      }
    }
    words.push_back(text.substr(first, scanner.position() - first));
  }
}

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

std::uint64_t pair_key(int left, int right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view text, bool single_digits) {
  std::vector<std::string_view> words;
  if (!single_digits) {
    split_span(text, words);
    return words;
  }
  Scanner scanner(text);
  std::size_t first = 0;
  while (scanner.peek() != Kind::end) {
    const std::size_t here = scanner.position();
    if (scanner.take() != Kind::number) continue;
    split_span(text.substr(first, here - first), words);
    words.push_back(text.substr(here, scanner.position() - here));
    first = scanner.position();
  }
  split_span(text.substr(first), words);
  return words;
}

Tokenizer::Tokenizer(const Gguf &file) {
  if (file.string("tokenizer.ggml.model") != "gpt2")
    throw FileError("the tokenizer is no byte-level BPE (gpt2)");
  const std::string pre = file.has("tokenizer.ggml.pre") ? file.string("tokenizer.ggml.pre") : "gpt-2";
  if (pre != "smollm" && pre != "gpt-2" && pre != "default") {
    throw FileError("pre-tokenizer " + pre + " is not supported (smollm and gpt-2 are)");
  }
  single_digits_ = pre == "smollm";

  const Strings &names = file.strings("tokenizer.ggml.tokens");
  const Numbers &types = file.numbers("tokenizer.ggml.token_type");
  if (names.empty() || names.size() != types.size() || names.size() > 1u << 24) {
    throw FileError("the vocabulary is empty, too large or without types");
  }
  constexpr double normal = 1;
  pieces_.resize(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (types[i] != normal) {
      controls_.emplace(names[i], static_cast<int>(i));
      continue;
    }
    pieces_[i] = to_bytes(names[i]);
    tokens_.emplace(pieces_[i], static_cast<int>(i));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto token = tokens_.find(std::string(1, static_cast<char>(byte)));
    bytes_.push_back(token == tokens_.end() ? -1 : token->second);
  }
  const Strings &merges = file.strings("tokenizer.ggml.merges");
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::size_t blank = merges[rank].find(' ', 1);
    if (blank == std::string::npos) throw FileError("merge " + std::to_string(rank) + " is no pair");
    const std::string left = to_bytes(merges[rank].substr(0, blank)),
                      right = to_bytes(merges[rank].substr(blank + 1));
    const auto a = tokens_.find(left), b = tokens_.find(right), both = tokens_.find(left + right);
    if (a == tokens_.end() || b == tokens_.end() || both == tokens_.end()) continue;
    merges_.emplace(pair_key(a->second, b->second), Merge{static_cast<int>(rank), both->second});
  }
  end_of_text_ = file.integer_or("tokenizer.ggml.eos_token_id", -1, 0, size() - 1);
}

std::vector<int> Tokenizer::encode(std::string_view text) const {
  std::vector<int> tokens;
  for (std::string_view word : split_words(text, single_digits_)) encode_word(word, tokens);
  return tokens;
}

void Tokenizer::encode_word(std::string_view word, std::vector<int> &tokens) const {
  const auto first = static_cast<std::ptrdiff_t>(tokens.size());
  for (char byte : word) {
    const int token = bytes_[static_cast<unsigned char>(byte)];
    if (token >= 0) tokens.push_back(token);
  }
  while (true) {
    int best = std::numeric_limits<int>::max(), merged = 0;
    std::ptrdiff_t where = 0;
    for (std::ptrdiff_t i = first; i + 1 < static_cast<std::ptrdiff_t>(tokens.size()); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const auto merge = merges_.find(pair_key(tokens[at], tokens[at + 1]));
      if (merge == merges_.end() || merge->second.rank >= best) continue;
      best = merge->second.rank;
      merged = merge->second.token;
      where = i;
    }
    if (best == std::numeric_limits<int>::max()) return;
    tokens[static_cast<std::size_t>(where)] = merged;
    tokens.erase(tokens.begin() + where + 1);
  }
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

}  // namespace llama
