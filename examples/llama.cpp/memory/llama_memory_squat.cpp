#include "llama_memory_squat.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attention_shape.hpp"
#include "layer_groups.hpp"
#include "llama-batch.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "node_threads.hpp"
#include "squat/model.hpp"

namespace squat_llama {
namespace {

/// Bits of -ctk or -ctv, 0 for types of llama.cpp's own caches.
int bits_of(ggml_type type) {
  switch (type) {
    case GGML_TYPE_SQUAT2:
      return 2;
    case GGML_TYPE_SQUAT3:
      return 3;
    case GGML_TYPE_SQUAT4:
      return 4;
    case GGML_TYPE_SQUAT8:
      return 8;
    case GGML_TYPE_SQUAT16:
      return 16;
    default:
      return 0;
  }
}

/// A sequence of llama.cpp's, which numbers them as it likes.
struct Sequence {
  squat::SequenceId id{};              // none: it is empty
  std::vector<llama_pos> positions{};  // of its tokens, rising
  llama_pos next = 0;                  // where the cache takes its next token to stand

  /// Tokens before the first at `position` or behind it.
  squat::Index tokens_before(llama_pos position) const {
    return std::lower_bound(positions.begin(), positions.end(), position) - positions.begin();
  }
  squat::Index length() const { return static_cast<squat::Index>(positions.size()); }
};

/// [first, last) of llama.cpp's calls, where a negative number is no limit.
struct Positions {
  Positions(llama_pos p0, llama_pos p1)
      : first(std::max(p0, 0)), last(p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1) {}
  llama_pos first, last;
};

squat::Index elements_in(std::size_t bytes) { return static_cast<squat::Index>(bytes / sizeof(float)); }

/// [head_dim, heads, tokens] of ggml.
squat::TensorView<const float> rows_of(const ggml_tensor &tensor) {
  return {static_cast<const float *>(tensor.data),
          tensor.ne[2],
          tensor.ne[1],
          tensor.ne[0],
          elements_in(tensor.nb[2]),
          elements_in(tensor.nb[1])};
}

/// For calls of llama.cpp's that can neither fail nor be left undone.
[[noreturn]] void abort_call(const char *call, const char *why) {
  GGML_ABORT("%s: squat's memory %s", call, why);
}
template <class Run>
auto or_abort(const char *call, Run &&run) {
  try {
    return run();
  } catch (const std::exception &error) {
    GGML_ABORT("%s: %s", call, error.what());
  }
}

/// A snapshot within a state of llama.cpp's.
struct StateSink {
  llama_io_write_i &io;
  void write(std::span<const std::byte> bytes) { io.write(bytes.data(), bytes.size()); }
};
struct StateSource {
  llama_io_read_i &io;
  void read(std::span<std::byte> bytes) { io.read(bytes.data(), bytes.size()); }
};

class MemorySquat;

/// A batch on its way through the memory, ubatch by ubatch.
class ContextSquat : public llama_memory_context_i {
 public:
  ContextSquat(MemorySquat &memory, llama_memory_status status, std::vector<llama_ubatch> ubatches = {})
      : memory_(memory), status_(status), ubatches_(std::move(ubatches)) {}

  bool next() override { return ++current_ < ubatches_.size(); }
  bool apply() override;
  const llama_ubatch &get_ubatch() const override { return ubatches_.at(current_); }
  llama_memory_status get_status() const override;

  MemorySquat &memory() const { return memory_; }

 private:
  MemorySquat &memory_;
  llama_memory_status status_;
  std::vector<llama_ubatch> ubatches_;
  std::size_t current_ = 0;
};

/// A ModelCache as the memory of a context. Its sequences are those of llama.cpp, in rows without holes:
/// positions are kept beside them, and the cache is told where the next token stands whenever that is
/// not behind the one before it.
class MemorySquat : public llama_memory_i {
 public:
  MemorySquat(const llama_model &model, const llama_memory_params &params, const llama_cparams &cparams)
      : model_(model),
        cparams_(cparams),
        key_bits_(bits_of(params.type_k)),
        value_bits_(bits_of(params.type_v)),
        shapes_(model.hparams.n_layer()),
        sequences_(LLAMA_MAX_SEQ) {
    for (std::size_t il = 0; il < shapes_.size(); ++il) nodes_.push_back({this, static_cast<int>(il)});
  }

  // ---- graphs

