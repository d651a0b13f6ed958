#pragma once

// A page of the GPU's layout as a snapshot keeps it (cache/snapshot.hpp), and back, by the host. Codes
// are carried over bit for bit.

#include <algorithm>
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
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::cuda {

/// One KV head's part of a page. T: of exact numbers.
template <class Layout, class T>
class PageRecord {
 public:
  static constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group;

  static constexpr std::size_t key_bytes = Layout::KeyBits == 16
                                               ? std::size_t{2} * HeadDim * Group
                                               : code_bytes(Layout::KeyBits, Group, HeadDim);
  static constexpr std::size_t value_bytes = Layout::ValueBits == 16
                                                 ? std::size_t{2} * HeadDim * Group
                                                 : code_bytes(Layout::ValueBits, HeadDim, Group);
  static constexpr std::size_t code_bytes_of_head = key_bytes + value_bytes;

  explicit PageRecord(ValueCoding values) : values_(values), codes_(std::size_t{HeadDim} * Group) {}

  /// Of a head's parameters in a record.
  std::size_t parameter_bytes() const {
    const auto rows = static_cast<std::size_t>(Layout::scales_of_a_value(values_)) *
                      (values_ == ValueCoding::plain ? 2 : 1);
    return (Layout::KeyBits == 16 ? 0 : 4 * std::size_t{HeadDim}) + rows * 2 * Group;
  }

  /// From the head's part of a page to its parameters and codes in a record, which is filled with zeros.
  void write(const std::uint8_t *page, const KeyQuantizer &quantizer, std::byte *parameters,
             std::byte *codes) {
    for_each_parameter([&](int in_page, std::size_t in_record) {
      std::memcpy(parameters + in_record, page + in_page, 2);
    });
    auto *keys = reinterpret_cast<std::uint8_t *>(codes), *values = keys + key_bytes;
    if constexpr (Layout::KeyBits == 16) {
      for_each_exact_key(
          [&](int in_page, int in_record) { std::memcpy(keys + in_record, page + in_page, 2); });
    } else {
      for_each_run(page, quantizer, [&](const CodeRun &run, int first_byte, std::size_t in_record) {
        for_each_key(run, [&](int unit, int column, int token, Index i) {
          codes_[static_cast<std::size_t>(i * Group + token)] = static_cast<std::uint8_t>(
              key_code(page + first_byte + unit * Layout::key_unit_bytes(run.bits), run.bits,
                       Layout::unit, Group, token, column));
        });
        pack_codes(run.bits, codes_.data(), Group, Group, run.channels, keys + in_record);
      });
    }
    if constexpr (Layout::ValueBits == 16) {
      for_each_exact_value(
          [&](int in_page, int in_record) { std::memcpy(values + in_record, page + in_page, 2); });
    } else {
      for_each_value([&](int step, int channel, int token) {
        codes_[static_cast<std::size_t>(token * HeadDim + channel)] = static_cast<std::uint8_t>(
            value_code(page + step, Layout::ValueBits, Layout::channel_tiles, channel, token % 16));
      });
      pack_codes(Layout::ValueBits, codes_.data(), HeadDim, HeadDim, Group, values);
    }
  }

  /// Back, into a part that is filled with zeros. has_mean: a mean value was learnt. Throws Error for
  /// what is no page of the coding.
  void read(const std::byte *parameters, const std::byte *codes, const KeyQuantizer &quantizer,
            bool has_mean, std::uint8_t *page) {
    require(detail::magnitudes_fit(parameters, parameter_bytes() / 2, 0x7bff),
            "a scale or zero is not finite");
    for_each_parameter([&](int in_page, std::size_t in_record) {
      std::memcpy(page + in_page, parameters + in_record, 2);
    });
    const auto *keys = reinterpret_cast<const std::uint8_t *>(codes), *values = keys + key_bytes;
    if constexpr (Layout::KeyBits == 16) {
      require(detail::elements_fit<T>(codes, std::size_t{HeadDim} * Group), "an element is not finite");
      for_each_exact_key(
          [&](int in_page, int in_record) { std::memcpy(page + in_page, keys + in_record, 2); });
    } else {
      require(!in_basis(page) || quantizer.basis() != nullptr, "keys in a basis that is not there");
      require(has_mean || !Layout::values_about_mean(page), "values about a mean that is not there");
      require((page[Layout::key_scales + 2 * key_element(1) + 1] & 0x80) == 0,
              "trellis codes, which are the CPU's alone");
      std::size_t end = 0;  // of the keys' codes
      for_each_run(page, quantizer, [&](const CodeRun &run, int first_byte, std::size_t in_record) {
        end = in_record + code_bytes(run.bits, Group, run.channels);
        for_each_key(run, [&](int unit, int column, int token, Index i) {
          const int code = packed_code(run.bits, keys + in_record, Group, run.channels, token, i);
          put_key(page + first_byte + unit * Layout::key_unit_bytes(run.bits), run.bits, token, column,
                  code);
        });
      });
      require(detail::all_zero(codes + end, key_bytes - end), "bytes that are no codes");
    }
    if constexpr (Layout::ValueBits == 16) {
      require(detail::elements_fit<T>(codes + key_bytes, std::size_t{HeadDim} * Group),
              "an element is not finite");
      for_each_exact_value(
          [&](int in_page, int in_record) { std::memcpy(page + in_page, values + in_record, 2); });
    } else {
      for_each_value([&](int step, int channel, int token) {
        const int code = packed_code(Layout::ValueBits, values, HeadDim, Group, channel, token);
        put_value(page + step, channel, token % 16, code);
      });
    }
  }

 private:
  static void require(bool holds, const char *what) {
    if (!holds) throw Error(std::string("squat: snapshot.pages are impossible: ") + what);
  }

  static bool in_basis(const std::uint8_t *page) {
    return (page[Layout::key_scales + 2 * key_element(0) + 1] & 0x80) != 0;
  }

  /// Calls visit(byte in the page, byte in the record) for every zero and scale.
  template <class Visit>
  void for_each_parameter(Visit &&visit) const {
    std::size_t in_record = 0;
    if constexpr (Layout::KeyBits < 16) {
      for (const int first : {Layout::key_zeros, Layout::key_scales}) {
        for (int channel = 0; channel < HeadDim; ++channel, in_record += 2)
          visit(first + 2 * key_element(channel), in_record);
      }
    }
    const int scales = Layout::scales_of_a_value(values_);
    for (const int first : {Layout::value_scales, Layout::value_zeros(values_)}) {
      if (first != Layout::value_scales && values_ != ValueCoding::plain) continue;
      for (int scale = 0; scale < scales; ++scale) {
        for (int token = 0; token < Group; ++token, in_record += 2)
          visit(first + 2 * (scale * Group + value_element(token)), in_record);
      }
    }
  }

  /// Calls visit(run, its first byte in the page, its first byte in the record) for the runs of keys.
  template <class Visit>
  static void for_each_run(const std::uint8_t *page, const KeyQuantizer &quantizer, Visit &&visit) {
    const KeySpace space = in_basis(page) ? KeySpace::basis : KeySpace::channels;
    int in_page = Layout::key_codes;
    std::size_t in_record = 0;
    for (const CodeRun &run : quantizer.allocation(space).runs()) {
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

  /// Calls visit(first byte of the step, channel, token).
  template <class Visit>
  static void for_each_value(Visit &&visit) {
    for (int token = 0; token < Group; ++token) {
      const int step = Layout::value_codes + token / 16 * Layout::value_step_bytes;
      for (int channel = 0; channel < HeadDim; ++channel) visit(step, channel, token);
    }
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
        visit(Layout::value_codes + 2 * (tile * 256 + tile_element(channel % 16, token % 16)),
              2 * (token * HeadDim + channel));
      }
    }
  }

  static void put(std::uint8_t *plane, CodePlace at, int code) {
    plane[at.byte] = static_cast<std::uint8_t>(plane[at.byte] | code << at.bit);
  }
  static void put_key(std::uint8_t *unit, int bits, int token, int column, int code) {
    if (bits != 3) return put(unit, key_place(bits, Layout::unit, token, column), code);
    put(unit, key_place(2, Layout::unit, token, column), code & 3);
    put(unit + Group * Layout::unit / 4, key_place(1, Layout::unit, token, column), code >> 2);
  }
  static void put_value(std::uint8_t *step, int channel, int token, int code) {
    constexpr int tiles = Layout::channel_tiles;
    if constexpr (Layout::ValueBits != 3) {
      put(step, value_place(Layout::ValueBits, tiles, channel, token), code);
    } else {
      put(step, value_place(2, tiles, channel, token), code & 3);
      put(step + value_plane_bytes(2, tiles), value_place(1, tiles, channel, token), code >> 2);
    }
  }

  ValueCoding values_;
  std::vector<std::uint8_t> codes_;  // of a head's keys or values, a byte each
};

}  // namespace squat::cuda
