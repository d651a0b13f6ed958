#pragma once

// A page's keys and values back as floats, one head and page at a time: for
// prompts, whose many queries share the work, and for KVCache::dequantize.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/dot_codes.hpp"
#include "squat/cpu/kernels/trellis_levels.hpp"
#include "squat/cpu/kernels/vector.hpp"
#include "squat/cpu/page_layout.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// codes[i][lane] as floats: [inner, lane_count].
template <class Scalar>
void expand_codes(int bits, const std::uint8_t *packed, Index lane_count, Index inner, Scalar *codes) {
  for_each_plane(bits, packed, lane_count, inner, [&]<int Bits>(const std::uint8_t *plane, int shift) {
    const float weight = static_cast<float>(1 << shift);
    for (Index lane = 0; lane < lane_count; lane += lanes) {
      for (Index first = 0; first < inner; first += block_inner<Bits>, plane += block_bytes) {
        WordLanes words;
        load(plane, words);
        for (int i = 0; i < std::min(block_inner<Bits>, inner - first); ++i) {
          FloatLanes block;
          extract_codes<Bits>(words, i % 4 * 8 + i / 4 * Bits, block);
          Scalar *to = codes + (first + i) * lane_count + lane;
          if (shift > 0) {
            FloatLanes low;
            load(to, low);
            block = low + weight * block;
          }
          std::memcpy(to, &block, sizeof block);
        }
      }
    }
  });
}

/// codes[i][row] of trellis codes as the number that belongs to a scale, the middle of scalar codes'
/// range included.
template <int Bits>
void expand_trellis(const TrellisBlock &block, float *codes) {
  for (Index lane = 0; lane < block.rows / 4; lane += vector_lanes) {
    TrellisLanes<Bits, -trellis_middle * trellis_unit> lanes(block, lane);
    const Index count = std::min(vector_lanes, lanes.count());
    for (Index i = 0; i < block.inner; i += trellis_inner) {
      const PhaseLevels<4> levels = lanes.template next<0, 1, 2, 3>();
      std::uint8_t bytes[4][2][vector_lanes][4];  // of phases, of four inner indices and the next four
      static_assert(sizeof bytes == sizeof levels.phases);
      std::memcpy(bytes, levels.phases, sizeof bytes);
      for (Index j = 0; j < trellis_inner; ++j) {
        const Index quad = j / 4, byte = j % 4;
        float *to = codes + (i + j) * block.rows + lane * 4;
        for (Index l = 0; l < count; ++l) {
          for (const auto &phase : bytes)
            *to++ = static_cast<float>(phase[quad][l][byte]) / trellis_unit;
        }
      }
    }
  }
}

/// The same for either kind of codes.
inline void expand_codes(const PackedCodes &packed, float *codes) {
  if (packed.kind == Codes::scalar) {
    return expand_codes(packed.bits, packed.data, packed.rows, packed.inner, codes);
  }
  const TrellisBlock block{packed.data, packed.rows, packed.inner};
  switch (packed.bits) {
    case 1:
      return expand_trellis<1>(block, codes);
    case 2:
      return expand_trellis<2>(block, codes);
    default:
      return expand_trellis<3>(block, codes);
  }
}

/// What the codes of a head's keys stand for, channel-major [head_dim, group]:
/// channels, or coordinates in the basis, as the page's KeySpace says.
template <class Layout>
void unpack_keys(const Layout &layout, const HeadCodes &codes, std::byte *page, Index head,
                 float *keys) {
  SQUAT_ASSERT(layout.key_bits < 16);
  const Index d = layout.head_dim, group = layout.group;
  const auto *packed = codes.key_codes<std::uint8_t>();
  const Codes kind = layout.key_codes(page, head);
  for (const CodeRun &run : codes.allocation->runs()) {
    expand_codes({run.bits, packed, group, run.channels, 0, codes_of_width(kind, run.bits)},
                 keys + run.first * group);
    packed += code_bytes(run.bits, group, run.channels);
    for (Index channel = run.first; channel < run.first + run.channels; ++channel) {
      const AffineScale fit = layout.key_scale(page, head, channel);
      const float zero = static_cast<float>(fit.zero), scale = static_cast<float>(fit.scale);
      float *row = keys + channel * group;
      for (Index token = 0; token < group; ++token) row[token] = zero + scale * row[token];
    }
  }
  for (Index channel = codes.allocation->coded_channels(); channel < d; ++channel) {
    std::fill_n(keys + channel * group, group,
                static_cast<float>(layout.key_zeros(page, head)[channel]));
  }
}

/// Values of one head and page, [group, head_dim]; symmetric ones stay rotated. mean: that of the head,
/// or null.
template <class Layout>
void unpack_values(const Layout &layout, const HeadCodes &codes, std::byte *page, Index head,
                   const float *mean, float *values) {
  SQUAT_ASSERT(layout.value_bits < 16);
  const Index d = layout.head_dim, group = layout.group;
  const Codes kind = layout.value_codes(codes.value_bits);
  expand_codes({codes.value_bits, codes.value_codes<std::uint8_t>(), d, group, 0, kind}, values);
  const float middle = kind == Codes::trellis ? trellis_middle : middle_code(codes.value_bits);
  const Index run = d / layout.scales_of_a_value;
  for (Index i = 0; i < layout.scales_of_a_value; ++i) {
    const half *scales = layout.value_scales_row(page, head, i);
    const half *zeros = layout.value_zeros_row(page, head, i);
    for (Index token = 0; token < group; ++token) {
      const auto scale = static_cast<float>(scales[token]);
      const float zero =
          layout.value_coding == ValueCoding::plain ? static_cast<float>(zeros[token]) : -middle * scale;
      float *row = values + token * d + i * run;
      for (Index channel = 0; channel < run; ++channel) row[channel] = zero + scale * row[channel];
    }
  }
  if (!layout.values_about_mean(page, head)) return;
  for (Index i = 0; i < group * d; ++i) values[i] += mean[i % d];
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
