#pragma once

// What learn_heads() is asked, in types that are the same for all instruction sets.

#include <span>

#include "squat/coding/coding.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary_table.hpp"
#include "squat/core/config.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// How the keys of a layer are coded, and what is known of them.
struct LayerLearning {
  Coding coding{};
  AffineFit fit{};
  OrthogonalOptions orthogonal{};
  int key_bits = 0;
  Index head_dim = 0;
  bool biased_first = false;               ///< see is_of_text()
  const RotaryTable *rotary = nullptr;     ///< of the tile frame; null: none
  Index frame_rows = 0;                    ///< of that frame
  bool weighs_attention = false;           ///< QueryWeighting::attention
  std::span<const QueryStatistics> heads;  ///< of each KV head
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
