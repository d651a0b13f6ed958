#pragma once

// Requests as JSON lines, and what comes of them as JSON lines.

#include <cstddef>
#include <istream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <ostream>
#include <span>
#include <string>

#include "inbox.hpp"
#include "json_fields.hpp"
#include "tokenizer.hpp"

namespace engine::serve {

/// A line has a prompt and may have id (else its number), max_tokens, temperature, seed, stop, and
/// parent: the id of a line before it, whose prompt and completion stand before this prompt. Pieces of
/// text are written as they come, and a last line of each request with finish_reason and counts, or with
/// an error.
class RequestLines {
 public:
  RequestLines(const Tokenizer &tokenizer, Inbox &inbox, std::ostream &out)
      : tokenizer_(tokenizer), inbox_(inbox), out_(out) {}

  /// Reads all lines, in a thread of its own if wanted. The inbox is closed once all of them are done.
  void read(std::istream &in);

  /// Lines with an error.
  std::size_t refused() const { return refused_; }

 private:
  struct Line;
  using Tokens = std::span<const int>;

  void read_line(const std::string &text, const std::string &number);
  void write(const Json &json);
  /// tokens: of the line and its completion; none where it has failed.
  void end(Line &line, std::optional<Tokens> tokens);
  void submit(const std::shared_ptr<Line> &line, std::optional<Tokens> before);
  void count_down();

  const Tokenizer &tokenizer_;
  Inbox &inbox_;
  std::ostream &out_;
  std::mutex mutex_;  // of all that follows, and of out_
  std::map<std::string, std::shared_ptr<Line>> lines_;
  std::size_t open_ = 0;  // lines that are not done, and the reading of them
  std::size_t refused_ = 0;
};

}  // namespace engine::serve
