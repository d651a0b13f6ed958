#pragma once

// Exact rows of one KV head into a page.

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "squat/cache/call.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/coding/trellis_layout.hpp"
#include "squat/coding/trellis_quantizer.hpp"
#include "squat/coding/value_quantizer.hpp"
#include "squat/cpu/head_coding.hpp"
#include "squat/cpu/kernels/vector.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/workspace.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Brings keys of a page into its tile's frame and takes the turned mean off,
/// or back. keys: channel-major [head_dim, group].
inline void enter_frame(const HeadCoding &coding, const PageView &page, Index head_dim, Index group,
                        float *keys) {
  if (page.base != 0) Turn(*coding.rotary, -page.base).apply_to_channels(keys, group);
  if (const float *mean = coding.quantizer->mean()) {
    coding.tiles->frame.add_mean(mean, head_dim, -1, page.row, group, keys);
  }
}
inline void leave_frame(const HeadCoding &coding, const PageView &page, Index head_dim, Index group,
                        float *keys) {
  if (const float *mean = coding.quantizer->mean()) {
    coding.tiles->frame.add_mean(mean, head_dim, 1, page.row, group, keys);
  }
  if (page.base != 0) Turn(*coding.rotary, page.base).apply_to_channels(keys, group);
}

/// Of rows of up to `longest` numbers; without memory where it is not asked for.
inline TrellisQuantizer trellis_quantizer(bool asked, Index longest, Scratch &scratch) {
  return {asked ? scratch.take<std::byte>(TrellisQuantizer::bytes(longest)) : nullptr, longest};
}

/// Packs the keys rows [group, head_dim] (floats, row-major) of one head. wanted, to_basis:
/// as KeyQuantizer::quantize() takes them.
template <class T, class Layout>
CodedKeys pack_keys(const Layout &layout, const HeadCoding &coding, const float *to_basis, float *rows,
                    const PageView &page, Index head, Scratch scratch, std::optional<KeySpace> wanted) {
  const Index d = layout.head_dim, group = layout.group;
  if (layout.key_bits == 16) {
    convert_row(rows, group * d, coding.codes(page.data, KeySpace::channels).key_codes<Exact16<T>>());
    return {};
  }
  auto *channels = scratch.take<float>(d * group);
  auto *rounded = scratch.take<float>(d * group);
  auto *codes = scratch.take<std::uint8_t>(d * group);
  auto *scales = scratch.take<AffineScale>(d);
  for (Index channel = 0; channel < d; ++channel) {
    for (Index token = 0; token < group; ++token)
      channels[channel * group + token] = rows[token * d + channel];
  }
  enter_frame(coding, page, d, group, channels);
  const bool asked = layout.codes == Codes::trellis;
  TrellisQuantizer trellis = trellis_quantizer(asked, group, scratch);
  const CodedKeys coded = coding.quantizer->quantize(channels, group, rounded, codes, scales,
                                                     asked ? &trellis : nullptr, wanted, to_basis);
  const HeadCodes to = coding.codes(page.data, coded.space);
  auto *packed = to.key_codes<std::uint8_t>();
  for (const CodeRun &run : to.allocation->runs()) {
    pack_codes(codes_of_width(coded.kind, run.bits), run.bits, codes + run.first * group, group, group,
               run.channels, packed);
    packed += code_bytes(run.bits, group, run.channels);
  }
  layout.set_key_scales(page.data, head, coded, scales);
  return coded;
}

/// Takes the mean off the rows [count, head_dim] of a page where that brings them nearer to 0, and takes
/// none of them far from there: queries that have nothing to look for attend to tokens whose values are
/// small. Returns whether it did.
inline bool take_mean_off(const float *mean, Index count, Index head_dim, float *rows) {
  constexpr float most_growth = 1.25f;  // of a row's square
  const Eigen::Map<const Eigen::ArrayXf> centre(mean, head_dim);
  float squares = 0, about_mean = 0;
  for (Index row = 0; row < count; ++row) {
    const Eigen::Map<const Eigen::ArrayXf> x(rows + row * head_dim, head_dim);
    const float own = x.square().sum(), left = (x - centre).square().sum();
    if (left > most_growth * own) return false;
    squares += own;
    about_mean += left;
  }
  if (!(about_mean < squares)) return false;
  for (Index row = 0; row < count; ++row) {
    for (Index i = 0; i < head_dim; ++i) rows[row * head_dim + i] -= mean[i];
  }
  return true;
}

/// Packs values that are rotated and about their mean: rows [group, head_dim]. codes: memory for as
/// many.
template <class Layout>
void pack_symmetric_values(const Layout &layout, const HeadCodes &to, const float *rows, std::byte *page,
                           Index head, std::uint8_t *codes, Scratch scratch) {
  const Index d = layout.head_dim, group = layout.group;
  half *steps = layout.value_scales_row(page, head, 0);
  auto *packed = to.value_codes<std::uint8_t>();
  if (layout.value_codes(to.value_bits) == Codes::scalar) {
    for (Index token = 0; token < group; ++token) {
      steps[token] = quantize_symmetric(rows + token * d, d, to.value_bits, codes + token * d);
    }
    return pack_codes(to.value_bits, codes, d, d, group, packed);
  }
  auto *scales = scratch.take<AffineScale>(group);
  trellis_quantizer(true, d, scratch).quantize_symmetric(rows, group, d, to.value_bits, codes, scales);
  for (Index token = 0; token < group; ++token) steps[token] = scales[token].scale;
  pack_trellis(to.value_bits, codes, d, d, group, packed);
}

/// Packs the values rows [group, head_dim] (floats, row-major, overwritten) of
/// one head, whose keys are in the page.
template <class T, class Layout>
void pack_values(const Layout &layout, const HeadCoding &coding, AffineFit fit, float *rows,
                 std::byte *page, Index head, Scratch scratch) {
  const Index d = layout.head_dim, group = layout.group;
  const HeadCodes to = coding.codes(page, layout.key_space(page, head));
  if (layout.value_bits == 16) return convert_row(rows, group * d, to.value_codes<Exact16<T>>());
  auto *codes = scratch.take<std::uint8_t>(group * d);
  if (layout.value_coding == ValueCoding::symmetric) {
    for (Index token = 0; token < group; ++token) rotate_hadamard(rows + token * d, d);
    if (coding.value_mean != nullptr && take_mean_off(coding.value_mean, group, d, rows)) {
      layout.set_values_about_mean(page, head);
    }
    return pack_symmetric_values(layout, to, rows, page, head, codes, scratch);
  }
  auto *scales = scratch.take<AffineScale>(layout.scales_of_a_value);
  for (Index token = 0; token < group; ++token) {
    quantize_plain_value(rows + token * d, d, to.value_bits, fit, codes + token * d, scales);
    for (Index i = 0; i < layout.scales_of_a_value; ++i) {
      layout.value_scales_row(page, head, i)[token] = scales[i].scale;
      layout.value_zeros_row(page, head, i)[token] = scales[i].zero;
    }
  }
  pack_codes(to.value_bits, codes, d, d, group, to.value_codes<std::uint8_t>());
}

/// Scratch bytes of packing one head.
inline std::size_t pack_scratch_bytes(const PageLayout &layout) {
  const Index elements = layout.head_dim * layout.group;
  const Index longest = std::max(layout.head_dim, layout.group);
  return 4 * Scratch::bytes<float>(elements) + Scratch::bytes<std::uint8_t>(elements) +
         Scratch::bytes<AffineScale>(longest) +
         (layout.codes == Codes::trellis ? Scratch::bytes<std::byte>(TrellisQuantizer::bytes(longest))
                                         : 0);
}

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
