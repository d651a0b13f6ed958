// squat.h over ModelCache.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "squat/model.hpp"
#include "squat/squat.h"

#define SQUAT_STRING(text) #text
#define SQUAT_VERSION_TEXT(major, minor, patch) \
  SQUAT_STRING(major) "." SQUAT_STRING(minor) "." SQUAT_STRING(patch)

struct squat_model {
  squat::ModelOptions options;
};

struct squat_cache {
  squat::ModelCache cache;
};

namespace {

using squat::AnyTensor;
using squat::AttentionTensors;
using squat::Element;
using squat::ElementType;
using squat::Error;
using squat::Index;
using squat::SequenceId;
using squat::SequenceTokens;
using squat::TensorView;

/// Of a thread. A fixed size, so that out of memory can be told too.
thread_local char last_error[512] = "";

void tell(const char *text) {
  std::strncpy(last_error, text, sizeof last_error - 1);
  last_error[sizeof last_error - 1] = '\0';
}

/// Runs what may throw, and returns how it went.
template <class Run>
squat_status guarded(Run &&run) {
  try {
    run();
    return SQUAT_OK;
  } catch (const Error &error) {
    tell(error.what());
    return SQUAT_INVALID;
  } catch (const std::bad_alloc &) {
    tell("squat: out of memory");
    return SQUAT_INVALID;
  } catch (const std::exception &error) {
    tell(error.what());
    return SQUAT_FAILED;
  } catch (...) {
    tell("squat: something that is no std::exception was thrown");
    return SQUAT_FAILED;
  }
}

template <class Pointer>
Pointer &there(const char *name, Pointer *pointer) {
  if (pointer == nullptr) squat::throw_invalid(name, "NULL", "a pointer to something");
  return *pointer;
}

ElementType type_of(squat_element element) {
  switch (element) {
    case SQUAT_FLOAT32:
      return ElementType::float32;
    case SQUAT_FLOAT16:
      return ElementType::float16;
    case SQUAT_BFLOAT16:
      return ElementType::bfloat16;
  }
  squat::throw_invalid("element", static_cast<int>(element), "a squat_element");
}

template <class Scalar>
TensorView<Scalar> view_of(const char *name, const squat_tensor &tensor, squat_element element) {
  if (tensor.tokens == 0) return {};
  if (tensor.element != element)
    squat::throw_invalid(name, "of another element type", "of that of the other tensors");
  if (tensor.data == nullptr) squat::throw_invalid(name, "without data", "a tensor with data");
  auto *data = static_cast<Scalar *>(tensor.data);
  if (tensor.token_stride == 0 && tensor.head_stride == 0)
    return {data, tensor.tokens, tensor.heads, tensor.head_dim};
  return {data, tensor.tokens, tensor.heads, tensor.head_dim, tensor.token_stride, tensor.head_stride};
}

/// Calls run(tensors) with AttentionTensors of q's element type.
template <class Run>
void with_tensors(const squat_tensor &q, const squat_tensor &k, const squat_tensor &v,
                  const squat_tensor &out, float *lse, Run &&run) {
  squat::with_element(type_of(q.element), [&]<class S>() {
    AttentionTensors<S> tensors{.q = view_of<const S>("q", q, q.element),
                                .k = view_of<const S>("k", k, q.element),
                                .v = view_of<const S>("v", v, q.element),
                                .out = view_of<S>("out", out, q.element)};
    if (lse != nullptr) tensors.lse = {lse, tensors.q.tokens, tensors.q.heads, 1};
    run(std::as_const(tensors));
  });
}

std::vector<SequenceTokens> batch_of(const squat_share *batch, std::size_t count) {
  if (count > 0) there("batch", batch);
  std::vector<SequenceTokens> shares;
  for (const squat_share &share : std::span(batch, count)) {
    shares.push_back(
        {.sequence = {share.sequence}, .tokens = share.tokens, .learn = share.do_not_learn == 0});
  }
  return shares;
}

std::vector<SequenceId> ids_of(const char *name, const squat_sequence *sequences, std::size_t count) {
  if (count > 0) there(name, sequences);
  std::vector<SequenceId> ids;
  for (const squat_sequence sequence : std::span(sequences, count)) ids.push_back({sequence});
  return ids;
}

std::vector<float> floats_of(const float *values, int count) {
  if (values == nullptr || count <= 0) return {};
  return {values, values + count};
}

squat::Options options_of(const squat_group &group) {
  squat::Options options{.query_heads = group.query_heads,
                         .kv_heads = group.kv_heads,
                         .head_dim = group.head_dim,
                         .value_dim = group.value_dim};
  switch (group.coding) {
    case SQUAT_CODING_DEFAULT:
      break;
    case SQUAT_CODING_PLAIN:
      options.coding = squat::Coding::plain;
      break;
    case SQUAT_CODING_ORTHOGONAL:
      options.coding = squat::Coding::orthogonal;
      break;
    case SQUAT_CODING_SUBSPACE:
      options.coding = squat::Coding::subspace;
      break;
    default:
      squat::throw_invalid("coding", static_cast<int>(group.coding), "a squat_coding");
  }
  switch (group.learning) {
    case SQUAT_LEARNING_FIRST_TOKENS:
      options.learning = squat::LearningMode::first_tokens;
      break;
    case SQUAT_LEARNING_PER_SEQUENCE:
      options.learning = squat::LearningMode::per_sequence;
      break;
    case SQUAT_LEARNING_FROZEN:
      options.learning = squat::LearningMode::frozen;
      break;
    default:
      squat::throw_invalid("learning", static_cast<int>(group.learning), "a squat_learning");
  }
  options.sinks = group.sinks;
  options.residual = group.residual;
  options.page_tokens = group.page_tokens;
  if (group.tile_tokens >= 0) options.tile_tokens = group.tile_tokens;
  options.statistics_tokens = group.statistics_tokens;
  options.attention_window = group.attention_window;
  options.rollback_tokens = group.rollback_tokens;
  options.keys_have_biases = group.keys_have_biases != 0;
  options.attention_scale = group.attention_scale;
  options.soft_cap = group.soft_cap;
  if (group.rotary_pairs_count > 0) {
    there("inverse_frequencies", group.inverse_frequencies);
    options.rotary = {{.inverse_frequencies = {group.inverse_frequencies,
                                               group.inverse_frequencies + group.rotary_pairs_count},
                       .pairs = group.rotary_pairs == SQUAT_ROTARY_HALVES
                                    ? squat::RotaryPairs::halves
                                    : squat::RotaryPairs::interleaved}};
  }
  options.alibi_slopes = floats_of(group.alibi_slopes, group.query_heads);
  options.sink_logits = floats_of(group.sink_logits, group.query_heads);
  return options;
}

}  // namespace

