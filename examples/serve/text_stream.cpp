#include "text_stream.hpp"

#include <algorithm>
#include <utility>

namespace engine::serve {
namespace {

/// Bytes at the end of a text that begin a UTF-8 character without ending it.
std::size_t unfinished_bytes(std::string_view text) {
  constexpr std::size_t longest = 4;
  for (std::size_t back = 1; back <= std::min(longest - 1, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xc0u) == 0x80u) continue;          // in a character
    const std::size_t length = byte >= 0xf8u   ? 1  // of no character
                               : byte >= 0xf0u ? 4
                               : byte >= 0xe0u ? 3
                               : byte >= 0xc0u ? 2
                                               : 1;
    return length > back ? back : 0;
  }
  return 0;
}

/// Bytes at the end of a text that `stop` begins with, all of it aside.
std::size_t begun_bytes(std::string_view text, std::string_view stop) {
  for (std::size_t count = std::min(text.size(), stop.size() - 1); count > 0; --count) {
    if (text.ends_with(stop.substr(0, count))) return count;
  }
  return 0;
}

}  // namespace

std::string TextStream::push(std::string_view piece) {
  if (stopped_) return {};
  held_ += piece;
  std::size_t end = held_.size() - unfinished_bytes(held_), first_stop = std::string::npos;
  for (const std::string &stop : stops_) {
    first_stop = std::min(first_stop, held_.find(stop));
    end = std::min(end, held_.size() - begun_bytes(held_, stop));
  }
  if (first_stop != std::string::npos) {
    stopped_ = true;
    end = first_stop;
  }
  std::string shown = held_.substr(0, end);
  held_.erase(0, end);
  return shown;
}

std::string TextStream::rest() { return stopped_ ? std::string() : std::exchange(held_, {}); }

}  // namespace engine::serve
