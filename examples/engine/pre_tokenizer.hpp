#pragma once

// How text is cut into words before byte pairs are merged, which never reach across two of them.

#include <string_view>
#include <vector>

namespace engine {

enum class PreTokenizer {
  gpt2,  ///< contractions, letters, digits, other marks and white space, a word with the blank before it
  smollm,  ///< likewise, every digit a word of its own
  qwen2,   ///< as OpenAI's cl100k: a word with any one mark before it, contractions in capitals too,
           ///< every digit alone, marks with the line ends behind them, white space up to its last line
           ///< end
};

std::vector<std::string_view> split_words(std::string_view text, PreTokenizer kind);

}  // namespace engine