const char *squat_last_error() { return last_error; }

const char *squat_version() {
  return SQUAT_VERSION_TEXT(SQUAT_VERSION_MAJOR, SQUAT_VERSION_MINOR, SQUAT_VERSION_PATCH);
}

void squat_group_init(squat_group *group) {
  const squat::Options defaults;
  *group = {};
  group->struct_size = sizeof *group;
  group->key_bits = group->value_bits = squat::LayerGroup{}.key_bits;
  group->sinks = defaults.sinks;
  group->residual = defaults.residual;
  group->page_tokens = defaults.page_tokens;
  group->tile_tokens = -1;
  group->statistics_tokens = defaults.statistics_tokens;
}

squat_model *squat_model_create(int layers) {
  squat_model *model = nullptr;
  guarded([&] {
    model = new squat_model;
    model->options.layers = layers;
  });
  return model;
}

void squat_model_destroy(squat_model *model) { delete model; }

squat_status squat_model_add_group(squat_model *model, const int *layers, size_t count,
                                   const squat_group *group) {
  return guarded([&] {
    const squat_group &given = there("group", group);
    if (given.struct_size != sizeof given)
      squat::throw_invalid("group.struct_size", given.struct_size, "what squat_group_init() writes,",
                           sizeof given);
    if (count > 0) there("layers", layers);
    there("model", model)
        .options.groups.push_back({.layers = {layers, layers + count},
                                   .options = options_of(given),
                                   .key_bits = given.key_bits,
                                   .value_bits = given.value_bits});
  });
}

