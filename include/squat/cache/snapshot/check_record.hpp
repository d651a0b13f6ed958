#pragma once

// What a coding's record must be so that nothing that reads it comes to harm, whoever wrote it.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "squat/cache/options.hpp"
#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/inverse.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/prior.hpp"
#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// Checks the parts of a CodingRecord that every backend reads alike.
class RecordCheck {
 public:
  RecordCheck(const Options &options, int key_bits)
      : options_(options), key_bits_(key_bits), d_(options.head_dim) {}

  /// Throws Error. Array sizes are right already. How heads share bits is the backend's to check.
  void operator()(const CodingRecord &record) const {
    const bool learns = key_bits_ < 16 && learns_from_prompt(*options_.coding);
    require(learns || !record.learnt, "it has learnt what this coding does not learn");
    require(finite(record.value_gain) && all(record.value_weights, [](double x) { return x >= 0; }) &&
                finite(record.output_square) && record.output_square >= 0,
            "weights of attention");
    for (const HeadRecord &head : record.heads) {
      require(record.learnt || (head.mean.empty() && head.value_mean.empty() && head.matrix.empty() &&
                                head.order.empty()),
              "it holds what was not learnt yet");
      require((learns && !record.learnt) || head.statistics.empty(),
              "it holds statistics that nothing is to be learnt from");
      require(head.mean.empty() || *options_.tile_tokens > 0, "a mean key without a tile");
      require(all(head.mean, [](float x) { return std::abs(x) <= largest_element; }), "mean key");
      require(head.value_mean.empty() || *options_.values == ValueCoding::symmetric, "a mean value");
      require(all(head.value_mean,
                  [&](float x) {
                    return std::abs(x) <= largest_element * std::sqrt(static_cast<float>(d_));
                  }),
              "mean value");
      require(head.matrix.empty() || *options_.coding == Coding::subspace, "a basis");
      require(head.order.empty() || *options_.coding == Coding::orthogonal, "orthogonal rounding");
      if (!head.matrix.empty()) check_basis(head, record.shared);
      if (!head.order.empty()) check_rounding(head);
      if (!head.statistics.empty()) check_statistics(head.statistics);
    }
  }

 private:
  static void require(bool holds, const char *what) {
    if (!holds) throw Error(std::string("squat: snapshot.coding is impossible: ") + what);
  }
  template <class Number>
  static bool finite(Number x) {
    return std::isfinite(x);
  }
  template <class Number, class Holds>
  static bool all(const std::vector<Number> &numbers, Holds &&holds) {
    return std::all_of(numbers.begin(), numbers.end(),
                       [&](Number x) { return std::isfinite(x) && holds(x); });
  }

  void check_basis(const HeadRecord &head, bool shared) const {
    constexpr float least = 1e-30f, most = 1e30f;
    const auto is_scale = [](float x) { return x >= 0 && x <= most; };
    const RoundedMatrix &matrix = head.matrix;
    require(matrix.bytes == KeyQuantizer::rounds_to_bytes(key_bits_), "form of the matrix");
    require(all(matrix.scales, is_scale) && all(matrix.input_scales, is_scale), "scales of the matrix");
    require(!matrix.bytes || std::all_of(matrix.codes.begin(), matrix.codes.end(),
                                         [](int code) { return code >= 0 && code <= 255; }),
            "codes of the matrix");
    require(all(head.metric, [](float x) { return x >= least && x <= most; }), "metric");
    require(finite(head.weight) && head.weight > 0, "weight of the metric");
    require(all(head.variance, [](double x) { return x >= 0; }), "variance");
    check_inverse(matrix);
    BitAllocation allocation;
    const Index unit = allocation_unit(d_);
    int before = 9;
    for (const WidthRecord &run : head.widths) {
      const bool known = run.bits == 8 || run.bits == 4 || run.bits == 2 ||
                         (shared && (run.bits == 3 || run.bits == 1));
      require(known && run.bits < before, "widths");
      require(run.channels > 0 && run.channels % unit == 0 &&
                  run.channels <= d_ - allocation.coded_channels(),
              "channels of a width");
      allocation.add(run.bits, run.channels);
      before = run.bits;
    }
    require(shared || allocation.bytes(options_.page_tokens) <=
                          code_bytes(key_bits_, options_.page_tokens, d_),
            "widths, which take more than a page");
  }

  /// Keys go into the basis by the inverse: it has to be there, and of a size that keys do not overflow.
  void check_inverse(const RoundedMatrix &matrix) const {
    std::vector<float> inverse(static_cast<std::size_t>(d_ * d_));
    std::vector<Index> pivots(static_cast<std::size_t>(d_));
    const auto fits = [](float x) { return std::abs(x) <= 1e6f; };
    matrix.write_transposed(inverse.data());
    require(all(inverse, fits), "entries of the matrix");
    invert(inverse.data(), d_, pivots.data());
    require(all(inverse, fits), "the matrix, which has no inverse");
  }

  void check_rounding(const HeadRecord &head) const {
    std::vector<bool> named(static_cast<std::size_t>(d_));
    for (const int channel : head.order) {
      require(channel >= 0 && channel < d_ && !named[static_cast<std::size_t>(channel)],
              "order of channels");
      named[static_cast<std::size_t>(channel)] = true;
    }
    require(head.block == options_.orthogonal.block, "block of channels");
    require(all(head.feedback, OrthogonalRounding::is_factor), "feedback");
  }

  void check_statistics(const StatisticsRecord &record) const {
    QueryStatistics statistics(d_, options_.page_tokens, std::max(1, *options_.tile_tokens));
    statistics.adopt(record);
    require(possible_sums(statistics), "sums that no statistics have");
    require(record.in_group >= 0 && record.in_group < options_.page_tokens &&
                all(record.low, [](float) { return true; }) &&
                all(record.high, [](float) { return true; }),
            "ranges of a group");
  }

  const Options &options_;
  int key_bits_;
  Index d_;
};

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE
