#pragma once

// A GGUF file made in memory: a random model of any architecture over a vocabulary of bytes and a few
// merges.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.hpp"

namespace engine::test {

/// Writes GGUF version 3.
class GgufWriter {
 public:
  template <class Scalar>
  void put(Scalar scalar) {
    const auto *bytes = reinterpret_cast<const std::byte *>(&scalar);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof scalar);
  }
  void put_string(std::string_view text) {
    put<std::uint64_t>(text.size());
    for (char c : text) put(c);
  }
  void key(std::string_view name, std::uint32_t type) {
    put_string(name);
    put(type);
  }
  void integer(std::string_view name, std::uint32_t value) {
    key(name, 4);
    put(value);
  }
  void real(std::string_view name, float value) {
    key(name, 6);
    put(value);
  }
  void string(std::string_view name, std::string_view value) {
    key(name, 8);
    put_string(value);
  }
  void strings(std::string_view name, const std::vector<std::string> &values) {
    key(name, 9);
    put<std::uint32_t>(8);
    put<std::uint64_t>(values.size());
    for (const std::string &value : values) put_string(value);
  }
  void integers(std::string_view name, const std::vector<std::int32_t> &values) {
    key(name, 9);
    put<std::uint32_t>(5);
    put<std::uint64_t>(values.size());
    for (std::int32_t value : values) put(value);
  }
  void reals(std::string_view name, const std::vector<float> &values) {
    key(name, 9);
    put<std::uint32_t>(6);
    put<std::uint64_t>(values.size());
    for (float value : values) put(value);
  }
  void align(std::size_t to) { bytes_.resize((bytes_.size() + to - 1) / to * to); }
  std::size_t size() const { return bytes_.size(); }
  /// Marks where a tensor's elements begin.
  void begin_data() { data_begin_ = bytes_.size(); }
  std::size_t data_begin() const { return data_begin_; }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
  std::size_t data_begin_ = 0;
};

/// The printable character GPT-2 writes a byte as, in UTF-8.
inline std::string printable(int byte) {
  int point = byte;
  if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)) {
    point = 256;
    for (int other = 0; other < byte; ++other) {
      point += !((other >= 33 && other <= 126) || (other >= 161 && other <= 172) || other >= 174);
    }
  }
  if (point < 128) return {static_cast<char>(point)};
  return {static_cast<char>(0xc0 | point >> 6), static_cast<char>(0x80 | (point & 63))};
}

/// What a small model is made of: embedding 32, two query heads over one KV head, feed forward 48.
struct SmallModel {
  std::string architecture = "llama";
  int layers = 2;
  int window = 0;                     // of the layers that have one
  TensorType type = TensorType::f32;  // of matrices whose rows are whole blocks of it
  int head_dim = 0;                   // 0: 16, or 32 where the architecture says it
};

inline bool is_gemma(const SmallModel &model) { return model.architecture.starts_with("gemma"); }

/// Channels of a head: where the architecture says them, other than the embedding's over the heads.
inline std::uint64_t head_dim_of(const SmallModel &model) {
  if (model.head_dim > 0) return static_cast<std::uint64_t>(model.head_dim);
  return model.architecture == "qwen3" || is_gemma(model) ? 32 : 16;
}

struct SmallTensor {
  std::string name;
  std::uint64_t inputs, outputs;  // outputs 0: a vector
  TensorType type = TensorType::f32;

  std::uint64_t elements() const { return inputs * std::max<std::uint64_t>(outputs, 1); }
  std::uint64_t bytes() const {
    const Block block = block_of(type);
    return elements() / block.elements * block.bytes;
  }
};

inline std::vector<SmallTensor> tensors_of(const SmallModel &model, std::uint64_t vocabulary) {
  const std::uint64_t head = head_dim_of(model);
  std::vector<SmallTensor> tensors = {{"token_embd.weight", 32, vocabulary},
                                      {"output_norm.weight", 32, 0}};
  for (int layer = 0; layer < model.layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const auto add = [&](const char *name, std::uint64_t inputs, std::uint64_t outputs) {
      tensors.push_back({prefix + name, inputs, outputs});
    };
    for (const char *norm : {"attn_norm.weight", "ffn_norm.weight"}) add(norm, 32, 0);
    add("attn_q.weight", 32, 2 * head);
    add("attn_k.weight", 32, head);
    add("attn_v.weight", 32, head);
    add("attn_output.weight", 2 * head, 32);
    add("ffn_gate.weight", 32, 48);
    add("ffn_up.weight", 32, 48);
    add("ffn_down.weight", 48, 32);
    if (model.architecture == "qwen2") {
      add("attn_q.bias", 2 * head, 0);
      add("attn_k.bias", head, 0);
      add("attn_v.bias", head, 0);
    }
    if (model.architecture == "qwen3" || model.architecture == "gemma3") {
      add("attn_q_norm.weight", head, 0);
      add("attn_k_norm.weight", head, 0);
    }
    if (is_gemma(model)) {
      add("post_attention_norm.weight", 32, 0);
      add("post_ffw_norm.weight", 32, 0);
    }
  }
  for (SmallTensor &tensor : tensors) {
    if (tensor.outputs > 0 && tensor.inputs % block_of(model.type).elements == 0)
      tensor.type = model.type;
  }
  return tensors;
}

