#include "layer_groups.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace squat_llama {
namespace {

bool same_kind(const squat::Options &a, const squat::Options &b) {
  const squat::RotaryTable &of_a = a.rotary.front(), &of_b = b.rotary.front();
  return a.query_heads == b.query_heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim &&
         a.value_dim == b.value_dim && a.attention_scale == b.attention_scale &&
         a.attention_window == b.attention_window && a.soft_cap == b.soft_cap &&
         a.keys_have_biases == b.keys_have_biases && of_a.pairs == of_b.pairs &&
         of_a.inverse_frequencies == of_b.inverse_frequencies;
}

}  // namespace

squat::ModelOptions group_layers(
    std::span<const squat::Options> shapes,
    const std::function<squat::LayerGroup(const squat::Options &)> &make_group) {
  squat::ModelOptions model{.layers = static_cast<int>(shapes.size())};
  std::vector<squat::Options> kinds;
  for (int layer = 0; layer < model.layers; ++layer) {
    const squat::Options &shape = shapes[static_cast<std::size_t>(layer)];
    const auto kind = std::find_if(kinds.begin(), kinds.end(),
                                   [&](const squat::Options &known) { return same_kind(known, shape); });
    const auto group = static_cast<std::size_t>(kind - kinds.begin());
    if (kind == kinds.end()) {
      kinds.push_back(shape);
      model.groups.push_back(make_group(shape));
    }
    model.groups[group].layers.push_back(layer);
  }
  return model;
}

}  // namespace squat_llama
