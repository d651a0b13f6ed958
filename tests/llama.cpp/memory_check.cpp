// The calls of llama.cpp's memory over squat's, beside the same calls over llama.cpp's float16 cache.
//
// usage: llama-squat-check MODEL TEXT-FILE
//
// Both caches round to 16 bits and add in different orders, over weights that are unpacked to float16,
// as llama.cpp rounds activations to 8 bits over packed ones. Tokens at a wrong place, or from another
// sequence, make more than most_kl.

#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama_model.hpp"

namespace {

constexpr double most_kl = 1e-3;
constexpr int threads = 2;

using Tokens = std::vector<llama_token>;
using Logits = std::vector<float>;

class Context {
 public:
  Context(llama_model *model, ggml_type type) : context_(nullptr, llama_free) {
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = 4096;
    parameters.n_batch = 1024;
    parameters.n_ubatch = 128;
    parameters.n_seq_max = 4;
    parameters.kv_unified = true;
    parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    parameters.n_threads = parameters.n_threads_batch = threads;
    parameters.type_k = parameters.type_v = type;
    context_.reset(llama_init_from_model(model, parameters));
    if (!context_) throw std::runtime_error("no context");
    vocabulary_ = static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
  }

  llama_context *get() const { return context_.get(); }
  llama_memory_t memory() const { return llama_get_memory(context_.get()); }
  llama_pos next(llama_seq_id sequence) const {
    return llama_memory_seq_pos_max(memory(), sequence) + 1;
  }

  /// Appends tokens to sequences, one list for each, in one batch; logits of what follows each.
  std::vector<Logits> decode(const std::vector<Tokens> &texts) {
    std::int32_t count = 0;
    for (const Tokens &text : texts) count += static_cast<std::int32_t>(text.size());
    llama_batch batch = llama_batch_init(count, 0, 1);
    std::vector<std::int32_t> last;
    for (std::size_t sequence = 0; sequence < texts.size(); ++sequence) {
      llama_pos position = next(static_cast<llama_seq_id>(sequence));
      for (std::size_t i = 0; i < texts[sequence].size(); ++i) {
        const auto at = static_cast<std::size_t>(batch.n_tokens++);
        batch.token[at] = texts[sequence][i];
        batch.pos[at] = position++;
        batch.n_seq_id[at] = 1;
        batch.seq_id[at][0] = static_cast<llama_seq_id>(sequence);
        batch.logits[at] = i + 1 == texts[sequence].size();
      }
      if (!texts[sequence].empty()) last.push_back(batch.n_tokens - 1);
    }
    const int status = llama_decode(context_.get(), batch);
    llama_batch_free(batch);
    if (status != 0) throw std::runtime_error("llama_decode returns " + std::to_string(status));
    std::vector<Logits> rows;
    for (const std::int32_t row : last) {
      const float *const logits = llama_get_logits_ith(context_.get(), row);
      rows.emplace_back(logits, logits + vocabulary_);
    }
    return rows;
  }
  Logits decode(const Tokens &text) { return decode(std::vector<Tokens>{text}).front(); }

 private:
  std::unique_ptr<llama_context, decltype(&llama_free)> context_;
  std::size_t vocabulary_ = 0;
};

double kl(const Logits &from, const Logits &to) {
  const auto log_sum = [](const Logits &logits) {
    const double most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - most);
    return most + std::log(sum);
  };
  const double of_from = log_sum(from), of_to = log_sum(to);
  double divergence = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    const double p = static_cast<double>(from[i]) - of_from;
    divergence += std::exp(p) * (p - (static_cast<double>(to[i]) - of_to));
  }
  return divergence;
}

/// `count` tokens of a text, from one on.
using Text = std::function<Tokens(int first, int count)>;

struct Scenario {
  const char *promise;
  std::function<std::vector<Logits>(Context &, const Text &)> run;
};

