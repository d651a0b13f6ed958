#pragma once

// How the bytes of pages are shared out among the layers of a model.
//
// A layer adds its output o to what the next ones read. What errors in its keys and values do to o
// (attention_weights.hpp) counts relative to |o|^2: layers' outputs have different sizes, and what
// follows them is normalised.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "squat/coding/layer_allocation.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// The choices of a layer: of the keys of every KV head, then of their values. Errors are of its
/// outputs, `output_square` is the sum of |o|^2 over the same queries.
struct LayerChoices {
  std::vector<std::vector<Choice>> items;
  double output_square = 0;

  /// An error beside the outputs. What is added up to first order has no bound, where an output that is
  /// lost, as with scores so large that one token takes all, errs by not much more than itself.
  double relative(double error) const {
    return error + output_square > 0 ? error / (error + output_square) : 0;
  }

  /// Bytes that are not to choose from.
  std::size_t fixed_bytes() const {
    std::size_t sum = 0;
    for (const auto &choices : items) sum += choices.size() == 1 ? choices.front().bytes : 0;
    return sum;
  }
};

/// Bytes of each layer's codes, `equal` on average, that make the errors of all layers together least.
/// They differ from `equal` by multiples of about an eighth of what is to choose from: layers of one
/// size share a pool of pages, so there shall be few. None has less than three eighths.
inline std::vector<std::size_t> layer_sizes(std::span<const LayerChoices> layers, std::size_t equal) {
  constexpr std::size_t parts = 8, parts_less = 5, parts_more = 24;
  std::size_t step = 0, first = 0;
  const std::size_t part = (equal - layers.front().fixed_bytes()) / parts;
  const std::size_t most = equal + parts_more * part;
  std::vector<std::vector<Choice>> items;  // of every layer its sizes, less the first
  for (const LayerChoices &layer : layers) {
    const Knapsack of_layer(layer.items, most);
    if (step == 0) {
      step = std::max<std::size_t>(part / of_layer.step(), 1) * of_layer.step();
      first = equal - std::min(parts_less, equal / step) * step;
    }
    std::vector<Choice> &choices = items.emplace_back();
    for (std::size_t size = first; size <= most; size += step) {
      const double error = of_layer.error(size);
      if (std::isfinite(error)) choices.push_back({size - first, layer.relative(error)});
    }
  }
  const std::size_t budget = layers.size() * (equal - first);
  const std::vector<std::size_t> chosen = Knapsack(items, budget).choose(budget);
  std::vector<std::size_t> bytes;
  for (std::size_t layer = 0; layer < layers.size(); ++layer)
    bytes.push_back(first + items[layer][chosen[layer]].bytes);
  return bytes;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
