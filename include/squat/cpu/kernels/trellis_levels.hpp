#pragma once

// The levels of packed trellis codes (coding/trellis_layout.hpp), a register of bytes at a time.
//
// A byte holds four codes of a row; phase f of it is the f-th. The window of phase 3 is, at 2 bits, the
// byte itself; those of the others reach into the byte before, which every lane takes from the lane
// before it. A window is taken apart into its newest four bits and its oldest four: two look-ups and an
// exclusive or make a level of every byte.
//
// At 1 bit the four codes are half a byte: with the halves of the lane before and the one before that
// they are two bytes that 1-bit windows lie in as 2-bit windows would.

#include <array>
#include <cstddef>
#include <cstdint>

#include "squat/coding/trellis.hpp"
#include "squat/coding/trellis_layout.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/kernels/byte_vector.hpp"
#include "squat/cpu/kernels/prefetch.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

/// Packed trellis codes of `rows` times `inner`.
struct TrellisBlock {
  const std::uint8_t *data;
  Index rows;
  Index inner;
  std::ptrdiff_t ahead = 0;  ///< bytes to the codes that are read next, see prefetch.hpp
};

/// Bytes of four inner indices and of the next four.
struct BytePair {
  ByteVector first, second;
};

/// The levels of some phases of bytes.
template <int Phases>
struct PhaseLevels {
  BytePair phases[Phases];
};

/// The look-up tables of one width; their levels count from Origin.
template <int Bits, int Origin>
class TrellisTables {
 public:
  TrellisTables()
      : hash_(repeat_table(trellis_hash.data())),
        low_(repeat_table(levels.data())),
        high_(repeat_table(levels.data() + 16)) {}

  /// Of windows in two halves of four bits. third: bytes whose bit `Bit` is the third bit of the codes.
  template <int Bit>
  ByteVector look_up(ByteVector newest, ByteVector oldest, ByteVector third) const {
    const ByteVector index = newest ^ cpu::look_up(hash_, oldest);
    const ByteVector level = cpu::look_up(low_, index);
    if constexpr (Bits < 3) return level;
    return where_bit<Bit>(third, level, cpu::look_up(high_, index));
  }

 private:
  static constexpr std::array<std::int8_t, 32> levels = [] {
    std::array<std::int8_t, 32> shifted = trellis_code(Bits).levels;
    for (std::int8_t &level : shifted) level = static_cast<std::int8_t>(level - Origin);
    return shifted;
  }();

  ByteVector hash_, low_, high_;
};

/// The lanes [lane, lane + vector_lanes) of a block's rows.
template <int Bits, int Origin>
class TrellisLanes {
 public:
  TrellisLanes(const TrellisBlock &block, Index lane)
      : rows_(block.rows),
        ahead_(block.ahead),
        count_(block.rows / 4 - lane),
        first_(lane == 0),
        codes_(block.data + lane * 4),
        third_bits_(codes_ + plane_bytes(2, block.rows, block.inner)) {}

  /// Lanes that there are from the first on.
  Index count() const { return count_; }

  /// The levels of some phases of the next eight inner indices.
  template <int... Phases>
  [[gnu::always_inline]] PhaseLevels<sizeof...(Phases)> next() {
    if constexpr (Bits == 1) {
      const ByteVector x = load(codes_), before = lane_before(x, 1), second = lane_before(before, 2);
      const BytePair newer = {bits_from<0>(x, 15) | bits_from<-4>(before, 0xf0),
                              bits_from<4>(x, 15) | bits_from<0>(before, 0xf0)};
      const BytePair older = {bits_from<0>(before, 15) | bits_from<-4>(second, 0xf0),
                              bits_from<4>(before, 15) | bits_from<0>(second, 0xf0)};
      codes_ += rows_;
      return {BytePair{one_bit<Phases>(newer.first, older.first),
                       one_bit<Phases>(newer.second, older.second)}...};
    } else {
      const ByteVector first = load(codes_), before_first = lane_before(first, 1);
      codes_ += rows_;
      const ByteVector second = load(codes_), before_second = lane_before(second, 1);
      codes_ += rows_;
      ByteVector third = {};
      if constexpr (Bits == 3) third = load(third_bits_);
      third_bits_ += rows_;
      return {BytePair{two_bits<0, Phases>(first, before_first, third),
                       two_bits<4, Phases>(second, before_second, third)}...};
    }
  }

 private:
  ByteVector load(const std::uint8_t *bytes) const {
    prefetch_ahead(bytes, ahead_);
    return load_lanes(bytes, count_);
  }

  /// The lanes `distance` before those that are read, from x, the lanes one before them; memory has them
  /// at hand but for a row's first lane, which takes the last.
  ByteVector lane_before(ByteVector x, Index distance) const {
    if (!first_) return load_lanes(codes_ - 4 * distance, count_);
    return cpu::lane_before(x, codes_ + rows_ - 4 * distance);
  }

  /// Of windows that end in x at bit 3 - phase, four bits of each in `older` too.
  template <int Phase>
  [[gnu::always_inline]] ByteVector one_bit(ByteVector x, ByteVector older) const {
    return tables_.template look_up<0>(bits_from<3 - Phase>(x, 15), bits_from<3 - Phase>(older, 15), x);
  }

  /// ThirdBit: where third bits of these codes begin.
  template <int ThirdBit, int Phase>
  [[gnu::always_inline]] ByteVector two_bits(ByteVector x, ByteVector before, ByteVector third) const {
    const auto of = [&](ByteVector newest, ByteVector oldest) __attribute__((always_inline)) {
      return tables_.template look_up<ThirdBit + 3 - Phase>(newest, oldest, third);
    };
    if constexpr (Phase == 1) return of(bits_from<4>(x, 15), bits_from<0>(before, 15));
    if constexpr (Phase == 3) return of(bits_from<0>(x, 15), bits_from<4>(x, 15));
    const ByteVector straddling = bits_from<-2>(before, 12) | bits_from<6>(x, 3);
    if constexpr (Phase == 0) return of(straddling, bits_from<2>(before, 15));
    if constexpr (Phase == 2) return of(bits_from<2>(x, 15), straddling);
  }

  TrellisTables<Bits, Origin> tables_;
  Index rows_;
  std::ptrdiff_t ahead_;
  Index count_;
  bool first_;  // whether rows begin with these lanes
  const std::uint8_t *codes_;
  const std::uint8_t *third_bits_;
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE
