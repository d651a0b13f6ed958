#pragma once

// What may become of scores, one rule a benchmark: on the CPU and on the device.

#include <cstddef>

#include "squat/cache/options.hpp"
#include "squat/core/config.hpp"

namespace bench {

enum class Rule { window, cap, alibi, sink_logits, lse };
inline constexpr Rule rules[] = {Rule::window, Rule::cap, Rule::alibi, Rule::sink_logits, Rule::lse};

constexpr const char *name_of(Rule rule) {
  constexpr const char *names[] = {"window", "cap", "alibi", "sink_logits", "lse"};
  return names[static_cast<std::size_t>(rule)];
}

/// Every one of `tokens` tokens stays in the window: the work is that of attention without a rule. lse
/// is asked for by calls.
inline squat::Options with_rule(squat::Options options, Rule rule, squat::Index tokens) {
  const auto heads = static_cast<std::size_t>(options.query_heads);
  if (rule == Rule::window) options.attention_window = static_cast<int>(tokens) + 1;
  if (rule == Rule::cap) options.soft_cap = 50;
  if (rule == Rule::alibi) options.alibi_slopes.assign(heads, 1e-4f);
  if (rule == Rule::sink_logits) options.sink_logits.assign(heads, 1.0f);
  return options;
}

}  // namespace bench
