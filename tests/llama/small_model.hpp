#pragma once

// A GGUF file made in memory: a random Llama of two layers over a vocabulary of bytes and a few merges.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace llama::test {

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
  void align(std::size_t to) { bytes_.resize((bytes_.size() + to - 1) / to * to); }
  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
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

/// embedding 32, two query heads of 16 channels over one KV head, feed forward 48.
inline std::vector<std::byte> small_model() {
  std::vector<std::string> tokens = {"<end>"};
  std::vector<std::int32_t> types = {3};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(printable(byte));
  const std::string blank = printable(' ');
  for (const std::string &merged :
       {std::string("th"), std::string("the"), blank + "the", std::string("in")})
    tokens.push_back(merged);
  types.resize(tokens.size(), 1);
  const auto vocabulary = static_cast<std::uint64_t>(tokens.size());

  struct Shape {
    std::string name;
    std::uint64_t inputs, outputs;  // outputs 0: a vector
  };
  std::vector<Shape> tensors = {{"token_embd.weight", 32, vocabulary}, {"output_norm.weight", 32, 0}};
  for (const char *layer : {"blk.0.", "blk.1."}) {
    for (const Shape &shape : {Shape{"attn_norm", 32, 0},
                               {"ffn_norm", 32, 0},
                               {"attn_q", 32, 32},
                               {"attn_k", 32, 16},
                               {"attn_v", 32, 16},
                               {"attn_output", 32, 32},
                               {"ffn_gate", 32, 48},
                               {"ffn_up", 32, 48},
                               {"ffn_down", 48, 32}}) {
      tensors.push_back({layer + shape.name + ".weight", shape.inputs, shape.outputs});
    }
  }

  GgufWriter file;
  file.put<std::uint32_t>(0x46554747);
  file.put<std::uint32_t>(3);
  file.put<std::uint64_t>(tensors.size());
  file.put<std::uint64_t>(14);
  file.string("general.architecture", "llama");
  file.integer("llama.block_count", 2);
  file.integer("llama.embedding_length", 32);
  file.integer("llama.feed_forward_length", 48);
  file.integer("llama.attention.head_count", 2);
  file.integer("llama.attention.head_count_kv", 1);
  file.integer("llama.context_length", 512);
  file.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.real("llama.rope.freq_base", 10000);
  file.string("tokenizer.ggml.model", "gpt2");
  file.string("tokenizer.ggml.pre", "smollm");
  file.strings("tokenizer.ggml.tokens", tokens);
  file.integers("tokenizer.ggml.token_type", types);
  file.strings("tokenizer.ggml.merges", {"t h", "th e", blank + " the", "i n"});
  std::uint64_t offset = 0;
  for (const Shape &shape : tensors) {
    file.put_string(shape.name);
    file.put<std::uint32_t>(shape.outputs == 0 ? 1 : 2);
    file.put(shape.inputs);
    if (shape.outputs != 0) file.put(shape.outputs);
    file.put<std::uint32_t>(0);  // F32
    file.put(offset);
    offset += shape.inputs * std::max<std::uint64_t>(shape.outputs, 1) * sizeof(float);
  }
  file.align(32);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, .2f);
  for (const Shape &shape : tensors) {
    for (std::uint64_t i = 0; i < shape.inputs * std::max<std::uint64_t>(shape.outputs, 1); ++i) {
      file.put(shape.outputs == 0 ? 1.0f : normal(random));
    }
  }
  return file.take();
}

}  // namespace llama::test
