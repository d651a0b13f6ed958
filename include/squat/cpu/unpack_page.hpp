#pragma once

// A page's keys and values back as floats, one head and page at a time: for
// prompts, whose many queries share the work, and for KVCache::dequantize.

#include <cstdint>
#include <cstring>

#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/vector.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// codes[i][lane] as floats: [inner, lane_count].
template <int Bits>
void expand_codes(const std::uint8_t *packed, Index lane_count, Index inner, float *codes) {
  for (Index lane = 0; lane < lane_count; lane += lanes) {
    for (Index first = 0; first < inner; first += block_inner<Bits>, packed += block_bytes) {
      WordLanes words;
      load(packed, words);
      for (int part = 0; part < 8 / Bits; ++part) {
        for (int byte = 0; byte < 4; ++byte) {
          FloatLanes block;
          extract_codes<Bits>(words, byte * 8 + part * Bits, block);
          std::memcpy(codes + (first + part * 4 + byte) * lane_count + lane, &block, sizeof block);
        }
      }
    }
  }
}

/// Keys of one head and page, channel-major [head_dim, group].
template <int KeyBits, int ValueBits>
void unpack_keys(const PageLayout<KeyBits, ValueBits> &layout, std::byte *page, Index head,
                 float *keys) {
  static_assert(KeyBits < 16);
  const Index d = layout.head_dim, group = layout.group;
  expand_codes<KeyBits>(layout.template keys<std::uint8_t>(page, head), group, d, keys);
  for (Index channel = 0; channel < d; ++channel) {
    const auto zero = static_cast<float>(layout.key_zeros(page, head)[channel]);
    const auto scale = static_cast<float>(layout.key_scales(page, head)[channel]);
    float *row = keys + channel * group;
    for (Index token = 0; token < group; ++token) row[token] = zero + scale * row[token];
  }
}

/// Values of one head and page, [group, head_dim]; symmetric ones stay rotated.
template <int KeyBits, int ValueBits>
void unpack_values(const PageLayout<KeyBits, ValueBits> &layout, std::byte *page, Index head,
                   float *values) {
  static_assert(ValueBits < 16);
  const Index d = layout.head_dim, group = layout.group;
  expand_codes<ValueBits>(layout.template values<std::uint8_t>(page, head), d, group, values);
  const Index run = d / layout.scales_of_a_value;
  for (Index i = 0; i < layout.scales_of_a_value; ++i) {
    const half *scales = layout.value_scales_row(page, head, i);
    const half *zeros = layout.value_zeros_row(page, head, i);
    for (Index token = 0; token < group; ++token) {
      const auto scale = static_cast<float>(scales[token]);
      const float zero = layout.value_coding == ValueCoding::plain
                             ? static_cast<float>(zeros[token])
                             : -symmetric_offset(ValueBits) * scale;
      float *row = values + token * d + i * run;
      for (Index channel = 0; channel < run; ++channel) row[channel] = zero + scale * row[channel];
    }
  }
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
