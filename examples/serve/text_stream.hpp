#pragma once

// The pieces that tokens stand for, as text that can be shown.

#include <string>
#include <string_view>
#include <vector>

namespace engine::serve {

/// Holds back characters that are not whole yet, and what may be the beginning of a text that the
/// completion ends before.
class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Takes the next piece. Returns what can be shown by now.
  std::string push(std::string_view piece);
  /// Whether one of the stops has come: nothing follows.
  bool stopped() const { return stopped_; }
  /// What was held back, once nothing follows.
  std::string rest();

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace engine::serve
