#pragma once

// What a snapshot and the cache that loads it must have in common.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "squat/cache/options.hpp"
#include "squat/cache/snapshot/checksum.hpp"
#include "squat/coding/coding.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// What errors say they are, in the order of the numbers of the section.
inline constexpr std::array shape_names = {"element_type",
                                           "key_bits",
                                           "value_bits",
                                           "layers",
                                           "query_heads",
                                           "kv_heads",
                                           "head_dim",
                                           "coding",
                                           "fit",
                                           "values",
                                           "tail",
                                           "codes",
                                           "orthogonal.rank",
                                           "orthogonal.lambda",
                                           "orthogonal.block",
                                           "orthogonal.order",
                                           "allocation",
                                           "sinks",
                                           "residual",
                                           "page_tokens",
                                           "tile_tokens",
                                           "attention_scale",
                                           "rotary",
                                           "statistics_tokens"};

/// The section: a number of 64 bits each, floats as their bits of 32. The last one counts only where
/// statistics are still gathered.
using SnapshotShape = std::array<std::uint64_t, shape_names.size()>;
inline constexpr std::size_t statistics_tokens_of_shape = shape_names.size() - 1;

inline constexpr std::size_t codes_of_shape = 11;
static_assert(std::string_view(shape_names[codes_of_shape]) == "codes");

/// The number of codes. 1 were trellis codes of another hash and other levels, which nothing reads.
constexpr std::uint64_t number_of_codes(Codes codes) { return codes == Codes::scalar ? 0 : 2; }

/// Throws Error for a number without codes.
inline Codes codes_of_number(std::uint64_t number) {
  if (number == 1)
    throw Error("squat: snapshot.codes are trellis codes of an earlier version, which cannot be read");
  if (number > 2) throw_invalid("snapshot.codes", number, "0 or 2");
  return number == 0 ? Codes::scalar : Codes::trellis;
}

/// Of the rotary tables of all layers.
inline std::uint64_t rotary_fingerprint(const Options &options) {
  Fingerprint fingerprint;
  for (std::size_t layer = 0;
       !options.rotary.empty() && layer < static_cast<std::size_t>(options.layers); ++layer) {
    const RotaryTable &table = options.rotary[options.rotary.size() == 1 ? 0 : layer];
    fingerprint.add_number(static_cast<std::uint64_t>(table.pairs));
    fingerprint.add_number(static_cast<std::uint64_t>(table.pair_count()));
    for (const float frequency : table.inverse_frequencies) fingerprint.add_number(frequency);
  }
  return fingerprint.value();
}

/// 0: float, 1: half, 2: bfloat16.
template <Element T>
constexpr std::uint64_t element_number() {
  return std::is_same_v<T, float> ? 0 : std::is_same_v<T, half> ? 1 : 2;
}

template <Element T>
SnapshotShape snapshot_shape(const Options &options, int key_bits, int value_bits) {
  const auto number = [](auto value) {
    if constexpr (std::is_same_v<decltype(value), float>) {
      return std::uint64_t{std::bit_cast<std::uint32_t>(value)};
    } else {
      return static_cast<std::uint64_t>(value);
    }
  };
  return {element_number<T>(),
          number(key_bits),
          number(value_bits),
          number(options.layers),
          number(options.query_heads),
          number(options.kv_heads),
          number(options.head_dim),
          number(*options.coding),
          number(*options.fit),
          number(*options.values),
          number(*options.tail),
          number_of_codes(*options.codes),
          number(options.orthogonal.rank),
          number(options.orthogonal.lambda),
          number(options.orthogonal.block),
          number(options.orthogonal.order),
          number(*options.allocation),
          number(options.sinks),
          number(options.residual),
          number(options.page_tokens),
          number(*options.tile_tokens),
          number(options.attention_scale),
          rotary_fingerprint(options),
          number(options.statistics_tokens)};
}

/// Throws the Error of the first number, `first` or behind it and before `last`, in which they differ.
inline void check_shape_of_snapshot(const SnapshotShape &found, const SnapshotShape &own,
                                    std::size_t first, std::size_t last) {
  codes_of_number(found[codes_of_shape]);
  for (std::size_t i = first; i < last; ++i) {
    if (found[i] != own[i]) {
      throw_invalid(std::string("snapshot.") + shape_names[i], found[i], "that of the cache,", own[i]);
    }
  }
}

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