squat_status squat_model_share_layer(squat_model *model, int layer, int keys_of) {
  return guarded([&] { there("model", model).options.shared_layers.push_back({layer, keys_of}); });
}

squat_status squat_model_skip_layer(squat_model *model, int layer) {
  return guarded([&] { there("model", model).options.layers_without_keys.push_back(layer); });
}

squat_status squat_model_set_exact_rows(squat_model *model, squat_element element) {
  return guarded([&] { there("model", model).options.exact_rows = type_of(element); });
}

squat_status squat_model_set_max_page_bytes(squat_model *model, uint64_t bytes) {
  return guarded([&] { there("model", model).options.max_page_bytes = bytes; });
}

squat_status squat_model_set_parallel(squat_model *model, squat_run run, void *context) {
  return guarded([&] {
    if (run == nullptr) {
      there("model", model).options.parallel = {};
      return;
    }
    there("model", model).options.parallel = [run, context](int count, squat::Task task) {
      // What a task throws is kept from the callback's threads.
      struct Tasks {
        squat::Task task;
        std::exception_ptr thrown{};
        std::atomic_flag has_thrown{};
      } tasks{task};
      run(
          context, count,
          [](void *of_task, int index) {
            auto &all = *static_cast<Tasks *>(of_task);
            try {
              all.task(index);
            } catch (...) {
              if (!all.has_thrown.test_and_set()) all.thrown = std::current_exception();
            }
          },
          &tasks);
      if (tasks.thrown) std::rethrow_exception(tasks.thrown);
    };
  });
}

squat_status squat_cache_create(const squat_model *model, squat_cache **cache) {
  return guarded([&] {
    squat_cache *&made = there("cache", cache);
    made = new squat_cache{squat::ModelCache(there("model", model).options, squat::make_cpu_group)};
  });
}

void squat_cache_destroy(squat_cache *cache) { delete cache; }

squat_status squat_add_sequence(squat_cache *cache, squat_sequence *sequence) {
  return guarded([&] {
    squat_sequence &added = there("sequence", sequence);  // before anything changes
    added = there("cache", cache).cache.add_sequence().value;
  });
}

squat_status squat_remove_sequence(squat_cache *cache, squat_sequence sequence) {
  return guarded([&] { there("cache", cache).cache.remove_sequence({sequence}); });
}

squat_status squat_fork(squat_cache *cache, squat_sequence parent, int64_t tokens,
                        squat_sequence *child) {
  return guarded([&] {
    squat_sequence &made = there("child", child);
    made = there("cache", cache).cache.fork({parent}, tokens).value;
  });
}

squat_status squat_reorder(squat_cache *cache, const squat_sequence *sequences,
                           const squat_sequence *parents, size_t count) {
  return guarded([&] {
    there("cache", cache)
        .cache.reorder(ids_of("sequences", sequences, count), ids_of("parents", parents, count));
  });
}

squat_status squat_truncate(squat_cache *cache, squat_sequence sequence, int64_t tokens) {
  return guarded([&] { there("cache", cache).cache.truncate({sequence}, tokens); });
}

squat_status squat_shift(squat_cache *cache, squat_sequence sequence, int64_t first, int64_t last,
                         int64_t by) {
  return guarded([&] { there("cache", cache).cache.shift({sequence}, first, last, by); });
}

squat_status squat_length(const squat_cache *cache, squat_sequence sequence, int64_t *tokens) {
  return guarded([&] { there("tokens", tokens) = there("cache", cache).cache.length({sequence}); });
}

squat_status squat_layer_length(const squat_cache *cache, squat_sequence sequence, int layer,
                                int64_t *tokens) {
  return guarded(
      [&] { there("tokens", tokens) = there("cache", cache).cache.length({sequence}, layer); });
}

squat_status squat_reset_learning(squat_cache *cache) {
  return guarded([&] { there("cache", cache).cache.reset_learning(); });
}

