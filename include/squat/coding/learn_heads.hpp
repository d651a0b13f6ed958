#pragma once

// What a layer's heads learn from their statistics, for backends whose host learns and whose device
// codes.

#include <cstddef>
#include <optional>
#include <vector>

#include "squat/coding/coding_record.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/layer_learning.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/parallel.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// What each head has learnt, matrices rounded. Empty where statistics are of no text, see is_of_text().
/// A task a head.
template <class Real = double>
std::vector<HeadRecord> learn_heads(const LayerLearning &layer, const Parallel &parallel) {
  std::optional<TileFrame> frame;
  if (layer.rotary != nullptr) frame.emplace(*layer.rotary, layer.frame_rows);
  std::vector<HeadRecord> records(layer.heads.size());
  std::vector<Evidence> evidence(layer.heads.size());
  run_tasks(parallel, static_cast<int>(layer.heads.size()), [&](int head) {
    const auto i = static_cast<std::size_t>(head);
    KeyQuantizer quantizer(layer.coding, layer.fit, layer.orthogonal, layer.key_bits, layer.head_dim);
    evidence[i] = quantizer.learn<Real>(
        layer.heads[i], frame ? &*frame : nullptr,
        layer.weighs_attention ? QueryWeighting::attention : QueryWeighting::equal);
    quantizer.round_basis<Real>();
    records[i] = quantizer.record();
    records[i].value_mean = rotated_value_mean(layer.heads[i]);
  });
  if (!is_of_text(evidence, layer.biased_first)) records.clear();
  return records;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
