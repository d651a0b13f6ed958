#pragma once

// What a model file says of a Llama-architecture model, and what a call feeds it.

#include <span>
#include <vector>

#include "gguf.hpp"

namespace llama {

struct Config {
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int embedding = 0;
  int feed_forward = 0;
  int vocabulary = 0;
  int context = 0;
  int rotary_dim = 0;
  float rms_epsilon = 0;
  double rotary_base = 0;
  std::vector<float> inverse_frequencies{};  // of the rotary embedding, one for every pair of neighbours
};

/// One token of a batch and where it stands in its sequence.
struct Position {
  int token = 0;
  int position = 0;
};

/// Throws FileError where the file holds no such model.
Config read_config(const Gguf &file);

/// Throws std::out_of_range for a token that is not in the vocabulary.
void check_tokens(const Config &config, std::span<const Position> batch);

}  // namespace llama