  ggml_tensor *build_attention(const llm_graph_context &graph, ggml_tensor *q, ggml_tensor *k,
                               ggml_tensor *v, const ggml_tensor *bias, const ggml_tensor *sinks,
                               float scale, int il) {
    std::optional<squat::Options> &shape = shapes_.at(static_cast<std::size_t>(il));
    if (!shape) {
      shape = shape_of(graph, *q, *k, *v, bias, sinks, scale, il);
      const llama_layer &layer = model_.layers.at(static_cast<std::size_t>(il));
      shape->keys_have_biases = layer.wk_b != nullptr || layer.wqkv_b != nullptr;
      const auto known = [](const std::optional<squat::Options> &of_layer) {
        return of_layer.has_value();
      };
      if (std::all_of(shapes_.begin(), shapes_.end(), known)) make_cache();
    }
    ggml_tensor *sources[] = {q, k, v};
    ggml_tensor *const out =
        ggml_custom_4d(graph.ctx0, GGML_TYPE_F32, v->ne[0] * q->ne[1], q->ne[2], 1, 1, sources, 3,
                       attend, GGML_N_TASKS_MAX, &nodes_[static_cast<std::size_t>(il)]);
    ggml_build_forward_expand(graph.gf, out);
    return out;
  }

  // ---- batches

  /// Ubatches have as many tokens of each of their sequences, those of one behind each other: the prompt
  /// of one sequence beside a token of others goes on in ubatches of its own.
  llama_memory_context_ptr init_batch(llama_batch_allocr &batch, std::uint32_t most_tokens,
                                      bool) override {
    error_ = false;
    batch.split_reset();
    std::vector<llama_ubatch> ubatches;
    while (true) {
      llama_ubatch ubatch = batch.split_equal(most_tokens, false, 0);
      if (ubatch.n_tokens == 0) break;
      ubatches.push_back(std::move(ubatch));
    }
    const llama_memory_status status = check(ubatches);
    return std::make_unique<ContextSquat>(*this, status, std::move(ubatches));
  }

  llama_memory_context_ptr init_full() override {
    return std::make_unique<ContextSquat>(*this, LLAMA_MEMORY_STATUS_SUCCESS);
  }

  llama_memory_context_ptr init_update(llama_context *, bool) override {
    return std::make_unique<ContextSquat>(*this, LLAMA_MEMORY_STATUS_NO_UPDATE);
  }

  /// Whether the graph that comes may be computed.
  bool begin(const llama_ubatch &ubatch) {
    return or_error([&] {
      batch_.clear();
      for (std::uint32_t s = 0; s < ubatch.n_seqs; ++s) {
        const std::uint32_t first = s * ubatch.n_seq_tokens;
        Sequence &sequence = sequences_[static_cast<std::size_t>(ubatch.seq_id[first][0])];
        if (sequence.id.value == 0) sequence.id = cache_->add_sequence();
        move_next(sequence, ubatch.pos[first]);
        sequence.positions.insert(sequence.positions.end(), ubatch.pos + first,
                                  ubatch.pos + first + ubatch.n_seq_tokens);
        sequence.next = sequence.positions.back() + 1;
        batch_.push_back({.sequence = sequence.id,
                          .tokens = static_cast<squat::Index>(ubatch.n_seq_tokens),
                          .learn = !cparams_.warmup});
      }
    });
  }

  /// Whether something went wrong since init_batch().
  bool failed() const { return error_; }

  // ---- sequences

  /// Positions that are in the embeddings of tokens cannot be changed.
  bool get_can_shift() const override {
    return std::any_of(shapes_.begin(), shapes_.end(), [](const std::optional<squat::Options> &shape) {
      return shape && shape->rotary.front().pair_count() > 0;
    });
  }

  void clear(bool data) override {
    for (Sequence &sequence : sequences_) remove(sequence);
    if (data && cache_) cache_->reset_learning();
  }

  bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override {
    const Positions range(p0, p1);
    if (seq_id >= 0) return remove(at(seq_id), range);
    bool removed = true;
    for (Sequence &sequence : sequences_) removed = remove(sequence, range) && removed;
    return removed;
  }

