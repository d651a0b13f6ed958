#pragma once

// How the KV heads of a layer share the bytes of its pages.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/codes.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/layer_allocation.hpp"
#include "squat/coding/model_allocation.hpp"
#include "squat/coding/page_shape.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// What the heads of a layer can be coded with, and what errors that makes.
struct ShareChoices {
  std::vector<KeyChoices> keys;  ///< a head each
  bool of_values = false;        ///< values take part, see share_values()
  LayerChoices choices;

  /// quantizers: of the heads, their bases learnt for QueryWeighting::attention. value_weights:
  /// HeadSums::value_weight of each head. output_square: of all heads.
  ShareChoices(const PageShape &page, std::span<const KeyQuantizer> quantizers,
               std::span<const double> value_weights, double output_square)
      : of_values(share_values(page)) {
    const bool trellis = page.codes == Codes::trellis;
    const CodeErrors &key_errors = trellis ? trellis_key_errors : affine_errors;
    const CodeErrors &value_errors = trellis ? trellis_value_errors : symmetric_errors;
    choices.output_square = output_square;
    for (const KeyQuantizer &quantizer : quantizers) {
      std::vector<double> variance = quantizer.basis()->variance;
      for (double &of_coordinate : variance) of_coordinate *= key_weight(quantizer);
      choices.items.push_back(
          keys.emplace_back(key_choices(variance, key_errors, page.group, most_key_bytes(page)))
              .choices);
    }
    for (const double weight : value_weights) {
      choices.items.push_back(of_values ? value_choices(weight, value_errors, page.head_dim, page.group)
                                        : std::vector<Choice>{{page.value_bytes(page.value_bits), 0}});
    }
  }

  /// Not where they are plain or wider than widest_value.
  static bool share_values(const PageShape &page) {
    return page.value_bits <= widest_value && page.value_coding == ValueCoding::symmetric;
  }

  /// A head's codes take at most twice the bytes that were asked for, whatever its values have: kernels
  /// keep room for that.
  static std::size_t most_key_bytes(const PageShape &page) {
    const int values = share_values(page) ? widest_value : page.value_bits;
    return static_cast<std::size_t>(2 * (page.key_bits + page.value_bits) - values) * page.key_bytes(1);
  }

  /// What an error of a head's keys counts beside one of values. To first order that is what it does to
  /// outputs; the KL of predictions is least at 2 to 4 times as much.
  static double key_weight(const KeyQuantizer &quantizer) { return 2 * quantizer.basis()->weight; }
};

/// The widths of all heads' keys and values in the pages of a layer. In
/// pages of KeySpace::basis: the least error of attention outputs in the bytes that there are. Keys and
/// values share them, or values keep their width (ShareChoices::share_values).
/// In plain pages: the widest that fit, in all heads alike; where not even 1 bit does, there are none.
class BitShares {
 public:
  /// code_bytes: of a page's codes.
  BitShares(const PageShape &page, const ShareChoices &shares, std::size_t code_bytes)
      : group_(page.group),
        code_bytes_(code_bytes),
        plain_(page.widest(std::min(code_bytes, 2 * page.code_bytes()), least_widths(page),
                           shares.of_values ? widest_value : page.value_bits)),
        plain_fits_(page.code_bytes(plain_) <= code_bytes) {
    const auto &items = shares.choices.items;
    const std::size_t heads = shares.keys.size();
    const std::vector<std::size_t> chosen = Knapsack(items, code_bytes).choose(code_bytes);
    for (std::size_t head = 0; head < heads; ++head) {
      const std::vector<Choice> &widths = items[heads + head];
      const std::size_t width = chosen[heads + head];
      add(page, shares.keys[head].allocations[chosen[head]],
          shares.of_values ? static_cast<int>(width) + 1 : page.value_bits);
      if (shares.of_values)
        value_gain_ += widths[static_cast<std::size_t>(plain_.values - 1)].error - widths[width].error;
    }
  }

