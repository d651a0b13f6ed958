#pragma once

// How the bits of a page are shared out among the KV heads of a layer: by what errors of each do to
// attention outputs (attention_weights.hpp), so that the error of all together is least at the bytes
// there are.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/codes.hpp"
#include "squat/coding/trellis.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// One of several ways to code something.
struct Choice {
  std::size_t bytes;
  double error;
};

/// What choices of several items, one of each, add up to: the multiple-choice knapsack, by dynamic
/// programming in steps of the bytes' greatest common divisor.
class Knapsack {
 public:
  /// For budgets of up to `most` bytes. items: read by choose() too.
  Knapsack(std::span<const std::vector<Choice>> items, std::size_t most) : items_(items) {
    for (const auto &choices : items) {
      for (const Choice &choice : choices) step_ = std::gcd(step_, choice.bytes);
    }
    step_ = std::max<std::size_t>(step_, 1);
    const std::size_t steps = most / step_ + 1;
    least_.assign(steps, 0.0);
    std::vector<double> next(steps);
    for (const auto &choices : items) {
      std::fill(next.begin(), next.end(), none);
      std::vector<std::uint16_t> &best = chosen_.emplace_back(steps);
      for (std::size_t i = 0; i < choices.size(); ++i) {
        const std::size_t size = choices[i].bytes / step_;
        for (std::size_t at = size; at < steps; ++at) {
          const double error = least_[at - size] + choices[i].error;
          if (error >= next[at]) continue;
          next[at] = error;
          best[at] = static_cast<std::uint16_t>(i);
        }
      }
      std::swap(least_, next);
    }
  }

  /// What all choices' bytes are a multiple of.
  std::size_t step() const { return step_; }

  /// The least error that at most `budget` bytes allow; infinite if there are too few for any choices.
  double error(std::size_t budget) const { return least_[budget / step_]; }

  /// The index of each item's choice that gives it; empty if there is none.
  std::vector<std::size_t> choose(std::size_t budget) const {
    if (error(budget) == none) return {};
    std::vector<std::size_t> indices(items_.size());
    std::size_t at = budget / step_;
    for (std::size_t item = items_.size(); item-- > 0;) {
      indices[item] = chosen_[item][at];
      at -= items_[item][indices[item]].bytes / step_;
    }
    return indices;
  }

 private:
  static constexpr double none = std::numeric_limits<double>::infinity();

  std::span<const std::vector<Choice>> items_;
  std::size_t step_ = 0;
  std::vector<double> least_;                       // of all items, in so many steps
  std::vector<std::vector<std::uint16_t>> chosen_;  // [items, steps]
};

/// The allocations of a head's keys worth choosing from: of every number of bytes that makes the error
/// less the best. Their bytes rise from none.
struct KeyChoices {
  std::vector<BitAllocation> allocations;
  std::vector<Choice> choices;
};

