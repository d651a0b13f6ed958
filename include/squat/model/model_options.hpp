#pragma once

// What an engine says of a model's layers.

#include <cstddef>
#include <limits>
#include <vector>

#include "squat/cache/options.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/parallel.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Layers of one shape and coding: all of a model's, its local or its global ones, those that are to
/// stay exact.
struct LayerGroup {
  std::vector<int> layers{};  ///< their numbers in the model
  Options options{};   ///< theirs. Options::layers may be left at 0; what is given a layer stands in
                       ///< the order above
  int key_bits = 2;    ///< 2, 3, 4, 8, or 16: exact
  int value_bits = 2;  ///< likewise
};

/// A layer without keys of its own, which attends to those of another (Gemma 3n, and other models that
/// share keys between layers).
struct SharedLayer {
  int layer = 0;    ///< its number in the model
  int keys_of = 0;  ///< that of the layer whose keys and values it sees
};

/// What an engine chooses when it makes a ModelCache.
struct ModelOptions {
  int layers = 0;                            ///< of the model. Each is named once below
  std::vector<LayerGroup> groups{};          ///< layers with keys of their own; at least one group
  std::vector<SharedLayer> shared_layers{};  ///< layers that see the keys of others
  std::vector<int> layers_without_keys{};    ///< which keep none, such as recurrent ones

  ElementType exact_rows = ElementType::float16;  ///< T of a KVCache

  /// Bytes that the pages of all groups may have together (PageBudget).
  std::size_t max_page_bytes = std::numeric_limits<std::size_t>::max();

  Parallel parallel{};  ///< of groups that have none of their own
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
