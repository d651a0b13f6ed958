#pragma once

// How the KV heads of a layer share the bytes of a page.

#include <cstddef>
#include <span>
#include <vector>

#include "squat/coding/coding.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/layer_allocation.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// The widths of all heads' keys and values in pages of KeySpace::basis, and where their codes are: the
/// least error of attention outputs in the bytes that equal widths take. Keys and values share one
/// budget, but for values that are plain or wider than widest_value: these keep their width.
class BitShares {
 public:
  /// quantizers: of the heads, their bases learnt for QueryWeighting::attention; they take their
  /// allocations. value_weights: HeadSums::value_weight of each head.
  BitShares(const PageLayout &layout, std::span<KeyQuantizer> quantizers,
            std::span<const double> value_weights)
      : group_(layout.group) {
    const std::size_t heads = quantizers.size();
    const bool trellis = layout.codes == Codes::trellis;
    const CodeErrors &key_errors = trellis ? trellis_key_errors : affine_errors;
    const CodeErrors &value_errors = trellis ? trellis_value_errors : symmetric_errors;
    std::vector<KeyChoices> keys;
    std::vector<std::vector<Choice>> choices;  // of the keys of every head, then of the values
    for (const KeyQuantizer &quantizer : quantizers) {
      std::vector<double> variance = quantizer.basis()->variance;
      for (double &of_coordinate : variance) of_coordinate *= key_weight(quantizer);
      choices.push_back(keys.emplace_back(key_choices(variance, key_errors, group_)).choices);
    }
    const bool of_values =
        layout.value_bits <= widest_value && layout.value_coding == ValueCoding::symmetric;
    for (const double weight : value_weights) {
      choices.push_back(of_values ? value_choices(weight, value_errors, layout.head_dim, group_)
                                  : std::vector<Choice>{{layout.value_bytes(), 0}});
    }
    const std::vector<std::size_t> chosen =
        choose(choices, heads * (layout.key_bytes() + layout.value_bytes()));
    std::size_t next = layout.codes_begin();
    for (std::size_t head = 0; head < heads; ++head) {
      const std::vector<Choice> &widths = choices[heads + head];
      const std::size_t width = chosen[heads + head];
      quantizers[head].allocate(keys[head].allocations[chosen[head]]);
      const std::size_t values = next + choices[head][chosen[head]].bytes;
      const int value_bits = of_values ? static_cast<int>(width) + 1 : layout.value_bits;
      places_.push_back({next, values, value_bits});
      next = values + widths[width].bytes;
      if (of_values)
        value_gain_ +=
            widths[static_cast<std::size_t>(layout.value_bits - 1)].error - widths[width].error;
    }
  }

  /// Where the codes of a head begin.
  CodePlace place(Index head) const { return places_[static_cast<std::size_t>(head)]; }

  /// Whether a page whose heads' keys were coded in the basis errs less so than plainly at equal widths:
  /// by what errors of its keys, and those that are expected of its values, do to attention outputs.
  bool suit(std::span<const KeyQuantizer> quantizers, std::span<const CodedKeys> heads) const {
    double gain = value_gain_ * static_cast<double>(group_);
    for (std::size_t head = 0; head < heads.size(); ++head) {
      gain += key_weight(quantizers[head]) *
              static_cast<double>(heads[head].plain_error - heads[head].basis_error);
    }
    return gain >= 0;
  }

  std::size_t bytes() const { return places_.size() * sizeof(CodePlace); }

 private:
  /// What an error of a head's keys counts beside one of values. To first order that is what it does to
  /// outputs; the KL of predictions is least at 2 to 4 times as much.
  static double key_weight(const KeyQuantizer &quantizer) { return 2 * quantizer.basis()->weight; }

  Index group_;
  std::vector<CodePlace> places_;  // a head each
  double value_gain_ = 0;          // by how much values err less than at equal widths, a token
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
