#include "config.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace llama {

Config read_config(const Gguf &file) {
  if (file.string("general.architecture") != "llama") {
    throw FileError("architecture " + file.string("general.architecture") +
                    " is not supported (llama is)");
  }
  constexpr int most = 1 << 20;
  Config config;
  config.layers = file.integer("llama.block_count", 1, 1024);
  config.embedding = file.integer("llama.embedding_length", 1, most);
  config.feed_forward = file.integer("llama.feed_forward_length", 1, most);
  config.query_heads = file.integer("llama.attention.head_count", 1, 1024);
  config.kv_heads =
      file.integer_or("llama.attention.head_count_kv", config.query_heads, 1, config.query_heads);
  config.head_dim =
      file.integer_or("llama.attention.key_length", config.embedding / config.query_heads, 1, 512);
  config.vocabulary =
      static_cast<int>(std::min<std::size_t>(file.strings("tokenizer.ggml.tokens").size(), 1 << 24));
  config.context = file.integer_or("llama.context_length", 2048, 1, 1 << 24);
  config.rotary_dim = file.integer_or("llama.rope.dimension_count", config.head_dim, 2, config.head_dim);
  config.rms_epsilon =
      static_cast<float>(file.number_or("llama.attention.layer_norm_rms_epsilon", 1e-5));
  config.rotary_base = file.number_or("llama.rope.freq_base", 10000);
  if (config.query_heads % config.kv_heads != 0)
    throw FileError("query heads are no multiple of KV heads");
  if (config.head_dim % 16 != 0) throw FileError("the head dimension is no multiple of 16");
  if (config.rotary_dim % 2 != 0) throw FileError("the rotary dimension is odd");
  if (!(config.rotary_base > 0) || !std::isfinite(config.rotary_base))
    throw FileError("the rotary base is not positive");
  if (file.has("llama.rope.scaling.type") && file.string("llama.rope.scaling.type") != "none") {
    throw FileError("rotary scaling " + file.string("llama.rope.scaling.type") + " is not supported");
  }
  for (int pair = 0; pair < config.rotary_dim / 2; ++pair) {
    config.inverse_frequencies.push_back(
        static_cast<float>(std::pow(config.rotary_base, -2.0 * pair / config.rotary_dim)));
  }
  return config;
}

void check_tokens(const Config &config, std::span<const Position> batch) {
  for (const Position &entry : batch) {
    if (entry.token < 0 || entry.token >= config.vocabulary) {
      throw std::out_of_range("token " + std::to_string(entry.token) + " is not in the vocabulary");
    }
  }
}

}  // namespace llama