const std::vector<Scenario> scenarios = {
    {"a prompt in pieces, then tokens",
     [](Context &context, const Text &text) {
       std::vector<Logits> rows = {context.decode(text(0, 700))};
       for (int token = 700; token < 720; ++token) rows.push_back(context.decode(text(token, 1)));
       return rows;
     }},
    {"sequences of different lengths in a batch",
     [](Context &context, const Text &text) {
       std::vector<Logits> rows = context.decode({text(0, 300), text(1000, 45), {}, text(2000, 1)});
       for (Logits &row : context.decode({text(300, 1), text(1045, 200), {}, text(2001, 130)}))
         rows.push_back(std::move(row));
       return rows;
     }},
    {"a tail that is removed and another in its place",
     [](Context &context, const Text &text) {
       context.decode(text(0, 600));
       if (!llama_memory_seq_rm(context.memory(), 0, 250, -1)) throw std::runtime_error("seq_rm");
       return std::vector<Logits>{context.decode(text(1000, 40)), context.decode(text(1040, 1))};
     }},
    {"a context that is shifted, twice, and cut behind it",
     [](Context &context, const Text &text) {
       context.decode(text(0, 800));
       std::vector<Logits> rows;
       for (const int first : {800, 900}) {
         llama_memory_seq_rm(context.memory(), 0, 4, 204);
         llama_memory_seq_add(context.memory(), 0, 204, context.next(0), -200);
         rows.push_back(context.decode(text(first, 100)));
       }
       llama_memory_seq_rm(context.memory(), 0, 450, -1);
       rows.push_back(context.decode(text(2000, 20)));
       return rows;
     }},
    {"a hole in the middle, whose end is cut off with what follows",
     [](Context &context, const Text &text) {
       context.decode(text(0, 500));
       llama_memory_seq_rm(context.memory(), 0, 100, 300);
       std::vector<Logits> rows = {context.decode(text(500, 30))};
       llama_memory_seq_rm(context.memory(), 0, 200, -1);
       rows.push_back(context.decode(text(1000, 30)));
       return rows;
     }},
    {"copies of a sequence, whole and of its beginning",
     [](Context &context, const Text &text) {
       context.decode(text(0, 400));
       llama_memory_seq_cp(context.memory(), 0, 1, -1, -1);
       llama_memory_seq_cp(context.memory(), 0, 2, 0, 150);
       return context.decode({text(400, 30), text(1000, 30), text(2000, 30)});
     }},
    {"one sequence that is kept, and what is empty again",
     [](Context &context, const Text &text) {
       context.decode({text(0, 200), text(1000, 200)});
       llama_memory_seq_keep(context.memory(), 1);
       if (context.next(0) != 0 || context.next(1) != 200) throw std::runtime_error("seq_keep");
       return context.decode({text(2000, 50), text(1200, 1)});
     }},
    {"the state of a sequence in another",
     [](Context &context, const Text &text) {
       context.decode(text(0, 700));
       std::vector<std::uint8_t> state(llama_state_seq_get_size(context.get(), 0));
       llama_state_seq_get_data(context.get(), state.data(), state.size(), 0);
       if (llama_state_seq_set_data(context.get(), state.data(), state.size(), 2) == 0)
         throw std::runtime_error("llama_state_seq_set_data");
       return context.decode({text(700, 1), {}, text(1000, 20)});
     }},
};

/// A state that is read back, of 2 bits, continues as the sequence itself does, to the last bit.
bool is_kept(llama_model *model, const Text &text, ggml_type type) {
  Context context(model, type), other(model, type);
  context.decode({text(0, 700), text(1000, 300)});
  std::vector<std::uint8_t> state(llama_state_get_size(context.get()));
  llama_state_get_data(context.get(), state.data(), state.size());
  if (llama_state_set_data(other.get(), state.data(), state.size()) == 0) return false;
  const std::vector<Tokens> next = {text(700, 1), text(1300, 1)};
  return context.decode(next) == other.decode(next);
}

bool run(const char *model_path, const char *text_path) {
  const squat_llama::LlamaModel model(model_path, squat_llama::Weights::f16, threads);
  std::ifstream in(text_path, std::ios::binary);
  std::string characters(60'000, ' ');
  in.read(characters.data(), static_cast<std::streamsize>(characters.size()));
  characters.resize(static_cast<std::size_t>(in.gcount()));
  const Tokens tokens = model.encode(characters);
  if (tokens.size() < 3000) throw std::runtime_error("the text must have 3,000 tokens");
  const Text text = [&](int first, int count) -> Tokens {
    return {tokens.begin() + first, tokens.begin() + first + count};
  };
  bool all = true;
  for (const Scenario &scenario : scenarios) {
    Context theirs(model.get(), GGML_TYPE_F16), ours(model.get(), GGML_TYPE_SQUAT16);
    const std::vector<Logits> expected = scenario.run(theirs, text), got = scenario.run(ours, text);
    double most = expected.size() == got.size() ? 0 : HUGE_VAL;
    for (std::size_t row = 0; row < std::min(expected.size(), got.size()); ++row)
      most = std::max(most, kl(expected[row], got[row]));
    const bool holds = most < most_kl;
    std::printf("%-7s %s: KL %.5f at most\n", holds ? "ok" : "FAILED", scenario.promise, most);
    all = all && holds;
  }
  for (const ggml_type type : {GGML_TYPE_SQUAT16, GGML_TYPE_SQUAT2}) {
    const bool holds = is_kept(model.get(), text, type);
    std::printf("%-7s a state of %s is read back as it was\n", holds ? "ok" : "FAILED",
                ggml_type_name(type));
    all = all && holds;
  }
  return all;
}

}  // namespace

int main(int count, char **arguments) {
  if (count != 3) {
    std::fputs("usage: llama-squat-check MODEL TEXT-FILE\n", stderr);
    return 2;
  }
  try {
    return run(arguments[1], arguments[2]) ? 0 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "llama-squat-check: %s\n", error.what());
    return 1;
  }
}
