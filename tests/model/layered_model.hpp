#pragma once

// A model of seven layers: exact ones at its borders, local and global ones between, one that shares
// keys and one that has none.

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "squat/model.hpp"

namespace squat::test {

inline LayerGroup exact_layers() {
  return {
      .layers = {0, 4},
      .options = {.query_heads = 4, .kv_heads = 2, .head_dim = 32, .residual = 10, .page_tokens = 16},
      .key_bits = 16,
      .value_bits = 16};
}

inline LayerGroup local_layers() {
  LayerGroup group{.layers = {3, 1},
                   .options = {.query_heads = 3, .kv_heads = 1, .head_dim = 48, .residual = 20},
                   .key_bits = 4,
                   .value_bits = 4};
  group.options.page_tokens = 16;
  group.options.attention_window = 40;
  group.options.statistics_tokens = 50;
  return group;
}

inline LayerGroup global_layers() {
  LayerGroup group{.layers = {2},
                   .options = {.query_heads = 6, .kv_heads = 2, .head_dim = 64, .residual = 16},
                   .key_bits = 2,
                   .value_bits = 3};
  group.options.page_tokens = 32;
  group.options.statistics_tokens = 60;
  group.options.rotary = {rotary_table(1e4, 64)};
  return group;
}

inline ModelOptions layered_model() {
  return {.layers = 7,
          .groups = {exact_layers(), local_layers(), global_layers()},
          .shared_layers = {{.layer = 5, .keys_of = 2}},
          .layers_without_keys = {6}};
}

/// Queries, keys and values of each group, the same for all of its layers.
class ModelInputs {
 public:
  explicit ModelInputs(const ModelOptions &options, Index tokens = 200, unsigned seed = 1) {
    for (const LayerGroup &group : options.groups) {
      of_group_.emplace_back(group.options, tokens, seed);
      for (const int layer : group.layers)
        groups_[static_cast<std::size_t>(layer)] = of_group_.size() - 1;
    }
    for (const SharedLayer &shared : options.shared_layers)
      groups_[static_cast<std::size_t>(shared.layer)] =
          groups_[static_cast<std::size_t>(shared.keys_of)];
  }

  Inputs<> &of(int layer) { return of_group_[groups_[static_cast<std::size_t>(layer)]]; }

 private:
  std::vector<Inputs<>> of_group_;
  std::array<std::size_t, 7> groups_{};
};

inline constexpr std::array layers_with_keys = {0, 1, 2, 3, 4};

/// Feeds tokens of the inputs to every layer.
inline void feed(ModelCache &cache, SequenceId sequence, ModelInputs &in, Index first, Index count) {
  for (const int layer : layers_with_keys) {
    auto &[q, k, v, out] = in.of(layer);
    cache.attend(sequence, layer, q.view(first, count), k.view(first, count), v.view(first, count),
                 out.view(first, count));
  }
}

/// What a caller can see of a sequence: its lengths, and attention to all it has in every layer.
inline std::vector<float> seen(ModelCache &cache, SequenceId sequence, ModelInputs &in) {
  std::vector<float> all{static_cast<float>(cache.length(sequence))};
  for (const int layer : layers_with_keys) {
    all.push_back(static_cast<float>(cache.length(sequence, layer)));
    if (cache.length(sequence, layer) == 0) continue;
    Inputs<> &inputs = in.of(layer);
    Tensor<float> out(1, inputs.q.heads, inputs.q.head_dim);
    cache.attend(sequence, layer, inputs.q.view(0, 1), out.view());
    all.insert(all.end(), out.elements.begin(), out.elements.end());
  }
  return all;
}

}  // namespace squat::test