  void seq_cp(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) override {
    const Positions range(p0, p1);
    Sequence &source = at(from), &copy = at(to);
    if (from == to || source.id.value == 0) return;
    const squat::Index tokens = source.tokens_before(range.last);
    if (source.tokens_before(range.first) > 0)
      abort_call("seq_cp", "copies the first tokens of a sequence, not those behind them");
    const squat::SequenceId id = or_abort("seq_cp", [&] { return cache_->fork(source.id, tokens); });
    remove(copy);
    copy = {id, {source.positions.begin(), source.positions.begin() + tokens}, source.next};
    // As truncate() leaves it.
    copy.next -= static_cast<llama_pos>(source.length() - tokens);
  }

  void seq_keep(llama_seq_id seq_id) override {
    for (Sequence &sequence : sequences_) {
      if (&sequence != &at(seq_id)) remove(sequence);
    }
  }

  void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos by) override {
    const Positions range(p0, p1);
    Sequence &sequence = at(seq_id);
    const squat::Index first = sequence.tokens_before(range.first), length = sequence.length();
    if (by == 0 || first == length || range.first >= range.last) return;
    if (sequence.tokens_before(range.last) != length)
      abort_call("seq_add", "moves all tokens behind a position, not a part of them");
    or_abort("seq_add", [&] { cache_->shift(sequence.id, first, first, by); });
    std::for_each(sequence.positions.begin() + first, sequence.positions.end(),
                  [by](llama_pos &position) { position += by; });
    sequence.next += by;
  }

  void seq_div(llama_seq_id, llama_pos, llama_pos, int) override {
    abort_call("seq_div", "does not divide positions (self-extension)");
  }

  llama_pos seq_pos_min(llama_seq_id seq_id) const override {
    const std::vector<llama_pos> &positions = sequences_.at(static_cast<std::size_t>(seq_id)).positions;
    if (positions.empty()) return -1;
    // Pages that have left a window are gone, as they are in llama.cpp's caches of windows.
    const std::size_t window = narrowest_window();
    return positions[window == 0 || positions.size() <= window ? 0 : positions.size() - window];
  }

  llama_pos seq_pos_max(llama_seq_id seq_id) const override {
    const std::vector<llama_pos> &positions = sequences_.at(static_cast<std::size_t>(seq_id)).positions;
    return positions.empty() ? -1 : positions.back();
  }

  std::map<ggml_backend_buffer_type_t, std::size_t> memory_breakdown() const override {
    return {{ggml_backend_cpu_buffer_type(), cache_ ? cache_->memory_report().total() : 0}};
  }

  // ---- state: a snapshot and the positions of each sequence

  void state_write(llama_io_write_i &io, llama_seq_id seq_id, llama_state_seq_flags) const override {
    std::vector<llama_seq_id> written;
    for (llama_seq_id id = 0; id < LLAMA_MAX_SEQ; ++id) {
      const bool wanted = seq_id < 0 || id == seq_id;
      if (wanted && sequences_[static_cast<std::size_t>(id)].id.value != 0) written.push_back(id);
    }
    write(io, state_magic);
    write(io, static_cast<std::uint32_t>(written.size()));
    for (const llama_seq_id id : written) {
      const Sequence &sequence = sequences_[static_cast<std::size_t>(id)];
      write(io, id);
      write(io, sequence.next);
      write(io, static_cast<std::uint64_t>(sequence.positions.size()));
      io.write(sequence.positions.data(), sequence.positions.size() * sizeof(llama_pos));
      cache_->save(sequence.id, StateSink{io});
    }
  }

  void state_read(llama_io_read_i &io, llama_seq_id seq_id, llama_state_seq_flags) override {
    if (read<std::uint32_t>(io) != state_magic)
      throw std::runtime_error("the state is not one of squat's memory");
    const auto count = read<std::uint32_t>(io);
    if (count > (seq_id < 0 ? sequences_.size() : 1))
      throw std::runtime_error("the state has " + std::to_string(count) + " sequences");
    if (seq_id < 0) {
      clear(false);
    } else {
      remove(at(seq_id));
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto saved = read<llama_seq_id>(io);
      Sequence sequence{.next = read<llama_pos>(io)};
      const auto tokens = read<std::uint64_t>(io);
      if (tokens > cparams_.n_ctx_seq)
        throw std::runtime_error("the state has a sequence of " + std::to_string(tokens) +
                                 " tokens, must be at most " + std::to_string(cparams_.n_ctx_seq));
      sequence.positions.resize(tokens);
      io.read(sequence.positions.data(), tokens * sizeof(llama_pos));
      const auto end = sequence.positions.end();
      if (std::adjacent_find(sequence.positions.begin(), end, std::greater_equal<>()) != end)
        throw std::runtime_error("the state has positions that do not rise");
      Sequence &loaded = at(seq_id < 0 ? saved : seq_id);
      sequence.id = cache_->load(StateSource{io});
      if (cache_->length(sequence.id) != sequence.length()) {
        remove(sequence);
        throw std::runtime_error("the state has another number of positions than of tokens");
      }
      remove(loaded);
      loaded = std::move(sequence);
    }
  }

