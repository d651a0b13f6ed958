#pragma once

// A page of the GPU's layout as a snapshot keeps it (cache/snapshot.hpp), and back, by the host. Codes
// are carried over bit for bit.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "squat/cache/snapshot/check_numbers.hpp"
#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/codes.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/page_shape.hpp"
#include "squat/coding/trellis_layout.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// A KV head's part of a page.
struct PagePart {
  Index head = 0;
  std::uint8_t *parameters = nullptr;  ///< scales and zeros of its keys; codes, and all of 16-bit pages
  std::array<HeadPlace, 2>
      in_record;  ///< its codes among those of a record: of plain pages, in the basis
  // Where heads share bits.
  std::uint8_t *page = nullptr;
  std::array<SharedPlace, 2> places{};  ///< likewise
};

/// One KV head's part of a page in a record. T: of exact numbers.
template <class Layout, class T>
class PageRecord {
 public:
  static constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group;

  explicit PageRecord(ValueCoding values) : values_(values), codes_(std::size_t{HeadDim} * Group) {}

  /// Of a head's parameters in a record.
  std::size_t parameter_bytes() const {
    const auto rows = static_cast<std::size_t>(Layout::scales_of_a_value(values_)) *
                      (values_ == ValueCoding::plain ? 2 : 1);
    return (Layout::KeyBits == 16 ? 0 : 4 * std::size_t{HeadDim}) + rows * 2 * Group;
  }

  /// What the keys of a part are coded in.
  static KeySpace space(const PagePart &part) {
    if constexpr (Layout::KeyBits == 16) return KeySpace::channels;
    const bool basis = (part.parameters[Layout::key_scales + 2 * key_element(0) + 1] & 0x80) != 0;
    return basis ? KeySpace::basis : KeySpace::channels;
  }

  /// From the head's part of a page to its parameters and codes in a record, which is filled with zeros.
  /// codes: of all heads.
  void write(const PagePart &part, const KeyQuantizer &quantizer, std::byte *parameters,
             std::byte *codes) {
    const Where at = where(part);
    for_each_parameter(at, [&](std::uint8_t *in_page, std::size_t in_record) {
      std::memcpy(parameters + in_record, in_page, 2);
    });
    auto *record = reinterpret_cast<std::uint8_t *>(codes);
    std::uint8_t *keys = record + at.record.keys, *values = record + at.record.values;
    if constexpr (Layout::KeyBits == 16) {
      for_each_exact_key(
          [&](int in_page, int in_record) { std::memcpy(keys + in_record, at.keys + in_page, 2); });
    } else {
      for_each_run(at, quantizer, [&](const CodeRun &run, int first_byte, std::size_t in_record) {
        const Codes kind = Layout::key_codes_of(at.parameters, run.bits);
        for_each_key(run, [&](int unit, int column, int token, Index i) {
          const std::uint8_t *from = at.keys + first_byte + unit * Layout::key_unit_bytes(run.bits);
          codes_[static_cast<std::size_t>(i * Group + token)] = static_cast<std::uint8_t>(
              read_code(from, Layout::key_places(kind, run.bits, token, column)));
        });
        pack_codes(kind, run.bits, codes_.data(), Group, Group, run.channels, keys + in_record);
      });
    }
    if constexpr (Layout::ValueBits == 16) {
      for_each_exact_value(
          [&](int in_page, int in_record) { std::memcpy(values + in_record, at.values + in_page, 2); });
    } else {
      const int bits = at.record.value_bits;
      const Codes kind = value_codes(bits);
      for_each_value([&](int channel, int token) {
        codes_[static_cast<std::size_t>(token * HeadDim + channel)] = static_cast<std::uint8_t>(
            read_code(at.values, Layout::value_places(kind, bits, channel, token)));
      });
      pack_codes(kind, bits, codes_.data(), HeadDim, HeadDim, Group, values);
    }
  }