  /// Those that write() put into a record.
  BitShares(const PageShape &page, const CodingRecord &record)
      : group_(page.group),
        code_bytes_(record.code_bytes),
        plain_{record.plain_key_bits, record.plain_value_bits},
        plain_fits_(page.code_bytes(plain_) <= record.code_bytes),
        value_gain_(record.value_gain) {
    for (const HeadRecord &head : record.heads) {
      BitAllocation allocation;
      for (const WidthRecord &run : head.widths) allocation.add(run.bits, run.channels);
      add(page, allocation, head.value_bits);
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

  std::size_t code_bytes() const { return code_bytes_; }
  /// Of all heads in plain pages.
  PageWidths plain() const { return plain_; }
  /// Whether there may be plain pages.
  bool plain_fits() const { return plain_fits_; }

  /// Of a head's keys in pages in the basis.
  const BitAllocation &allocation(Index head) const {
    return allocations_[static_cast<std::size_t>(head)];
  }
  /// Where the codes of a head are in a page of that space, among those of all heads.
  HeadPlace place(const PageShape &page, Index head, KeySpace space) const {
    return space == KeySpace::basis ? places_[static_cast<std::size_t>(head)] : page.place(head, plain_);
  }

  /// By how much values err less in pages in the basis than in plain ones, a token.
  double value_gain() const { return value_gain_; }

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

  std::size_t bytes() const { return allocations_.size() * (sizeof(BitAllocation) + sizeof(HeadPlace)); }

 private:
  void add(const PageShape &page, const BitAllocation &allocation, int value_bits) {
    allocations_.push_back(allocation);
    places_.push_back({next_, next_ + allocation.bytes(page.group), value_bits});
    next_ = places_.back().values + page.value_bytes(value_bits);
  }

  static PageWidths least_widths(const PageShape &page) {
    return {1, ShareChoices::share_values(page) ? 1 : page.value_bits};
  }

  Index group_;
  std::size_t code_bytes_;
  PageWidths plain_;
  bool plain_fits_;
  std::vector<BitAllocation> allocations_;  // a head each
  std::vector<HeadPlace> places_;           // likewise, in pages in the basis
  std::size_t next_ = 0;                    // where the codes of the next head are
  double value_gain_ = 0;
};

/// Throws Error for a record of how heads share bits that no page can be coded by. shares: such records
/// are wanted; by_layer: each layer has pages of a size of its own.
inline void check_shares(const PageShape &page, const CodingRecord &record, bool shares, bool by_layer) {
  const auto require = [](bool holds) {
    if (!holds) throw Error("squat: snapshot.coding is impossible: how heads share the bits of a page");
  };
  require(record.code_bytes == page.code_bytes() ||
          (by_layer && record.shared && record.code_bytes <= 8 * page.code_bytes() &&
           record.code_bytes % block_bytes == 0));
  const bool of_values = ShareChoices::share_values(page);
  const auto is_width = [](int bits) { return (bits >= 1 && bits <= 4) || bits == 8; };
  const auto is_value_width = [&](int bits) {
    return of_values ? bits >= 1 && bits <= widest_value : bits == page.value_bits;
  };
  if (!record.shared) {
    for (const HeadRecord &head : record.heads)
      require(head.matrix.empty() || head.value_bits == page.value_bits);
    return;
  }
  require(record.learnt && shares);
  require(is_width(record.plain_key_bits) && is_value_width(record.plain_value_bits));
  std::size_t bytes = 0;
  for (const HeadRecord &head : record.heads) {
    require(!head.matrix.empty() && is_value_width(head.value_bits));
    for (const WidthRecord &run : head.widths) bytes += code_bytes(run.bits, page.group, run.channels);
    bytes += page.value_bytes(head.value_bits);
  }
  require(bytes <= record.code_bytes);
}

/// Gives the layers of a model their parts of the bytes of pages, `equal` on average, by what each can
/// be coded with; equal parts where some know nothing of attention.
inline std::vector<std::size_t> share_among_layers(std::span<const std::optional<ShareChoices>> layers,
                                                   std::size_t equal) {
  std::vector<LayerChoices> known;
  for (const auto &choices : layers) {
    if (choices) known.push_back(choices->choices);
  }
  if (known.size() < layers.size() || known.empty())
    return std::vector<std::size_t>(layers.size(), equal);
  return layer_sizes(known, equal);
}

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