 private:
  struct Node {
    MemorySquat *memory;
    int layer;
  };

  static constexpr std::uint32_t state_magic = 0x31747173;  // "sqt1"

  template <class Value>
  static void write(llama_io_write_i &io, const Value &value) {
    io.write(&value, sizeof value);
  }
  template <class Value>
  static Value read(llama_io_read_i &io) {
    Value value;
    io.read(&value, sizeof value);
    return value;
  }

  Sequence &at(llama_seq_id seq_id) { return sequences_.at(static_cast<std::size_t>(seq_id)); }

  void make_cache() {
    if (model_.hparams.no_alloc) return;  // only its size is asked for
    std::vector<squat::Options> shapes;
    for (const std::optional<squat::Options> &shape : shapes_) shapes.push_back(*shape);
    squat::ModelOptions options = group_layers(shapes, [&](const squat::Options &shape) {
      return squat::LayerGroup{.options = shape, .key_bits = key_bits_, .value_bits = value_bits_};
    });
    options.parallel = [this](int count, const squat::Task &task) { threads_.run(count, task); };
    cache_.emplace(options, squat::make_cpu_group);
    LLAMA_LOG_INFO("squat: keys of %d bits, values of %d bits, %zu layers in %zu groups\n", key_bits_,
                   value_bits_, shapes.size(), options.groups.size());
  }

  /// What llama_decode() says of the batch before anything is computed.
  llama_memory_status check(const std::vector<llama_ubatch> &ubatches) const {
    const auto refuse = [](const char *why) {
      LLAMA_LOG_ERROR("squat: %s\n", why);
      return LLAMA_MEMORY_STATUS_FAILED_COMPUTE;
    };
    if (!cache_) return refuse("the model's graph has layers without attention, which are not served");
    if (!cparams_.causal_attn) return refuse("attention that is not causal is not served");
    std::map<llama_seq_id, std::size_t> lengths;
    for (const llama_ubatch &ubatch : ubatches) {
      for (std::uint32_t token = 0; token < ubatch.n_tokens; ++token) {
        if (ubatch.n_seq_id[token] != 1) return refuse("a token of several sequences is not served");
        const bool first = token % ubatch.n_seq_tokens == 0;
        if (!first && ubatch.pos[token] != ubatch.pos[token - 1] + 1)
          return refuse("tokens of a batch must stand one behind the other");
        const llama_seq_id id = ubatch.seq_id[token][0];
        const std::size_t before = sequences_.at(static_cast<std::size_t>(id)).positions.size();
        if (before + ++lengths[id] > cparams_.n_ctx_seq) return LLAMA_MEMORY_STATUS_FAILED_PREPARE;
      }
    }
    return LLAMA_MEMORY_STATUS_SUCCESS;
  }

  /// The next token stands at `position`.
  void move_next(Sequence &sequence, llama_pos position) {
    if (sequence.next == position) return;
    const squat::Index length = sequence.length();
    cache_->shift(sequence.id, length, length, position - sequence.next);
    sequence.next = position;
  }

  void remove(Sequence &sequence) {
    if (sequence.id.value != 0) cache_->remove_sequence(sequence.id);
    sequence = {};
  }

  /// Whether the tokens are gone: false where a window has let go what would be needed.
  bool remove(Sequence &sequence, const Positions &range) {
    const squat::Index first = sequence.tokens_before(range.first),
                       last = sequence.tokens_before(range.last), length = sequence.length();
    if (first >= last) return true;
    if (last - first == length) {
      remove(sequence);
      return true;
    }
    try {
      if (last == length) {
        cache_->truncate(sequence.id, first);
        sequence.next -= static_cast<llama_pos>(length - first);
      } else {
        cache_->shift(sequence.id, first, last, 0);
      }
    } catch (const squat::Error &) {
      return false;
    }
    sequence.positions.erase(sequence.positions.begin() + first, sequence.positions.begin() + last);
    return true;
  }

