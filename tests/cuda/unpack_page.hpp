#pragma once

// Pages of the GPU's layout as floats, by the host: what kernels that unpack them are compared with.

#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "squat/cache/call.hpp"
#include "squat/coding/hadamard.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::test {

using cuda::CodePlaces, cuda::key_element, cuda::read_code, cuda::tile_element, cuda::value_element;

/// One KV head's part of a page.
template <class Layout, class T>
class HeadPage {
 public:
  static constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group;

  HeadPage(const std::byte *bytes, ValueCoding values)
      : bytes_(reinterpret_cast<const std::uint8_t *>(bytes)), values_(values) {}

  /// What the codes of keys stand for, channel-major [HeadDim, Group]: in the frame they are coded in.
  /// from_basis: A^-1, [channel, coordinate], empty without a basis.
  RowMatrix keys(const KeyQuantizer &quantizer, const RowMatrix &from_basis) const {
    RowMatrix keys(HeadDim, Group);
    if constexpr (Layout::KeyBits == 16) {
      for (int channel = 0; channel < HeadDim; ++channel) {
        for (int token = 0; token < Group; ++token) {
          const int tile = token / 16 * Layout::channel_tiles + channel / 16;
          keys(channel, token) = exact(0, tile, tile_element(token % 16, channel % 16));
        }
      }
      return keys;
    } else {
      const bool basis = std::signbit(scale(Layout::key_scales, key_element(0)));
      const std::uint8_t *unit = bytes_ + Layout::key_codes;
      for (int first = 0; first < HeadDim; first += Layout::unit) {
        const int bits = basis ? width(quantizer.allocation(KeySpace::basis), first) : Layout::KeyBits;
        for (int column = 0; column < Layout::unit; ++column) {
          const int channel = first + column, at = key_element(channel);
          const float zero = scale(Layout::key_zeros, at),
                      step = std::abs(scale(Layout::key_scales, at));
          for (int token = 0; token < Group; ++token) {
            const CodePlaces at = Layout::key_places(Codes::scalar, bits, token, column);
            const int code = bits == 0 ? 0 : read_code(unit, at);
            keys(channel, token) = zero + step * static_cast<float>(code);
          }
        }
        unit += Layout::key_unit_bytes(bits);
      }
      if (basis) keys = (from_basis * keys).eval();
      return keys;
    }
  }

  /// Values, [Group, HeadDim]. mean: rotated, or null.
  RowMatrix values(const float *mean) const {
    RowMatrix values(Group, HeadDim);
    if (!Layout::values_about_mean(bytes_)) mean = nullptr;
    for (int token = 0; token < Group; ++token) {
      const std::uint8_t *codes = bytes_ + Layout::value_codes;
      for (int channel = 0; channel < HeadDim; ++channel) {
        if constexpr (Layout::ValueBits == 16) {
          values(token, channel) =
              exact(Layout::value_codes, token / 16 * Layout::channel_tiles + channel / 16,
                    tile_element(channel % 16, token % 16));
        } else {
          const CodePlaces at = Layout::value_places(Codes::scalar, Layout::ValueBits, channel, token);
          const int code = read_code(codes, at);
          values(token, channel) =
              value(token, channel, static_cast<float>(code)) + (mean != nullptr ? mean[channel] : 0.0f);
        }
      }
      if (Layout::ValueBits < 16 && values_ == ValueCoding::symmetric) {
        rotate_hadamard_back(values.row(token).data(), HeadDim);
      }
    }
    return values;
  }

 private:
  static int width(const BitAllocation &allocation, int channel) {
    for (const CodeRun &run : allocation.runs()) {
      if (channel < run.first + run.channels) return run.bits;
    }
    return 0;
  }

  float value(int token, int channel, float code) const {
    const bool symmetric = values_ == ValueCoding::symmetric;
    const int at = (symmetric ? 0 : channel / Layout::value_group) * Group + value_element(token);
    const float step = scale(Layout::value_scales, at);
    constexpr float middle = static_cast<float>((1 << Layout::ValueBits) - 1) / 2;
    return symmetric ? step * (code - middle) : scale(Layout::value_zeros(values_), at) + step * code;
  }

  float scale(int offset, int element) const {
    half number;
    std::memcpy(&number, bytes_ + offset + element * 2, sizeof number);
    return static_cast<float>(number);
  }

  float exact(int offset, int tile, int element) const {
    T number;
    std::memcpy(&number, bytes_ + offset + (tile * 256 + element) * 2, sizeof number);
    return static_cast<float>(number);
  }

  const std::uint8_t *bytes_;
  ValueCoding values_;
};

/// What the keys of one head's pages are coded with.
struct PageCoding {
  const KeyQuantizer &quantizer;
  const RowMatrix &from_basis;  ///< A^-1, empty without a basis
  const TileFrame *frame;       ///< null: without tiles
  const RotaryTable *rotary;    ///< null: a page's base is 0
  const float *value_mean;      ///< rotated; null: none
};

/// Writes the tokens of a page of one head that count to head `head` of k and v.
template <class Layout, class T, Element S>
void unpack_page(const HeadPage<Layout, T> &page, const PageCoding &coding, const PageView &view,
                 Index head, TensorView<S> k, TensorView<S> v) {
  RowMatrix keys = page.keys(coding.quantizer, coding.from_basis);
  const RowMatrix values = page.values(coding.value_mean);
  if (const float *mean = coding.quantizer.mean()) {
    coding.frame->add_mean(mean, Layout::HeadDim, 1, view.row, Layout::Group, keys.data());
  }
  if (view.base != 0) Turn(*coding.rotary, view.base).apply_to_channels(keys.data(), Layout::Group);
  for (Index token = 0; token < view.tokens; ++token) {
    for (Index channel = 0; channel < Layout::HeadDim; ++channel) {
      k.row(token, head)[channel] = static_cast<S>(keys(channel, view.first + token));
      v.row(token, head)[channel] = static_cast<S>(values(view.first + token, channel));
    }
  }
}

}  // namespace squat::test