/// variance: of each channel, [head_dim], falling, times what its error weighs. errors: of the codes.
/// tokens: of a page. most_bytes: of any choice.
inline KeyChoices key_choices(std::span<const double> variance, const CodeErrors &errors, Index tokens,
                              std::size_t most_bytes) {
  constexpr std::array<int, BitAllocation::most_runs> widths = {8, 4, 3, 2, 1};
  constexpr double none = std::numeric_limits<double>::infinity();
  const auto d = static_cast<Index>(variance.size());
  const Index unit = allocation_unit(d), units = d / unit;
  // Bytes are counted in blocks of 16 tokens.
  const auto blocks = [&](int bits, Index count) {
    return static_cast<Index>(code_bytes(bits, lanes, count * unit)) / block_bytes;
  };
  const Index most = blocks(widths[0], units) + 1;
  std::vector<double> sums(1, 0.0);  // of the first units' variances
  for (Index i = 0; i < d; i += unit) {
    sums.push_back(std::accumulate(variance.begin() + i, variance.begin() + i + unit, sums.back()));
  }
  const auto sum = [&](Index first, Index last) {
    return sums[static_cast<std::size_t>(last)] - sums[static_cast<std::size_t>(first)];
  };
  // least[u][b]: the error of the first u units in b blocks, at the widths so far; taken[w][u][b]: how
  // many of these units have width w.
  const auto at = [&](Index u, Index b) { return static_cast<std::size_t>(u * most + b); };
  std::vector<double> least(at(units + 1, 0), none);
  least[0] = 0;
  std::array<std::vector<std::uint8_t>, widths.size()> taken;
  for (std::size_t w = 0; w < widths.size(); ++w) {
    std::vector<double> next = least;
    taken[w].resize(least.size());
    for (Index u = 0; u < units; ++u) {
      for (Index count = 1; u + count <= units; ++count) {
        const Index size = blocks(widths[w], count);
        const double error = errors(widths[w]) * sum(u, u + count);
        for (Index b = 0; b + size < most; ++b) {
          const double with = least[at(u, b)] + error;
          double &best = next[at(u + count, b + size)];
          if (with >= best) continue;
          best = with;
          taken[w][at(u + count, b + size)] = static_cast<std::uint8_t>(count);
        }
      }
    }
    least = std::move(next);
  }
  KeyChoices result;
  for (Index b = 0; b < most; ++b) {
    Index coded = 0;
    double error = none;
    for (Index u = 0; u <= units; ++u) {
      const double with = least[at(u, b)] + errors(0) * sum(u, units);
      if (with >= error) continue;
      error = with;
      coded = u;
    }
    const auto bytes = static_cast<std::size_t>(b * block_bytes * (tokens / lanes));
    if (bytes > most_bytes) break;
    if (error == none || (b > 0 && error >= result.choices.back().error)) continue;
    result.choices.push_back({bytes, error});
    std::array<Index, widths.size()> counts{};
    for (std::size_t w = widths.size(), left = static_cast<std::size_t>(b); w-- > 0;) {
      counts[w] = taken[w][at(coded, static_cast<Index>(left))];
      coded -= counts[w];
      left -= static_cast<std::size_t>(blocks(widths[w], counts[w]));
    }
    BitAllocation &allocation = result.allocations.emplace_back();
    for (std::size_t w = 0; w < widths.size(); ++w) allocation.add(widths[w], counts[w] * unit);
  }
  return result;
}

/// Mean squared errors of symmetric codes of Gaussian numbers, at the step of least error (Max, 1960).
inline constexpr CodeErrors symmetric_errors = {.363, .119, .0374, .0115, 1e-4};

/// Those of trellis codes up to 3 bits (trellis.hpp), scalar ones above: of keys as they are read, of
/// values before the gain that takes their bias away.
inline constexpr CodeErrors trellis_key_errors = {trellis_code(1).error, trellis_code(2).error,
                                                  trellis_code(3).error, .0115, 5e-5};
inline constexpr CodeErrors trellis_value_errors = [] {
  const auto with_bias = [](double error) { return error / (1 + error); };
  return CodeErrors{with_bias(trellis_code(1).error), with_bias(trellis_code(2).error),
                    with_bias(trellis_code(3).error), .0115, 1e-4};
}();

/// Widths that values of a head may have where bits are shared out: 1 to this.
inline constexpr int widest_value = 4;

/// Those of a head's values. weight: sum e of the head. Codes without bias along a value err by D / (1 -
/// D) of its square, where those of least error err by D.
inline std::vector<Choice> value_choices(double weight, const CodeErrors &errors, Index head_dim,
                                         Index tokens) {
  std::vector<Choice> choices;
  for (int bits = 1; bits <= widest_value; ++bits) {
    const double error = errors(bits);
    choices.push_back({code_bytes(bits, head_dim, tokens), weight * error / (1 - error)});
  }
  return choices;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
