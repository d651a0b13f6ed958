#include "rotary_of.hpp"

#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <set>
#include <stdexcept>
#include <vector>

namespace squat_llama {
namespace {

/// [channel in, channel out]: what ggml makes of the unit vector of each channel at a position.
class Turned {
 public:
  Turned(const ggml_tensor &rope, std::int32_t position) : channels_(rope.ne[0]) {
    const auto count = static_cast<std::size_t>(channels_ * channels_);
    const ggml_tensor *const factors = rope.src[2];
    const std::size_t factor_bytes = factors ? ggml_nbytes(factors) : 0;
    const std::size_t bytes = 2 * count * sizeof(float) + factor_bytes + (std::size_t{4} << 20);
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
        ggml_init({.mem_size = bytes, .mem_buffer = nullptr, .no_alloc = false}), ggml_free);
    if (!context) throw std::bad_alloc();

    ggml_tensor *const units = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, channels_, channels_, 1);
    std::memset(units->data, 0, ggml_nbytes(units));
    for (std::int64_t channel = 0; channel < channels_; ++channel)
      static_cast<float *>(units->data)[channel * channels_ + channel] = 1;
    ggml_tensor *const at = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 1);
    std::memcpy(at->data, &position, sizeof position);
    ggml_tensor *own_factors = nullptr;
    if (factors != nullptr) {
      own_factors = ggml_dup_tensor(context.get(), factors);
      ggml_backend_tensor_get(factors, own_factors->data, 0, factor_bytes);
    }
    ggml_tensor *const turned =
        ggml_rope_ext(context.get(), units, at, own_factors, 2, 0, 0, 10000, 1, 0, 1, 0, 0);
    std::memcpy(turned->op_params, rope.op_params, sizeof rope.op_params);  // the node's own
    ggml_cgraph *const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, turned);
    if (ggml_graph_compute_with_ctx(context.get(), graph, 1) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml could not turn unit vectors");
    const auto *const data = static_cast<const float *>(turned->data);
    values_.assign(data, data + count);
  }

  double operator()(squat::Index in, squat::Index out) const {
    return static_cast<double>(values_[static_cast<std::size_t>(in * channels_ + out)]);
  }

 private:
  std::int64_t channels_;
  std::vector<float> values_;
};

/// Whether it is the table's turn at the position, up to one factor of all turned channels (YaRN's).
bool is_turn_of(const Turned &turned, const squat::RotaryTable &table, squat::Index channels,
                int position) {
  constexpr double tolerance = 1e-4;
  std::vector<double> expected(static_cast<std::size_t>(channels * channels));
  const auto at = [&](squat::Index in, squat::Index out) -> double & {
    return expected[static_cast<std::size_t>(in * channels + out)];
  };
  for (squat::Index channel = 2 * table.pair_count(); channel < channels; ++channel)
    at(channel, channel) = 1;
  const auto [first, second] = table.channels(0);
  const double factor = std::hypot(turned(first, first), turned(first, second));
  for (squat::Index pair = 0; pair < table.pair_count(); ++pair) {
    const auto [a, b] = table.channels(pair);
    const double angle =
        position * static_cast<double>(table.inverse_frequencies[static_cast<std::size_t>(pair)]);
    at(a, a) = at(b, b) = factor * std::cos(angle);
    at(a, b) = factor * std::sin(angle);
    at(b, a) = -factor * std::sin(angle);
  }
  for (squat::Index in = 0; in < channels; ++in) {
    for (squat::Index out = 0; out < channels; ++out) {
      if (!(std::abs(turned(in, out) - at(in, out)) <= tolerance)) return false;
    }
  }
  return true;
}

/// Nodes that hand on what they are given in another shape.
bool hands_on(const ggml_tensor &node) {
  return node.op == GGML_OP_VIEW || node.op == GGML_OP_RESHAPE || node.op == GGML_OP_PERMUTE ||
         node.op == GGML_OP_CONT;
}

/// Whether a rotary embedding is among the nodes between the product with the layer's weights and this.
bool is_turned(const ggml_tensor *node, std::set<const ggml_tensor *> &visited) {
  if (node == nullptr || !visited.insert(node).second) return false;
  if (node->op == GGML_OP_ROPE) return true;
  if (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_NONE) return false;
  return std::any_of(std::begin(node->src), std::end(node->src),
                     [&](const ggml_tensor *source) { return is_turned(source, visited); });
}

}  // namespace

squat::RotaryTable rotary_of(const ggml_tensor &rope) {
  // Where ggml_rope_ext() puts them. A ggml that puts them elsewhere does not pass the check below.
  const std::int32_t turned_channels = rope.op_params[1], mode = rope.op_params[2];
  const squat::Index channels = rope.ne[0];
  if ((mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) || turned_channels < 2 ||
      turned_channels > channels || turned_channels % 2 != 0)
    throw std::invalid_argument(
        "the rotary embedding is of a kind that the cache does not know (M-RoPE)");
  squat::RotaryTable table{.pairs = mode == GGML_ROPE_TYPE_NEOX ? squat::RotaryPairs::halves
                                                                : squat::RotaryPairs::interleaved};
  table.inverse_frequencies.resize(static_cast<std::size_t>(turned_channels / 2));
  const Turned by_one(rope, 1);
  for (squat::Index pair = 0; pair < table.pair_count(); ++pair) {
    const auto [a, b] = table.channels(pair);
    table.inverse_frequencies[static_cast<std::size_t>(pair)] =
        static_cast<float>(std::atan2(by_one(a, b), by_one(a, a)));
  }
  for (const int position : {1, 100}) {
    if (!is_turn_of(Turned(rope, position), table, channels, position))
      throw std::invalid_argument(
          "the rotary embedding turns channels in a way that the cache does not know");
  }
  return table;
}

squat::RotaryTable rotary_of_keys(const ggml_tensor &keys, squat::Index head_dim, squat::Index heads) {
  const ggml_tensor *node = &keys;
  while (hands_on(*node)) node = node->src[0];
  if (node->op != GGML_OP_ROPE) {
    std::set<const ggml_tensor *> visited;
    if (is_turned(node, visited))
      throw std::invalid_argument(
          "keys are changed behind their rotary embedding, or are turned in part");
    return {};
  }
  if (node->ne[0] != head_dim || node->ne[1] != heads)
    throw std::invalid_argument("the rotary embedding has other heads than the keys");
  return rotary_of(*node);
}

}  // namespace squat_llama