/// Normal numbers, vectors about 1; blocks of quantised types with scales of 0.02 before random codes.
inline void put_elements(GgufWriter &file, const SmallTensor &tensor, std::mt19937 &random) {
  std::normal_distribution<float> normal(0, .2f);
  if (tensor.type == TensorType::f32) {
    for (std::uint64_t i = 0; i < tensor.elements(); ++i)
      file.put(tensor.outputs == 0 ? 1 + normal(random) : normal(random));
    return;
  }
  const std::size_t size = block_of(tensor.type).bytes;
  for (std::uint64_t at = 0; at < tensor.bytes(); at += size) {
    file.put(std::uint16_t{0x251f});  // .02 as float16
    if (tensor.type == TensorType::q4_1 || tensor.type == TensorType::q5_1)
      file.put(std::uint16_t{0xa51f});
    while ((file.size() - file.data_begin()) % size != 0) file.put(static_cast<std::byte>(random()));
  }
}

struct SmallVocabulary {
  std::vector<std::string> tokens = {"<end>"};
  std::vector<std::int32_t> types = {3};
};

/// Bytes and a few merges, as GPT-2 writes them.
inline SmallVocabulary small_vocabulary() {
  SmallVocabulary all;
  for (int byte = 0; byte < 256; ++byte) all.tokens.push_back(printable(byte));
  for (const std::string &merged :
       {std::string("th"), std::string("the"), printable(' ') + "the", std::string("in")})
    all.tokens.push_back(merged);
  all.types.resize(all.tokens.size(), 1);
  return all;
}

inline void put_config(GgufWriter &file, const SmallModel &model) {
  const std::string prefix = model.architecture + ".";
  file.string("general.architecture", model.architecture);
  const auto integer = [&](const char *name, std::uint64_t value) {
    file.integer(prefix + name, static_cast<std::uint32_t>(value));
  };
  integer("block_count", static_cast<std::uint64_t>(model.layers));
  integer("embedding_length", 32);
  integer("feed_forward_length", 48);
  integer("attention.head_count", 2);
  integer("attention.head_count_kv", 1);
  integer("context_length", 512);
  file.real(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
  file.real(prefix + "rope.freq_base", model.architecture == "gemma3" ? 1e6f : 1e4f);  // local: 1e4
  if (head_dim_of(model) != 16) {
    integer("attention.key_length", head_dim_of(model));
    integer("attention.value_length", head_dim_of(model));
  }
  if (is_gemma(model)) integer("attention.sliding_window", static_cast<std::uint64_t>(model.window));
}

inline std::vector<std::byte> small_model(const SmallModel &model = {}) {
  const SmallVocabulary vocabulary = small_vocabulary();
  const std::vector<SmallTensor> tensors = tensors_of(model, vocabulary.tokens.size());
  GgufWriter file;
  file.put<std::uint32_t>(0x46554747);
  file.put<std::uint32_t>(3);
  file.put<std::uint64_t>(tensors.size());
  const std::uint64_t own = (head_dim_of(model) != 16 ? 2 : 0) + (is_gemma(model) ? 1 : 0);
  file.put<std::uint64_t>(14 + own);
  put_config(file, model);
  file.string("tokenizer.ggml.model", "gpt2");
  file.string("tokenizer.ggml.pre", "smollm");
  file.strings("tokenizer.ggml.tokens", vocabulary.tokens);
  file.integers("tokenizer.ggml.token_type", vocabulary.types);
  file.strings("tokenizer.ggml.merges", {"t h", "th e", printable(' ') + " the", "i n"});
  std::uint64_t offset = 0;
  for (const SmallTensor &tensor : tensors) {
    file.put_string(tensor.name);
    file.put<std::uint32_t>(tensor.outputs == 0 ? 1 : 2);
    file.put(tensor.inputs);
    if (tensor.outputs != 0) file.put(tensor.outputs);
    file.put(static_cast<std::uint32_t>(tensor.type));
    file.put(offset);
    offset += tensor.bytes();
  }
  file.align(32);
  std::mt19937 random(1);
  for (const SmallTensor &tensor : tensors) {
    file.begin_data();
    put_elements(file, tensor, random);
  }
  return file.take();
}

}  // namespace engine::test
