#include "config.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "dequantize.hpp"

namespace engine {
namespace {

using squat::RotaryPairs;

constexpr Differences architectures[] = {
    {.architecture = "llama", .rotary_pairs = RotaryPairs::interleaved},
    {.architecture = "qwen2", .biases = true},
    {.architecture = "qwen3", .head_norms = true},
    {.architecture = "gemma2",
     .post_norms = true,
     .scaled_embedding = true,
     .activation = Activation::gelu,
     .global_every = 2},
    {.architecture = "gemma3",
     .head_norms = true,
     .post_norms = true,
     .scaled_embedding = true,
     .activation = Activation::gelu,
     .global_every = 6,
     .local_rotary_base = 10000}};

const Differences &differences_of(const std::string &architecture) {
  std::string names;
  for (const Differences &known : architectures) {
    if (known.architecture == architecture) return known;
    names += std::string(names.empty() ? "" : ", ") + known.architecture;
  }
  throw FileError("architecture " + architecture + " is not supported (" + names + " are)");
}

/// The values of one architecture, whose name begins their keys.
class Keys {
 public:
  explicit Keys(const Gguf &file) : file_(file), prefix_(file.string("general.architecture") + ".") {}

  int integer(const char *key, int least, int most) const {
    return file_.integer(prefix_ + key, least, most);
  }
  int integer_or(const char *key, int otherwise, int least, int most) const {
    return file_.integer_or(prefix_ + key, otherwise, least, most);
  }
  /// A finite number that is `least` or more.
  float real_or(const char *key, double otherwise, double least) const {
    const double value = file_.number_or(prefix_ + key, otherwise);
    if (!(value >= least && value <= 1e30))
      throw FileError("metadata " + prefix_ + key + " is " + std::to_string(value) +
                      ", must be finite, " + std::to_string(least) + " at least");
    return static_cast<float>(value);
  }
  std::string string_or(const char *key, const char *otherwise) const {
    return file_.has(prefix_ + key) ? file_.string(prefix_ + key) : otherwise;
  }

 private:
  const Gguf &file_;
  std::string prefix_;
};

std::vector<float> frequencies_of(int rotary_dim, double base, double factor) {
  std::vector<float> inverse;
  for (int pair = 0; pair < rotary_dim / 2; ++pair)
    inverse.push_back(static_cast<float>(std::pow(base, -2.0 * pair / rotary_dim) / factor));
  return inverse;
}

/// Bases, linear scaling (of the layers that see all tokens) and the divisors of Llama 3.
void read_rotary(const Gguf &file, const Keys &keys, Config &config) {
  constexpr double least = 1e-3;
  config.rotary_dim = keys.integer_or("rope.dimension_count", config.head_dim, 2, config.head_dim);
  if (config.rotary_dim % 2 != 0) throw FileError("the rotary dimension is odd");
  const double base = static_cast<double>(keys.real_or("rope.freq_base", 10000, least));
  const std::string scaling = keys.string_or("rope.scaling.type", "none");
  if (scaling != "none" && scaling != "linear")
    throw FileError("rotary scaling " + scaling + " is not supported (linear is)");
  const double factor =
      scaling == "linear" ? static_cast<double>(keys.real_or("rope.scaling.factor", 1, least)) : 1;
  config.inverse_frequencies = frequencies_of(config.rotary_dim, base, factor);
  if (file.has_tensor("rope_freqs.weight")) {
    const std::vector<float> divisors = dequantize(
        file.tensor("rope_freqs.weight", {static_cast<std::uint64_t>(config.rotary_dim / 2)}));
    for (std::size_t pair = 0; pair < divisors.size(); ++pair) {
      if (!(divisors[pair] >= 1e-3f && divisors[pair] < 1e30f))
        throw FileError("tensor rope_freqs.weight holds what is no divisor");
      config.inverse_frequencies[pair] /= divisors[pair];
    }
  }
  const double local_base = config.differences.local_rotary_base;
  config.local_inverse_frequencies =
      local_base > 0
          ? frequencies_of(config.rotary_dim,
                           static_cast<double>(keys.real_or("rope.freq_base_swa", local_base, least)), 1)
          : config.inverse_frequencies;
}

/// Gemma's soft caps, window and scale of scores. Of each generation the largest model scales queries by
/// the width of the embedding a head, which files do not say: its layers tell.
void read_gemma(const std::string &architecture, const Keys &keys, Config &config) {
  const bool second = architecture == "gemma2";
  config.attention_soft_cap = keys.real_or("attn_logit_softcapping", second ? 50 : 0, 0);
  config.logit_soft_cap = keys.real_or("final_logit_softcapping", second ? 30 : 0, 0);
  config.attention_window =
      keys.integer_or("attention.sliding_window", second ? 4096 : 0, second ? 1 : 0, 1 << 24);
  const bool largest = config.layers == (second ? 46 : 62);
  const double width = largest ? config.embedding / config.query_heads : config.head_dim;
  config.attention_scale = keys.real_or("attention.scale", 1 / std::sqrt(width), 1e-6);
}

}  // namespace

Config read_config(const Gguf &file) {
  constexpr int most = 1 << 20;
  const std::string &architecture = file.string("general.architecture");
  Config config;
  config.differences = differences_of(architecture);
  const Keys keys(file);
  config.layers = keys.integer("block_count", 1, 1024);
  config.embedding = keys.integer("embedding_length", 1, most);
  config.feed_forward = keys.integer("feed_forward_length", 1, most);
  config.query_heads = keys.integer("attention.head_count", 1, 1024);
  config.kv_heads =
      keys.integer_or("attention.head_count_kv", config.query_heads, 1, config.query_heads);
  config.head_dim =
      keys.integer_or("attention.key_length", config.embedding / config.query_heads, 1, 512);
  if (keys.integer_or("attention.value_length", config.head_dim, 1, 512) != config.head_dim)
    throw FileError("values have other channels than keys, which is not supported");
  config.vocabulary =
      static_cast<int>(std::min<std::size_t>(file.strings("tokenizer.ggml.tokens").size(), 1 << 24));
  config.context = keys.integer_or("context_length", 2048, 1, 1 << 24);
  config.rms_epsilon = keys.real_or("attention.layer_norm_rms_epsilon", 1e-5, 0);
  if (config.query_heads % config.kv_heads != 0)
    throw FileError("query heads are no multiple of KV heads");
  if (config.head_dim % 16 != 0) throw FileError("the head dimension is no multiple of 16");
  if (architecture.starts_with("gemma")) read_gemma(architecture, keys, config);
  read_rotary(file, keys, config);
  return config;
}

void check_tokens(const Config &config, std::span<const Position> batch) {
  for (const Position &entry : batch) {
    if (entry.token < 0 || entry.token >= config.vocabulary) {
      throw std::out_of_range("token " + std::to_string(entry.token) + " is not in the vocabulary");
    }
  }
}

}  // namespace engine
