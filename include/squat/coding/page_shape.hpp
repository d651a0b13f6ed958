#pragma once

// What a page holds, and how many bytes its codes take where all of its heads have the same widths.

#include <cstddef>

#include "squat/coding/codes.hpp"
#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Of all channels of the keys and of the values of a head.
struct PageWidths {
  int keys;
  int values;
};

/// Where the codes of a head begin, in bytes, and how wide those of its values are.
struct HeadPlace {
  std::size_t keys = 0;
  std::size_t values = 0;
  int value_bits = 16;
};

/// The tokens of a page and the heads of a layer; widths that were asked for.
struct PageShape {
  int key_bits = 16;
  int value_bits = 16;
  Index kv_heads = 0;
  Index head_dim = 0;
  Index group = 0;              ///< tokens
  Codes codes = Codes::scalar;  ///< that were asked for
  ValueCoding value_coding = ValueCoding::symmetric;

  std::size_t heads() const { return static_cast<std::size_t>(kv_heads); }

  /// Bytes of the codes of a head, and of all heads.
  std::size_t key_bytes(int bits) const { return exact_or_code_bytes(bits, group, head_dim); }
  std::size_t value_bytes(int bits) const { return exact_or_code_bytes(bits, head_dim, group); }
  std::size_t code_bytes(PageWidths widths) const {
    return heads() * (key_bytes(widths.keys) + value_bytes(widths.values));
  }
  std::size_t code_bytes() const { return code_bytes({key_bits, value_bits}); }

  /// Where the codes of a head are among those of all, which follow each other and have the same widths.
  HeadPlace place(Index head, PageWidths widths) const {
    const std::size_t keys = key_bytes(widths.keys), values = value_bytes(widths.values);
    const std::size_t first = static_cast<std::size_t>(head) * (keys + values);
    return {first, first + keys, widths.values};
  }

  /// The widest, the same for all heads, with which a page's codes take at most so many bytes: those
  /// that were asked for where these just fit, and else as far from them with keys as with values.
  /// least: what they are where no wider ones fit, nor these perhaps. most_value_bits: of values.
  PageWidths widest(std::size_t bytes, PageWidths least, int most_value_bits) const {
    const auto fits = [&](PageWidths widths) { return code_bytes(widths) <= bytes; };
    for (PageWidths widths = least;;) {
      const PageWidths keys = {widths.keys < 4 ? widths.keys + 1 : 8, widths.values};
      const PageWidths values = {widths.keys, widths.values + 1};
      const bool more_keys = widths.keys < 8 && fits(keys);
      const bool more_values = widths.values < most_value_bits && fits(values);
      if (!more_keys && !more_values) return widths;
      const bool keys_lag = widths.keys - key_bits <= widths.values - value_bits;
      widths = more_keys && (keys_lag || !more_values) ? keys : values;
    }
  }

 private:
  static std::size_t exact_or_code_bytes(int bits, Index rows, Index inner) {
    return bits == 16 ? static_cast<std::size_t>(rows * inner) * sizeof(half)
                      : squat::code_bytes(bits, rows, inner);
  }
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
