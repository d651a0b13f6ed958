#pragma once

// Exact rows of one KV head into a page.

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/vector.hpp"
#include "squat/cpu/workspace.hpp"
#include "squat/quantize/key_quantizer.hpp"
#include "squat/quantize/value_quantizer.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Packs the keys rows [group, head_dim] (floats, row-major) of one head.
template <class T, int KeyBits, int ValueBits>
void pack_keys(const PageLayout<KeyBits, ValueBits> &layout, const KeyQuantizer &quantizer, float *rows,
               std::byte *page, Index head, Scratch scratch) {
  const Index d = layout.head_dim, group = layout.group;
  if constexpr (KeyBits == 16) {
    std::transform(rows, rows + group * d, layout.template keys<Exact16<T>>(page, head),
                   [](float x) { return static_cast<Exact16<T>>(x); });
  } else {
    auto *channels = scratch.take<float>(d * group);
    auto *rounded = scratch.take<float>(d * group);
    auto *codes = scratch.take<std::uint8_t>(d * group);
    auto *scales = scratch.take<AffineScale>(d);
    Eigen::Map<RowMatrix>(channels, d, group) = Eigen::Map<const RowMatrix>(rows, group, d).transpose();
    quantizer.quantize({channels, d, group}, KeyBits, {rounded, d, group}, codes, scales);
    pack_codes<KeyBits>(codes, 1, group, group, d, layout.template keys<std::uint8_t>(page, head));
    for (Index channel = 0; channel < d; ++channel) {
      layout.key_zeros(page, head)[channel] = scales[channel].zero;
      layout.key_scales(page, head)[channel] = scales[channel].scale;
    }
  }
}

/// Packs the values rows [group, head_dim] (floats, row-major, overwritten) of
/// one head.
template <class T, int KeyBits, int ValueBits>
void pack_values(const PageLayout<KeyBits, ValueBits> &layout, AffineFit fit, float *rows,
                 std::byte *page, Index head, Scratch scratch) {
  const Index d = layout.head_dim, group = layout.group;
  if constexpr (ValueBits == 16) {
    std::transform(rows, rows + group * d, layout.template values<Exact16<T>>(page, head),
                   [](float x) { return static_cast<Exact16<T>>(x); });
  } else {
    auto *codes = scratch.take<std::uint8_t>(group * d);
    auto *scales = scratch.take<AffineScale>(layout.scales_of_a_value);
    for (Index token = 0; token < group; ++token) {
      quantize_value(layout.value_coding, rows + token * d, d, ValueBits, fit, codes + token * d,
                     scales);
      for (Index i = 0; i < layout.scales_of_a_value; ++i) {
        layout.value_scales_row(page, head, i)[token] = scales[i].scale;
        if (layout.value_coding == ValueCoding::plain) {
          layout.value_zeros_row(page, head, i)[token] = scales[i].zero;
        }
      }
    }
    pack_codes<ValueBits>(codes, 1, d, d, group, layout.template values<std::uint8_t>(page, head));
  }
}

/// Scratch bytes of packing one head.
template <int KeyBits, int ValueBits>
std::size_t pack_scratch_bytes(const PageLayout<KeyBits, ValueBits> &layout) {
  const Index elements = layout.head_dim * layout.group;
  return 4 * Scratch::bytes<float>(elements) + Scratch::bytes<std::uint8_t>(elements) +
         Scratch::bytes<AffineScale>(layout.head_dim);
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