squat_status squat_attend(squat_cache *cache, const squat_share *batch, size_t count, int layer,
                          squat_tensor q, squat_tensor k, squat_tensor v, squat_tensor out, float *lse) {
  return guarded([&] {
    const auto shares = batch_of(batch, count);
    with_tensors(q, k, v, out, lse, [&](const auto &tensors) {
      there("cache", cache).cache.attend(shares, layer, tensors);
    });
  });
}

squat_status squat_draft(squat_cache *cache, const squat_share *batch, size_t count, int layer,
                         squat_tensor q, squat_tensor k, squat_tensor v, squat_tensor out,
                         const int64_t *parents, float *lse) {
  return guarded([&] {
    const auto shares = batch_of(batch, count);
    const int64_t *first = &there("parents", parents);
    const std::vector<Index> of_rows(first, first + std::max<int64_t>(q.tokens, 0));
    with_tensors(q, k, v, out, lse, [&](const auto &tensors) {
      there("cache", cache).cache.draft(shares, layer, tensors, of_rows);
    });
  });
}

squat_status squat_append(squat_cache *cache, const squat_share *batch, size_t count, int layer,
                          squat_tensor q, squat_tensor k, squat_tensor v) {
  return guarded([&] {
    const auto shares = batch_of(batch, count);
    squat::with_element(type_of(k.element), [&]<class S>() {
      there("cache", cache)
          .cache.append(shares, layer, view_of<const S>("q", q, k.element),
                        view_of<const S>("k", k, k.element), view_of<const S>("v", v, k.element));
    });
  });
}

squat_status squat_dequantize(squat_cache *cache, squat_sequence sequence, int layer, squat_tensor k,
                              squat_tensor v) {
  return guarded([&] {
    squat::with_element(type_of(k.element), [&]<class S>() {
      there("cache", cache)
          .cache.dequantize({sequence}, layer, view_of<S>("k", k, k.element),
                            view_of<S>("v", v, k.element));
    });
  });
}

squat_status squat_save(squat_cache *cache, squat_sequence sequence, int with_codings, squat_write write,
                        void *context) {
  return guarded([&] {
    there("write", write);
    squat::AnySink sink{[&](std::span<const std::byte> bytes) {
      if (write(context, bytes.data(), bytes.size()) != 0)
        throw std::runtime_error("squat: the snapshot could not be written");
    }};
    there("cache", cache).cache.save({sequence}, sink, {.codings = with_codings != 0});
  });
}

squat_status squat_load(squat_cache *cache, squat_read read, void *context, squat_sequence *sequence) {
  return guarded([&] {
    there("read", read);
    squat_sequence &loaded = there("sequence", sequence);
    squat::AnySource source{[&](std::span<std::byte> bytes) {
      if (read(context, bytes.data(), bytes.size()) != 0)
        throw std::runtime_error("squat: the snapshot could not be read");
    }};
    loaded = there("cache", cache).cache.load(source).value;
  });
}

squat_status squat_memory_report(const squat_cache *cache, squat_memory *memory) {
  return guarded([&] {
    const squat::ModelCache &of = there("cache", cache).cache;
    const squat::MemoryReport report = of.memory_report();
    there("memory", memory) = {.pages = report.pages,
                               .pages_used = report.pages_used,
                               .exact = report.exact,
                               .statistics = report.statistics,
                               .bases = report.bases,
                               .workspace = report.workspace,
                               .shared_pages = report.shared_pages,
                               .saved_by_sharing = report.saved_by_sharing,
                               .packed_tokens = report.packed_tokens,
                               .exact_tokens = report.exact_tokens,
                               .packed_bits_per_element = report.packed_bits_per_element,
                               .total_bits_per_element = report.total_bits_per_element,
                               .free_page_bytes = of.free_page_bytes()};
  });
}

squat_status squat_page_bytes_due(const squat_cache *cache, const squat_share *batch, size_t count,
                                  uint64_t *bytes) {
  return guarded([&] {
    there("bytes", bytes) = there("cache", cache).cache.page_bytes_due(batch_of(batch, count));
  });
}