  /// Back, into a part that is filled with zeros. has_mean: a mean value was learnt. Throws Error for
  /// what is no page of the coding.
  void read(const std::byte *parameters, const std::byte *codes, const KeyQuantizer &quantizer,
            bool has_mean, const PagePart &part) {
    require(detail::magnitudes_fit(parameters, parameter_bytes() / 2, 0x7bff),
            "a scale or zero is not finite");
    if constexpr (Layout::KeyBits < 16) {  // which say where all else is, and what
      for (const int channel : {0, 1}) {
        std::memcpy(part.parameters + Layout::key_scales + 2 * key_element(channel),
                    parameters + 2 * (HeadDim + channel), 2);
      }
    }
    const Where at = where(part);
    for_each_parameter(at, [&](std::uint8_t *in_page, std::size_t in_record) {
      std::memcpy(in_page, parameters + in_record, 2);
    });
    const auto *record = reinterpret_cast<const std::uint8_t *>(codes);
    const std::uint8_t *keys = record + at.record.keys, *values = record + at.record.values;
    if constexpr (Layout::KeyBits == 16) {
      require(detail::elements_fit<T>(codes + at.record.keys, std::size_t{HeadDim} * Group),
              "an element is not finite");
      for_each_exact_key(
          [&](int in_page, int in_record) { std::memcpy(at.keys + in_page, keys + in_record, 2); });
    } else {
      require(at.space == KeySpace::channels || quantizer.basis() != nullptr,
              "keys in a basis that is not there");
      require(has_mean || !Layout::values_about_mean(part.parameters),
              "values about a mean that is not there");
      const bool trellis = (at.parameters[Layout::key_scales + Layout::trellis_byte] & 0x80) != 0;
      require(!trellis || (Layout::trellis && at.space == KeySpace::basis),
              "trellis codes that were not asked for");
      std::size_t end = at.record.keys;  // of the keys' codes
      for_each_run(at, quantizer, [&](const CodeRun &run, int first_byte, std::size_t in_record) {
        end = at.record.keys + in_record + code_bytes(run.bits, Group, run.channels);
        const Codes kind = Layout::key_codes_of(at.parameters, run.bits);
        for_each_key(run, [&](int unit, int column, int token, Index i) {
          const int code = packed_code(kind, run.bits, keys + in_record, Group, run.channels, token, i);
          add_code(at.keys + first_byte + unit * Layout::key_unit_bytes(run.bits),
                   Layout::key_places(kind, run.bits, token, column), code);
        });
      });
      require(detail::all_zero(codes + end, at.record.values - end), "bytes that are no codes");
    }
    if constexpr (Layout::ValueBits == 16) {
      require(detail::elements_fit<T>(codes + at.record.values, std::size_t{HeadDim} * Group),
              "an element is not finite");
      for_each_exact_value(
          [&](int in_page, int in_record) { std::memcpy(at.values + in_page, values + in_record, 2); });
    } else {
      const int bits = at.record.value_bits;
      const Codes kind = value_codes(bits);
      for_each_value([&](int channel, int token) {
        const int code = packed_code(kind, bits, values, HeadDim, Group, channel, token);
        add_code(at.values, Layout::value_places(kind, bits, channel, token), code);
      });
    }
  }

 private:
  /// Where a part's codes and values' scales are, in the page and in the record.
  struct Where {
    KeySpace space;
    std::uint8_t *parameters, *keys, *values, *value_scales;
    HeadPlace record;
  };
  static Where where(const PagePart &part) {
    std::uint8_t *const parameters = part.parameters;
    const std::size_t i = space(part) == KeySpace::basis ? 1 : 0;
    Where at{space(part),
             parameters,
             parameters + Layout::key_codes,
             parameters + Layout::value_codes,
             parameters + Layout::value_scales,
             part.in_record[i]};
    if constexpr (Layout::shares_bits) {
      const SharedPlace &place = part.places[i];
      at.keys = part.page + place.codes;
      at.values = at.keys + place.key_bytes;
      at.value_scales = at.values + Layout::value_bytes(place.value_bits);
    }
    return at;
  }

