#pragma once

// Which windows of a text a model is fed: what programs take on their command line, and the tokens.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace engine {

struct TextWindows {
  int windows, length, prompt;  // of the text; tokens of a window, and of its prompt
  int first = 0;                // token of the text at which the first window begins
  std::string model{}, text{};  // files

  void add_options(CLI::App &app) {
    app.add_option("MODEL", model, "GGUF file")->required();
    app.add_option("TEXT-FILE", text, "Text, UTF-8")->required();
    app.add_option("--windows", windows, "Windows of the text")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--first", first, "Token of the text at which the first window begins")
        ->check(CLI::Range(0, 1 << 30))
        ->capture_default_str();
    app.add_option("--length", length, "Tokens of a window")
        ->check(CLI::Range(3, 1 << 20))
        ->capture_default_str();
    app.add_option("--prompt", prompt, "Tokens of a window's prompt")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
  }

  void check_prompt() const {
    if (prompt >= length - 1) {
      throw std::invalid_argument(
          fmt::format("--prompt is {}, must be below --length {} minus 1", prompt, length));
    }
  }

  void check_context(int context) const {
    if (length > context) {
      throw std::invalid_argument(
          fmt::format("--length is {}, the model's context is {}", length, context));
    }
  }

  /// The tokens of the windows, which stand one behind the other in the text's. Each begins with the
  /// token that the model wants at the start of a text, if it wants one: begin, or below 0.
  std::vector<int> cut(const std::vector<int> &tokens, int begin) const {
    const std::ptrdiff_t own = length - (begin >= 0), wanted = windows * own;
    if (static_cast<std::ptrdiff_t>(tokens.size()) < first + wanted) {
      throw std::invalid_argument(
          fmt::format("{} has {} tokens, {} windows of {} from token {} on need {}", text, tokens.size(),
                      windows, length, first, first + wanted));
    }
    std::vector<int> cut;
    for (auto from = tokens.begin() + first; from != tokens.begin() + first + wanted; from += own) {
      if (begin >= 0) cut.push_back(begin);
      cut.insert(cut.end(), from, from + own);
    }
    return cut;
  }
};

}  // namespace engine
