#pragma once

// How the KV heads of a layer share the bytes of its pages.

#include <cstddef>
#include <span>
#include <vector>

#include "squat/coding/coding.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/layer_allocation.hpp"
#include "squat/coding/model_allocation.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// What the heads of a layer can be coded with, and what errors that makes.
struct ShareChoices {
  std::vector<KeyChoices> keys;  ///< a head each
  bool of_values = false;        ///< values take part, see share_values()
  LayerChoices choices;

  /// quantizers: of the heads, their bases learnt for QueryWeighting::attention. value_weights:
  /// HeadSums::value_weight of each head. output_square: of all heads.
  ShareChoices(const PageLayout &layout, std::span<const KeyQuantizer> quantizers,
               std::span<const double> value_weights, double output_square)
      : of_values(share_values(layout)) {
    const bool trellis = layout.codes == Codes::trellis;
    const CodeErrors &key_errors = trellis ? trellis_key_errors : affine_errors;
    const CodeErrors &value_errors = trellis ? trellis_value_errors : symmetric_errors;
    choices.output_square = output_square;
    for (const KeyQuantizer &quantizer : quantizers) {
      std::vector<double> variance = quantizer.basis()->variance;
      for (double &of_coordinate : variance) of_coordinate *= key_weight(quantizer);
      choices.items.push_back(
          keys.emplace_back(key_choices(variance, key_errors, layout.group)).choices);
    }
    for (const double weight : value_weights) {
      choices.items.push_back(of_values
                                  ? value_choices(weight, value_errors, layout.head_dim, layout.group)
                                  : std::vector<Choice>{{layout.value_bytes(), 0}});
    }
  }

  /// Not where they are plain or wider than widest_value.
  static bool share_values(const PageLayout &layout) {
    return layout.value_bits <= widest_value && layout.value_coding == ValueCoding::symmetric;
  }

  /// What an error of a head's keys counts beside one of values. To first order that is what it does to
  /// outputs; the KL of predictions is least at 2 to 4 times as much.
  static double key_weight(const KeyQuantizer &quantizer) { return 2 * quantizer.basis()->weight; }
};

/// The widths of all heads' keys and values in the pages of a layer, and where their codes are. In
/// pages of KeySpace::basis: the least error of attention outputs in the bytes that there are. Keys and
/// values share them, or values keep their width (ShareChoices::share_values).
/// In plain pages: the widest that fit, in all heads alike; where not even 1 bit does, there are none.
class BitShares {
 public:
  /// code_bytes: of a page's codes.
  BitShares(const PageLayout &layout, const ShareChoices &shares, std::size_t code_bytes)
      : group_(layout.group),
        page_bytes_(layout.codes_begin() + code_bytes),
        plain_(layout.widest(code_bytes, least_widths(layout),
                             shares.of_values ? widest_value : layout.value_bits)),
        plain_fits_(layout.code_bytes(plain_) <= code_bytes) {
    const auto &items = shares.choices.items;
    const std::size_t heads = shares.keys.size();
    const std::vector<std::size_t> chosen = Knapsack(items, code_bytes).choose(code_bytes);
    std::size_t next = layout.codes_begin();
    for (std::size_t head = 0; head < heads; ++head) {
      const std::vector<Choice> &widths = items[heads + head];
      const std::size_t width = chosen[heads + head];
      allocations_.push_back(shares.keys[head].allocations[chosen[head]]);
      const std::size_t values = next + items[head][chosen[head]].bytes;
      const int value_bits = shares.of_values ? static_cast<int>(width) + 1 : layout.value_bits;
      places_.push_back({next, values, value_bits});
      plain_places_.push_back(layout.place(static_cast<Index>(head), plain_));
      next = values + widths[width].bytes;
      if (shares.of_values)
        value_gain_ += widths[static_cast<std::size_t>(plain_.values - 1)].error - widths[width].error;
    }
  }

  /// Those that write() put into a record.
  BitShares(const PageLayout &layout, const CodingRecord &record)
      : group_(layout.group),
        page_bytes_(layout.codes_begin() + record.code_bytes),
        plain_{record.plain_key_bits, record.plain_value_bits},
        plain_fits_(layout.code_bytes(plain_) <= record.code_bytes),
        value_gain_(record.value_gain) {
    std::size_t next = layout.codes_begin();
    for (const HeadRecord &head : record.heads) {
      BitAllocation &allocation = allocations_.emplace_back();
      for (const WidthRecord &run : head.widths) allocation.add(run.bits, run.channels);
      const std::size_t values = next + allocation.bytes(group_);
      plain_places_.push_back(layout.place(static_cast<Index>(places_.size()), plain_));
      places_.push_back({next, values, head.value_bits});
      next = values + layout.value_bytes(head.value_bits);
    }
  }

  /// Adds to a record, which has the heads' allocations, how they share the bits.
  void write(CodingRecord &record) const {
    record.shared = true;
    record.plain_key_bits = plain_.keys;
    record.plain_value_bits = plain_.values;
    record.value_gain = value_gain_;
  }

  /// quantizers: of the heads; they take their allocations.
  void apply(std::span<KeyQuantizer> quantizers) const {
    for (std::size_t head = 0; head < quantizers.size(); ++head)
      quantizers[head].allocate(allocations_[head], plain_.keys);
  }

  std::size_t page_bytes() const { return page_bytes_; }
  /// Whether there may be plain pages.
  bool plain_fits() const { return plain_fits_; }

  /// Where the codes of a head begin, in a page of that space.
  CodePlace place(Index head, KeySpace space) const {
    return (space == KeySpace::basis ? places_ : plain_places_)[static_cast<std::size_t>(head)];
  }

  /// Whether a page whose heads' keys were coded in the basis errs less so than plainly:
  /// by what errors of its keys, and those that are expected of its values, do to attention outputs.
  bool suit(std::span<const KeyQuantizer> quantizers, std::span<const CodedKeys> heads) const {
    if (!plain_fits_) return true;
    double gain = value_gain_ * static_cast<double>(group_);
    for (std::size_t head = 0; head < heads.size(); ++head) {
      gain += ShareChoices::key_weight(quantizers[head]) *
              static_cast<double>(heads[head].plain_error - heads[head].basis_error);
    }
    return gain >= 0;
  }

  std::size_t bytes() const {
    return allocations_.size() * (sizeof(BitAllocation) + 2 * sizeof(CodePlace));
  }

 private:
  static Widths least_widths(const PageLayout &layout) {
    return {1, ShareChoices::share_values(layout) ? 1 : layout.value_bits};
  }

  Index group_;
  std::size_t page_bytes_;
  Widths plain_;
  bool plain_fits_;
  std::vector<BitAllocation> allocations_;        // a head each
  std::vector<CodePlace> places_, plain_places_;  // likewise
  double value_gain_ = 0;  // by how much values err less than in plain pages, a token
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