  static void require(bool holds, const char *what) {
    if (!holds) throw Error(std::string("squat: snapshot.pages are impossible: ") + what);
  }

  /// Calls visit(bytes in the page, byte in the record) for every zero and scale.
  template <class Visit>
  void for_each_parameter(const Where &at, Visit &&visit) const {
    std::size_t in_record = 0;
    if constexpr (Layout::KeyBits < 16) {
      for (const int first : {Layout::key_zeros, Layout::key_scales}) {
        for (int channel = 0; channel < HeadDim; ++channel, in_record += 2)
          visit(at.parameters + first + 2 * key_element(channel), in_record);
      }
    }
    const int scales = Layout::scales_of_a_value(values_);
    const int zeros = Layout::value_zeros(values_) - Layout::value_scales;
    for (const int first : {0, zeros}) {
      if (first != 0 && values_ != ValueCoding::plain) continue;
      for (int scale = 0; scale < scales; ++scale) {
        for (int token = 0; token < Group; ++token, in_record += 2)
          visit(at.value_scales + first + 2 * (scale * Group + value_element(Layout::token_row(token))),
                in_record);
      }
    }
  }

  /// Calls visit(run, its first byte in the page, its first byte in the record) for the runs of keys.
  template <class Visit>
  static void for_each_run(const Where &at, const KeyQuantizer &quantizer, Visit &&visit) {
    int in_page = 0;
    std::size_t in_record = 0;
    for (const CodeRun &run : quantizer.allocation(at.space).runs()) {
      visit(run, in_page, in_record);
      in_page += static_cast<int>(run.channels) / Layout::unit * Layout::key_unit_bytes(run.bits);
      in_record += code_bytes(run.bits, Group, run.channels);
    }
  }

  /// Calls visit(unit, column, token, channel of the run).
  template <class Visit>
  static void for_each_key(const CodeRun &run, Visit &&visit) {
    for (Index i = 0; i < run.channels; ++i) {
      const int unit = static_cast<int>(i) / Layout::unit, column = static_cast<int>(i) % Layout::unit;
      for (int token = 0; token < Group; ++token) visit(unit, column, token, i);
    }
  }

  /// Calls visit(channel, token).
  template <class Visit>
  static void for_each_value(Visit &&visit) {
    for (int token = 0; token < Group; ++token) {
      for (int channel = 0; channel < HeadDim; ++channel) visit(channel, token);
    }
  }

  /// What values' codes of so many bits are.
  Codes value_codes(int bits) const {
    return values_ == ValueCoding::symmetric ? Layout::value_codes_of(bits) : Codes::scalar;
  }

  /// Calls visit(byte in the page, byte in the record) for every element.
  template <class Visit>
  static void for_each_exact_key(Visit &&visit) {
    for (int token = 0; token < Group; ++token) {
      for (int channel = 0; channel < HeadDim; ++channel) {
        const int tile = token / 16 * Layout::channel_tiles + channel / 16;
        visit(2 * (tile * 256 + tile_element(token % 16, channel % 16)),
              2 * (token * HeadDim + channel));
      }
    }
  }
  template <class Visit>
  static void for_each_exact_value(Visit &&visit) {
    for (int token = 0; token < Group; ++token) {
      for (int channel = 0; channel < HeadDim; ++channel) {
        const int tile = token / 16 * Layout::channel_tiles + channel / 16;
        visit(2 * (tile * 256 + tile_element(channel % 16, token % 16)),
              2 * (token * HeadDim + channel));
      }
    }
  }

  ValueCoding values_;
  std::vector<std::uint8_t> codes_;  // of a head's keys or values, a byte each
};

}  // namespace squat::cuda