  std::size_t narrowest_window() const {
    std::size_t narrowest = 0;
    for (const std::optional<squat::Options> &shape : shapes_) {
      const auto window = static_cast<std::size_t>(shape ? shape->attention_window : 0);
      if (window > 0 && (narrowest == 0 || window < narrowest)) narrowest = window;
    }
    return narrowest;
  }

  /// No exception may pass through ggml's frames. Whether there was none.
  template <class Run>
  bool or_error(Run &&run) {
    try {
      if (!error_) run();
    } catch (const std::exception &error) {
      LLAMA_LOG_ERROR("%s\n", error.what());
      error_ = true;
    }
    return !error_;
  }

  /// A ggml_custom_op_t.
  static void attend(ggml_tensor *out, int thread, int threads, void *node) {
    const Node &of_layer = *static_cast<const Node *>(node);
    MemorySquat &self = *of_layer.memory;
    if (thread != 0) return self.threads_.serve();
    self.or_error([&] {
      const squat::TensorView<const float> q = rows_of(*out->src[0]), k = rows_of(*out->src[1]),
                                           v = rows_of(*out->src[2]);
      self.cache_->attend(self.batch_, of_layer.layer, q, k, v,
                          {static_cast<float *>(out->data), q.tokens, q.heads, v.head_dim});
    });
    self.threads_.close(threads - 1);
  }

  const llama_model &model_;
  const llama_cparams &cparams_;
  const int key_bits_, value_bits_;
  std::vector<std::optional<squat::Options>> shapes_;  // [layers], as graphs have told them
  std::vector<Node> nodes_;                            // [layers]
  NodeThreads threads_;
  mutable std::optional<squat::ModelCache> cache_;
  std::vector<Sequence> sequences_;
  std::vector<squat::SequenceTokens> batch_;  // of the ubatch in progress
  bool error_ = false;                        // in the batch in progress
};

bool ContextSquat::apply() { return memory_.begin(get_ubatch()); }

llama_memory_status ContextSquat::get_status() const {
  return memory_.failed() ? LLAMA_MEMORY_STATUS_FAILED_COMPUTE : status_;
}

const ContextSquat *squat_context(const llama_memory_context_i *context) {
  return dynamic_cast<const ContextSquat *>(context);
}

/// Without tensors there is nothing to fill, and nothing that would keep a graph from being reused.
template <class Input>
struct NoInput : Input {
  using Input::Input;
  void set_input(const llama_ubatch *) override {}
  bool can_reuse(const llm_graph_params &) override { return true; }
};

}  // namespace

bool is_wanted(const llama_memory_params &params) {
  const bool keys = bits_of(params.type_k) != 0, values = bits_of(params.type_v) != 0;
  if (keys != values)
    throw std::invalid_argument(std::string("keys are ") + ggml_type_name(params.type_k) + ", values " +
                                ggml_type_name(params.type_v) +
                                ": squat keeps both or none (-ctk, -ctv)");
  return keys;
}

llama_memory_i *make_memory(const llama_model &model, const llama_memory_params &params,
                            const llama_cparams &cparams) {
  check_served(model, params, cparams);
  return new MemorySquat(model, params, cparams);
}

std::unique_ptr<llm_graph_input_attn_kv> make_input_kv(const llama_memory_context_i *context,
                                                       const llama_hparams &hparams,
                                                       const llama_cparams &cparams) {
  if (!squat_context(context)) return nullptr;
  return std::make_unique<NoInput<llm_graph_input_attn_kv>>(hparams, cparams, nullptr);
}

std::unique_ptr<llm_graph_input_attn_kv_iswa> make_input_kv_iswa(const llama_memory_context_i *context,
                                                                 const llama_hparams &hparams,
                                                                 const llama_cparams &cparams) {
  if (!squat_context(context)) return nullptr;
  return std::make_unique<NoInput<llm_graph_input_attn_kv_iswa>>(hparams, cparams, nullptr);
}

ggml_tensor *build_attention(const llm_graph_context &graph, ggml_tensor *q, ggml_tensor *k,
                             ggml_tensor *v, const ggml_tensor *bias, const ggml_tensor *sinks,
                             float scale, int il) {
  return squat_context(graph.mctx)->memory().build_attention(graph, q, k, v, bias, sinks, scale, il);
}

}  // namespace squat_llama
