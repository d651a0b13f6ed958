#include "llama_model.hpp"

#include <gguf.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace squat_llama {
namespace {

void log_errors(ggml_log_level level, const char *text, void *) {
  if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

llama_model *load(const std::string &path) {
  llama_model_params parameters = llama_model_default_params();
  parameters.n_gpu_layers = 0;
  return llama_model_load_from_file(path.c_str(), parameters);
}

/// A file of that name in the folder of temporary files, which goes when this does.
class TemporaryFile {
 public:
  TemporaryFile() : path_((std::filesystem::temp_directory_path() / "squat-llama-XXXXXX").string()) {
    const int file = mkstemp(path_.data());
    if (file < 0) throw std::invalid_argument("cannot write " + path_);
    close(file);
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  TemporaryFile(const TemporaryFile &) = delete;
  TemporaryFile &operator=(const TemporaryFile &) = delete;

  const std::string &path() const { return path_; }

 private:
  std::string path_;
};

/// Its memory map outlives the copy's name.
llama_model *load_unpacked(const std::string &path, Weights weights, int threads) {
  const TemporaryFile copy;
  llama_model_quantize_params parameters = llama_model_quantize_default_params();
  parameters.nthread = threads;
  parameters.allow_requantize = true;
  parameters.ftype = weights == Weights::f16 ? LLAMA_FTYPE_MOSTLY_F16 : LLAMA_FTYPE_ALL_F32;
  if (llama_model_quantize(path.c_str(), copy.path().c_str(), &parameters) != 0)
    throw std::invalid_argument("llama.cpp cannot unpack the weights of " + path + " to " + copy.path());
  return load(copy.path());
}

/// Whether the first layer of a file has a bias of keys, or of queries, keys and values together.
bool has_key_biases(const std::string &path) {
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(
      gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}), gguf_free);
  if (!file) return false;
  return gguf_find_tensor(file.get(), "blk.0.attn_k.bias") >= 0 ||
         gguf_find_tensor(file.get(), "blk.0.attn_qkv.bias") >= 0;
}

}  // namespace

LlamaModel::LlamaModel(const std::string &path, Weights weights, int threads)
    : model_(nullptr, llama_model_free) {
  llama_log_set(log_errors, nullptr);
  llama_backend_init();
  model_.reset(weights == Weights::own ? load(path) : load_unpacked(path, weights, threads));
  if (!model_) throw std::invalid_argument("llama.cpp cannot load " + path);
  vocabulary_ = llama_model_get_vocab(model_.get());
  keys_have_biases_ = has_key_biases(path);
  const llama_rope_type rope = llama_model_rope_type(model_.get());
  if (rope != LLAMA_ROPE_TYPE_NONE && rope != LLAMA_ROPE_TYPE_NORM && rope != LLAMA_ROPE_TYPE_NEOX)
    throw std::invalid_argument(
        "the model's rotary embedding has several positions a token (M-RoPE), which the cache does not "
        "know");
  if (llama_model_has_encoder(model_.get()) || !llama_model_has_decoder(model_.get()) ||
      llama_model_is_diffusion(model_.get()))
    throw std::invalid_argument("the model does not predict the next token from those before it");
}

std::vector<llama_token> LlamaModel::encode(const std::string &text) const {
  std::vector<llama_token> tokens(text.size() + 16);
  const int count =
      llama_tokenize(vocabulary_, text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                     static_cast<std::int32_t>(tokens.size()), false, false);
  if (count < 0) throw std::invalid_argument("llama.cpp cannot tokenize the text");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

llama_token LlamaModel::begin_of_text() const {
  return llama_vocab_get_add_bos(vocabulary_) ? llama_vocab_bos(vocabulary_) : -1;
}

LlamaContext::LlamaContext(const LlamaModel &model, const ContextOptions &options)
    : context_(nullptr, llama_free),
      tap_(options.tap),
      vocabulary_(static_cast<std::size_t>(model.vocabulary())) {
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = static_cast<std::uint32_t>((options.length + 255) / 256 * 256);
  parameters.n_batch = parameters.n_ubatch = static_cast<std::uint32_t>(options.batch);
  parameters.n_seq_max = parameters.n_outputs_max = 1;
  parameters.n_threads = parameters.n_threads_batch = options.threads;
  parameters.flash_attn_type =
      options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  parameters.type_k = parameters.type_v = options.type;
  parameters.swa_full = true;  // layers with a window keep all tokens too, in the order of the text
  if (tap_ != nullptr) {
    parameters.cb_eval = AttentionTap::on_node;
    parameters.cb_eval_user_data = tap_;
  }
  context_.reset(llama_init_from_model(model.get(), parameters));
  if (!context_)
    throw std::invalid_argument(
        std::string("llama.cpp cannot run the model with flash attention over a cache of type ") +
        ggml_type_name(options.type));
}

std::span<const float> LlamaContext::decode(std::span<const llama_token> tokens) {
  std::vector<llama_token> own(tokens.begin(), tokens.end());
  if (tap_ != nullptr) tap_->begin();
  const int status = llama_decode(
      context_.get(), llama_batch_get_one(own.data(), static_cast<std::int32_t>(own.size())));
  if (tap_ != nullptr) tap_->end();
  const float *const logits = status == 0 ? llama_get_logits_ith(context_.get(), -1) : nullptr;
  if (logits == nullptr) throw std::runtime_error("llama_decode failed");
  return {logits, vocabulary_};
}

}  // namespace squat_llama
