#pragma once

// What this program asks of llama.cpp: a model, the tokens of a text, and logits over some KV cache.

#include <llama.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention_tap.hpp"

namespace squat_llama {

enum class Weights { own, f16, f32 };

/// A GGUF file that llama.cpp has loaded. Errors of llama.cpp go to stderr.
class LlamaModel {
 public:
  /// Weights as they are in the file, or unpacked to f16 or f32, by llama.cpp itself, in a copy that is
  /// gone when the model is loaded: over packed weights llama.cpp rounds activations to 8 bits, and a
  /// difference in the last digit of one grows to some 0.003 nats between predictions. Throws
  /// std::invalid_argument where it cannot be loaded, or its positions are not one number.
  LlamaModel(const std::string &path, Weights weights, int threads);

  /// Plain text; names of control tokens in it are text too, and none is put in front.
  std::vector<llama_token> encode(const std::string &text) const;
  /// The token that the model wants at the start of a text, or -1.
  llama_token begin_of_text() const;
  int vocabulary() const { return llama_vocab_n_tokens(vocabulary_); }
  int context() const { return llama_model_n_ctx_train(model_.get()); }
  /// Options::keys_have_biases.
  bool keys_have_biases() const { return keys_have_biases_; }
  llama_model *get() const { return model_.get(); }

 private:
  std::unique_ptr<llama_model, decltype(&llama_model_free)> model_;
  const llama_vocab *vocabulary_ = nullptr;
  bool keys_have_biases_ = false;
};

struct ContextOptions {
  int length = 0;                  // tokens of the sequence
  int batch = 0;                   // tokens of the longest call, which is computed in one piece
  int threads = 1;                 // of llama.cpp
  ggml_type type = GGML_TYPE_F16;  // of its KV cache
  bool flash_attention = true;     // a tap sees no other attention
  AttentionTap *tap = nullptr;     // sees every call
};

/// One sequence over llama.cpp's own KV cache.
class LlamaContext {
 public:
  LlamaContext(const LlamaModel &model, const ContextOptions &options);

  /// Appends tokens; the logits of what follows the last. They are good until the next call.
  std::span<const float> decode(std::span<const llama_token> tokens);

 private:
  std::unique_ptr<llama_context, decltype(&llama_free)> context_;
  AttentionTap *tap_;
  std::size_t vocabulary_;
};

}  // namespace squat_llama
