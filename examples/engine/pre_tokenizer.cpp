#include "pre_tokenizer.hpp"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <cstddef>
#include <cstdint>

namespace engine {
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
  bool skip_contraction(bool any_case) {
    for (std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      if (starts_with(ending, any_case)) {
        position_ += ending.size();
        return true;
      }
    }
    return false;
  }

  bool at(char c) const { return position_ < text_.size() && text_[position_] == c; }
  bool at_line_end() const { return at('\r') || at('\n'); }

 private:
  bool starts_with(std::string_view lower, bool any_case) const {
    if (text_.size() - position_ < lower.size()) return false;
    for (std::size_t i = 0; i < lower.size(); ++i) {
      const char c = text_[position_ + i];
      const bool same = c == lower[i] || (any_case && c >= 'A' && c <= 'Z' && c - 'A' + 'a' == lower[i]);
      if (!same) return false;
    }
    return true;
  }

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

/// One word of GPT-2:
/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
void skip_gpt2_word(Scanner &scanner) {
  if (scanner.skip_contraction(false)) return;
  const std::size_t first = scanner.position();
  if (scanner.at(' ')) scanner.take();
  const Kind kind = scanner.peek();
  if (kind == Kind::letter || kind == Kind::number || kind == Kind::other) {
    scanner.skip(kind);
  } else {
    scanner.move_to(first);
    skip_space(scanner);
  }
}

/// [^\r\n\p{L}\p{N}]?\p{L}+ if it is here.
bool skip_letters(Scanner &scanner) {
  const std::size_t first = scanner.position();
  if (scanner.peek() != Kind::letter && scanner.peek() != Kind::number && !scanner.at_line_end())
    scanner.take();
  if (scanner.peek() == Kind::letter) {
    scanner.skip(Kind::letter);
    return true;
  }
  scanner.move_to(first);
  return false;
}

/// \p{N}| ?[^\s\p{L}\p{N}]+[\r\n]* if it is here.
bool skip_number_or_marks(Scanner &scanner) {
  const std::size_t first = scanner.position();
  if (scanner.peek() == Kind::number) {
    scanner.take();
    return true;
  }
  if (scanner.at(' ')) scanner.take();
  if (scanner.peek() == Kind::other) {
    scanner.skip(Kind::other);
    while (scanner.at_line_end()) scanner.take();
    return true;
  }
  scanner.move_to(first);
  return false;
}

/// One word of Qwen 2: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|
/// ?[^\s\p{L}\p{N}]+[\r\n]*
/// |\s*[\r\n]+|\s+(?!\S)|\s+
void skip_qwen2_word(Scanner &scanner) {
  if (scanner.skip_contraction(true) || skip_letters(scanner) || skip_number_or_marks(scanner)) return;
  const std::size_t first = scanner.position();
  std::size_t line_end = first;  // behind the last one
  while (scanner.peek() == Kind::space) {
    const bool ends = scanner.at_line_end();
    scanner.take();
    if (ends) line_end = scanner.position();
  }
  scanner.move_to(line_end);
  if (line_end == first) skip_space(scanner);
}

void split_span(std::string_view text, void (*skip_word)(Scanner &),
                std::vector<std::string_view> &words) {
  Scanner scanner(text);
  while (scanner.peek() != Kind::end) {
    const std::size_t first = scanner.position();
    skip_word(scanner);
    words.push_back(text.substr(first, scanner.position() - first));
  }
}

void split_smollm(std::string_view text, std::vector<std::string_view> &words) {
  Scanner scanner(text);
  std::size_t first = 0;
  while (scanner.peek() != Kind::end) {
    const std::size_t here = scanner.position();
    if (scanner.take() != Kind::number) continue;
    split_span(text.substr(first, here - first), skip_gpt2_word, words);
    words.push_back(text.substr(here, scanner.position() - here));
    first = scanner.position();
  }
  split_span(text.substr(first), skip_gpt2_word, words);
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view text, PreTokenizer kind) {
  std::vector<std::string_view> words;
  switch (kind) {
    case PreTokenizer::gpt2:
      split_span(text, skip_gpt2_word, words);
      break;
    case PreTokenizer::smollm:
      split_smollm(text, words);
      break;
    case PreTokenizer::qwen2:
      split_span(text, skip_qwen2_word, words);
      break;
  }
  return words;
}

}  // namespace engine
