#pragma once

// What a model file says of a model, and what a call feeds it.

#include <span>
#include <string>
#include <vector>

#include "gguf.hpp"
#include "squat/coding/rotary_table.hpp"

namespace engine {

enum class Activation {
  silu,  ///< x / (1 + exp(-x))
  gelu,  ///< its form by tanh
};

/// The parts in which the architectures differ from Llama's: none by default.
struct Differences {
  const char *architecture = "llama";  // as general.architecture names it
  bool biases = false;                 // behind the products that make queries, keys and values
  bool head_norms = false;             // of every head of queries and keys, before they are turned
  bool post_norms = false;        // behind attention and behind the feed-forward, before they are added
  bool scaled_embedding = false;  // by the square root of its width
  Activation activation = Activation::silu;
  squat::RotaryPairs rotary_pairs = squat::RotaryPairs::halves;
  // Every so manyth layer attends to all tokens, the others to a window of the newest ones.
  int global_every = 1;
  double local_rotary_base = 0;  // of layers with a window; 0: the one of all layers
};

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
  float attention_scale = 0;     // of scores; 0: 1 / sqrt(head_dim)
  float attention_soft_cap = 0;  // c of c tanh(score / c); 0: none
  float logit_soft_cap = 0;
  int attention_window = 0;  // tokens that a query of a local layer sees; 0: there are no such layers
  Differences differences{};
  // Of the rotary embedding, one for every pair: of layers that see all tokens, and of local ones.
  std::vector<float> inverse_frequencies{}, local_inverse_frequencies{};

  /// Whether the layer attends through the window.
  bool is_local(int layer) const {
    return attention_window > 0 && (layer + 1) % differences.global_every != 0;
  }
  const std::vector<float> &inverse_frequencies_of(int layer) const {
    return is_local(layer) ? local_inverse_frequencies : inverse_frequencies;
  }
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

}  // namespace engine
