#pragma once

// The bytes of a page on the CPU.
//
// A page holds `group` tokens of one layer, Options::page_tokens. First come the parameters of its
// heads, a multiple of 64 bytes each:
//
//   key zeros     float16 [head_dim]
//   key scales    float16 [head_dim]; the sign of the first names the KeySpace,
//                 that of the second the kind of codes of up to 3 bits; that of
//                 the third says that values are coded about their mean
//   value scales  float16 [value_scales, group]; plain values: as many zeros
//                 behind them
//
// then their codes, likewise:
//
//   key codes     runs of channels of one width, one behind the other; lanes
//                 are tokens, inner are the run's channels (coding/codes.hpp)
//                 16 bit: [group, head_dim] rows
//   value codes   lanes are channels, inner are tokens; 16 bit: [group,
//                 head_dim] rows
//
// Trellis codes (coding/trellis_layout.hpp) have the place of scalar ones.
// 16-bit keys and values store neither zeros nor scales. Every allocation of a
// head's bits fits where the same width for all channels fits: pages have one size. Where
// bits were shared out among heads, the codes of a page in the basis begin elsewhere than
// those of a plain one (HeadPlace), and all of a page's heads are coded in one space, which
// each says. Where they were shared out among layers, each has pages of a size of its own.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/cache/options.hpp"
#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/codes.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/page_shape.hpp"
#include "squat/coding/trellis.hpp"
#include "squat/coding/value_quantizer.hpp"
#include "squat/core/config.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// What 16-bit pages hold: bfloat16 if the exact rows are bfloat16, float16
/// otherwise.
template <class T>
using Exact16 = std::conditional_t<std::is_same_v<T, bfloat16>, bfloat16, half>;

class PageLayout : public PageShape {
 public:
  PageLayout() = default;
  PageLayout(const Options &options, int bits_of_keys, int bits_of_values)
      : PageShape{.key_bits = bits_of_keys,
                  .value_bits = bits_of_values,
                  .kv_heads = options.kv_heads,
                  .head_dim = options.head_dim,
                  .group = options.page_tokens,
                  .codes = *options.codes,
                  .value_coding = *options.values},
        scales_of_a_value(value_bits == 16 ? 0 : value_scales(value_coding, head_dim)) {
    const std::size_t row = static_cast<std::size_t>(head_dim) * sizeof(half);
    const std::size_t column = static_cast<std::size_t>(scales_of_a_value * group) * sizeof(half);
    key_scales_ = key_bits == 16 ? 0 : row;
    value_scales_ = 2 * key_scales_;
    value_zeros_ = value_scales_ + column;
    const std::size_t end = value_zeros_ + (value_coding == ValueCoding::plain ? column : 0);
    parameters_end_ = end;
    parameter_bytes_ = (end + 63) / 64 * 64;
  }

  /// Of a page whose heads have the same widths.
  std::size_t page_bytes() const { return codes_begin() + code_bytes(); }

  /// Bytes of the codes of a head's keys, and of its values, where all heads have the same widths.
  using PageShape::key_bytes, PageShape::value_bytes;
  std::size_t key_bytes() const { return key_bytes(key_bits); }
  std::size_t value_bytes() const { return value_bytes(value_bits); }
  /// Bytes of the keys of an allocation; of exact rows without one.
  std::size_t key_bytes(const BitAllocation &allocation) const {
    return key_bits == 16 ? key_bytes() : allocation.bytes(group);
  }
  /// Bytes of a head's parameters, without those that fill them up.
  std::size_t parameter_bytes() const { return parameters_end_; }
  std::byte *parameters(std::byte *page, Index head) const { return at<std::byte>(page, head, 0); }
  /// Where the codes of the first head begin.
  std::size_t codes_begin() const { return heads() * parameter_bytes_; }
  /// Where the codes of a head are in a page, from where they are among those of all.
  HeadPlace in_page(HeadPlace place) const {
    return {codes_begin() + place.keys, codes_begin() + place.values, place.value_bits};
  }

  half *key_zeros(std::byte *page, Index head) const { return at<half>(page, head, 0); }
  half *key_scales(std::byte *page, Index head) const { return at<half>(page, head, key_scales_); }
  /// What the codes of a page's keys stand for.
  KeySpace key_space(std::byte *page, Index head) const {
    if (key_bits == 16) return KeySpace::channels;
    return sign(page, head, 0) ? KeySpace::basis : KeySpace::channels;
  }

  /// What they are where they have up to 3 bits.
  Codes key_codes(std::byte *page, Index head) const {
    return sign(page, head, 1) ? Codes::trellis : Codes::scalar;
  }

  /// Whether the mean value was taken off the page's values. Only pages of packed keys can say so.
  bool values_about_mean(std::byte *page, Index head) const {
    return key_bits < 16 && sign(page, head, 2);
  }
  void set_values_about_mean(std::byte *page, Index head) const {
    half &scale = key_scales(page, head)[2];
    scale = -scale;
  }

  /// The zero and scale of a channel or coordinate.
  AffineScale key_scale(std::byte *page, Index head, Index channel) const {
    const half scale = key_scales(page, head)[channel];
    return {key_zeros(page, head)[channel],
            channel < 3 ? half(std::abs(static_cast<float>(scale))) : scale};
  }

  /// What those of values of that width are.
  Codes value_codes(int bits) const {
    return value_coding == ValueCoding::symmetric ? codes_of_width(codes, bits) : Codes::scalar;
  }

  void set_key_scales(std::byte *page, Index head, const CodedKeys &coded,
                      const AffineScale *scales) const {
    half *zeros = key_zeros(page, head), *steps = key_scales(page, head);
    for (Index channel = 0; channel < head_dim; ++channel) {
      zeros[channel] = scales[channel].zero;
      steps[channel] = scales[channel].scale;
    }
    if (coded.space == KeySpace::basis) steps[0] = -steps[0];
    if (coded.kind == Codes::trellis) steps[1] = -steps[1];
  }

  half *value_scales_row(std::byte *page, Index head, Index scale) const {
    return at<half>(page, head, value_scales_) + scale * group;
  }
  half *value_zeros_row(std::byte *page, Index head, Index scale) const {
    return at<half>(page, head, value_zeros_) + scale * group;
  }

  Index scales_of_a_value = 0;

 private:
  /// Of a scale of the keys, which are all above 0.
  bool sign(std::byte *page, Index head, Index scale) const {
    std::uint16_t bits;
    std::memcpy(&bits, key_scales(page, head) + scale, sizeof bits);
    return (bits & 0x8000u) != 0;
  }

  template <class Scalar>
  Scalar *at(std::byte *page, Index head, std::size_t offset) const {
    return reinterpret_cast<Scalar *>(page + static_cast<std::size_t>(head) * parameter_bytes_ + offset);
  }

  std::size_t key_scales_ = 0;  // where they begin in a head's parameters
  std::size_t value_scales_ = 0;
  std::size_t value_zeros_ = 0;
  std::size_t parameters_end_ = 0;
  std::size_t parameter_bytes_ = 0;
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
