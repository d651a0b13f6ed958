#pragma once

// How many bits each channel of a page's keys gets.

#include <array>
#include <limits>
#include <numeric>
#include <span>

#include "squat/coding/codes.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Neighbouring channels coded at one width.
struct CodeRun {
  int bits = 0;
  Index first = 0;
  Index channels = 0;
};

/// Runs of channels of falling width from channel 0 on. Channels behind the
/// last run have no codes: a page keeps their mean alone.
class BitAllocation {
 public:
  static constexpr int most_runs = 5;

  BitAllocation() = default;

  /// Every channel at one width.
  BitAllocation(int bits, Index head_dim) { add(bits, head_dim); }

  void add(int bits, Index channels) {
    if (channels == 0) return;
    runs_[count_++] = {bits, coded_channels_, channels};
    coded_channels_ += channels;
  }

  std::span<const CodeRun> runs() const { return {runs_.data(), count_}; }
  Index coded_channels() const { return coded_channels_; }

  /// Bytes of the codes of `tokens` tokens, the runs one behind the other.
  std::size_t bytes(Index tokens) const {
    std::size_t sum = 0;
    for (const CodeRun &run : runs()) sum += code_bytes(run.bits, tokens, run.channels);
    return sum;
  }

 private:
  std::array<CodeRun, most_runs> runs_{};
  std::size_t count_ = 0;
  Index coded_channels_ = 0;
};

/// Mean squared errors of a channel of unit variance at each width of its codes.
struct CodeErrors {
  double one, two, three, four, eight;

  double operator()(int bits) const {
    return bits == 0   ? 1
           : bits == 1 ? one
           : bits == 2 ? two
           : bits == 3 ? three
           : bits == 4 ? four
                       : eight;
  }
};

/// Of affine codes of groups of 128 Gaussian numbers, AffineFit::clip_and_gain.
inline constexpr CodeErrors affine_errors = {.60, .125, .046, .0115, 5e-5};

/// Channels of an allocation's unit. Blocks of 2-bit codes take 16 channels, so
/// that from units of 8 an even number must have 2 bits.
constexpr Index allocation_unit(Index head_dim) { return head_dim < 128 ? 8 : 16; }

/// Bits times units that every allocation of a head spends: `bits` on average,
/// or, where units of 8 channels cannot give that (3 bits and head_dim an odd
/// multiple of 16), the most below it that they can.
constexpr Index allocation_budget(int bits, Index head_dim) {
  const Index step = allocation_unit(head_dim) == 8 ? 4 : 2;
  return bits * (head_dim / allocation_unit(head_dim)) / step * step;
}

/// Reverse water-filling (Cover and Thomas, Elements of Information Theory,
/// section 10.3.3) over the widths 8, 4, 2 and 0: the allocation of least
/// predicted squared error whose widths average `bits`. variance: of each
/// channel, [head_dim], falling.
inline BitAllocation allocate_bits(std::span<const double> variance, int bits) {
  constexpr CodeErrors errors = affine_errors;
  const auto d = static_cast<Index>(variance.size());
  const Index unit = allocation_unit(d), units = d / unit;
  const Index budget = allocation_budget(bits, d);
  const auto sum = [&](Index first, Index last) {
    return std::accumulate(variance.begin() + first, variance.begin() + last, 0.0);
  };
  double least = std::numeric_limits<double>::infinity();
  BitAllocation best;
  for (Index n8 = 0; 8 * n8 <= budget && n8 <= units; ++n8) {
    for (Index n4 = 0; 8 * n8 + 4 * n4 <= budget && n8 + n4 <= units; ++n4) {
      const Index n2 = (budget - 8 * n8 - 4 * n4) / 2;
      if (n8 + n4 + n2 > units) continue;
      const Index e8 = n8 * unit, e4 = e8 + n4 * unit, e2 = e4 + n2 * unit;
      const double error =
          errors(8) * sum(0, e8) + errors(4) * sum(e8, e4) + errors(2) * sum(e4, e2) + sum(e2, d);
      if (error >= least) continue;
      least = error;
      best = {};
      best.add(8, n8 * unit);
      best.add(4, n4 * unit);
      best.add(2, n2 * unit);
    }
  }
  return best;
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
