#pragma once

// Scores of a team's rows against a warp's 32 tokens of a page, and sums of its values, on codes as they
// lie in shared memory (code_places.cuh).
//
// Of keys, a register of A has codes of one token tile, tile 0 as they are, tile 1 times 16: places that
// a mask alone takes out. Codes of 8 bits are two of 4, the high ones met by queries 16 times as large.
// Of values, places of a byte are channel tiles, each with a sum of its own; the last place is not
// masked and the others are taken off it at the end.
//
// Trellis codes come as bytes, see trellis_levels.cuh; where layouts have them, no tile is times 16.

#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/byte_products.cuh"
#include "squat/cuda/kernels/decode_memory.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/trellis_levels.cuh"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Codes of a unit of keys as registers of A: [token tile][half of it].
struct KeyRegisters {
  Word a[2][2];
};

template <class Layout>
class KeyScores {
 public:
  static constexpr int unit = Layout::unit, steps = Layout::HeadDim / 16;

  /// Offsets in shared memory: of the page's codes of keys, and of the bytes of its queries. slice: of
  /// 32 tokens.
  __device__ KeyScores(int codes, int bytes, int lane, int slice)
      : codes_(codes), bytes_(bytes + lane * 4), lane_(slice * warp_lanes + lane) {}

  /// Adds the scores of the page's units: of the basis, or all of one width. trellis: whether codes of
  /// up to 3 bits are trellis codes.
  __device__ void add(bool basis, bool trellis, const DecodeTables &tables) {
    if constexpr (Layout::shares_bits && Layout::trellis) {
      // One way through the code for both: compilers take half an hour for two.
      const auto count = [&](int bits, int in_basis) {
        return basis ? in_basis : bits == tables.plain_key_bits ? Layout::key_units : 0;
      };
      add_units(UnitCounts{count(8, tables.eight), count(4, tables.four), count(3, tables.three),
                           count(2, tables.two), count(1, tables.one)},
                trellis);
    } else if (basis) {
      add_units(tables, trellis);
    } else if constexpr (Layout::shares_bits) {
      const int bits = tables.plain_key_bits;
      if (bits == 1) add_run<1>(0, Layout::key_units);
      if (bits == 2) add_run<2>(0, Layout::key_units);
      if (bits == 3) add_run<3>(0, Layout::key_units);
      if (bits == 4) add_run<4>(0, Layout::key_units);
      if (bits == 8) add_wide(Layout::key_units);
    } else if constexpr (Layout::KeyBits == 8) {
      add_wide(Layout::key_units);
    } else {
      add_run<Layout::KeyBits>(0, Layout::key_units);
    }
  }

  /// What the sums of rows g + 16 and g + 24 are multiplied by.
  static constexpr int second_tile = Layout::trellis ? 1 : 16;

  /// The sum of row g + 8 i of the slice and of query row t, for i > 1 times second_tile. Codes are 15
  /// at most, 240 times 16, or half of them bytes of 8 whose low half meets queries a 16th as large, and
  /// bytes of trellis codes 63: 256 channels stay within 32 bits, and the halves of more do.
  __device__ float operator[](int i) const {
    const int high = c_[i / 2][i % 2 * 2], low = c_[i / 2][i % 2 * 2 + 1];
    if constexpr (Layout::HeadDim > 256)
      return fmaf(static_cast<float>(high), 256, static_cast<float>(low));
    return static_cast<float>(256 * high + low);
  }

 private:
  /// Units of each width.
  struct UnitCounts {
    int eight, four, three, two, one;
  };

  /// Units of all widths, one behind the other. units: UnitCounts, or DecodeTables, which are read where
  /// they are needed: counts in registers cost a seventh of a step.
  template <class Counts>
  __device__ void add_units(const Counts &units, bool trellis) {
    add_wide(units.eight);
    add_run<4>(units.eight, units.four);
    int first = units.eight + units.four;
    if constexpr (Layout::shares_bits) {
      add_narrow<3>(first, units.three, trellis);
      first += units.three;
    }
    add_narrow<2>(first, units.two, trellis);
    if constexpr (Layout::shares_bits) add_narrow<1>(first + units.two, units.one, trellis);
  }

  /// Units of up to 3 bits.
  template <int Bits>
  __device__ void add_narrow(int first, int count, bool trellis) {
    if (Layout::trellis && trellis) {
      add_run<Bits, Layout::trellis>(first, count);
    } else {
      add_run<Bits>(first, count);
    }
  }

  /// What a mask left of codes on the high nibbles of bytes, as codes of token tile 1.
  __device__ static Word of_second_tile(Word x) { return Layout::trellis ? x >> 4 : x; }

  /// The lane's bytes of a plane of 1, 2, 4 or 8 bits, as words whose bytes are columns; of units of 8
  /// channels those that a unit of its parity has.
  template <int Bits>
  __device__ void load(int plane, int index, Word (&words)[Bits / 2]) const {
    const int from = plane + lane_ * key_lane_bytes(Bits, unit);
    if constexpr (unit == 16) {
      if constexpr (Bits == 2) words[0] = shared_at<const Word>(from);
      if constexpr (Bits == 4) {
        const uint2 two = shared_at<const uint2>(from);
        words[0] = two.x, words[1] = two.y;
      }
      if constexpr (Bits == 8) {
        const uint4 four = shared_at<const uint4>(from);
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
      }
    } else {
      // Columns 2t and 2t + 1 are bytes 0 and 2 of an even unit, 1 and 3 of an odd one.
      const int select = index % 2 == 0 ? 0x4140 : 0x1404,
                select_high = index % 2 == 0 ? 0x4342 : 0x3424;
      if constexpr (Bits == 2) {
        words[0] = __byte_perm(shared_at<const std::uint16_t>(from), 0, select);
      } else {
#pragma unroll
        for (int i = 0; i < Bits / 4; ++i) {
          const Word two = shared_at<const Word>(from + 4 * i);
          words[2 * i] = __byte_perm(two, 0, select);
          words[2 * i + 1] = __byte_perm(two, 0, select_high);
        }
      }
    }
  }

  /// The high bits of codes of 3, as nibbles of columns, on bit 0 to 3 of the columns' bytes.
  __device__ Word load_nibbles(int plane, int index) const {
    const int from = plane + lane_ * key_lane_bytes(1, unit);
    if constexpr (unit == 16) {
      Word x = shared_at<const std::uint16_t>(from);
      x = (x | x << 8) & 0x00ff00ffu;
      return (x | x << 4) & 0x0f0f0f0fu;
    }
    const Word x = shared_at<const std::uint8_t>(from);
    return ((x | x << 12) & 0x000f000fu) << (index % 2 * 8);
  }

  /// A plane of trellis codes of 1 or 2 bits of a lane of the page, nibbles where the lookup of bytes
  /// wants them.
  template <int Bits>
  __device__ Word load_trellis(int plane, int lane, int index) const {
    const int from = plane + lane * key_lane_bytes(Bits, unit);
    if constexpr (unit == 16) {
      if constexpr (Bits == 2) return shared_at<const Word>(from);
      return shared_at<const std::uint16_t>(from);
    }
    Word x;
    if constexpr (Bits == 2) {
      x = shared_at<const std::uint16_t>(from);
      x = (x | x << 8) & 0x00ff00ffu;
    } else {
      x = shared_at<const std::uint8_t>(from);
    }
    return ((x | x << 4) & 0x0f0f0f0fu) << (index % 2 * 4);
  }

  template <int Bits>
  __device__ KeyRegisters trellis_registers(int codes, int index) const {
    const auto lane_before = [&](int lanes) { return (lane_ - lanes) & (Layout::Group - 1); };
    KeyRegisters own;
    if constexpr (Bits == 1) {
      const Word x = load_trellis<1>(codes, lane_, index),
                 before = load_trellis<1>(codes, lane_before(4), index),
                 second = load_trellis<1>(codes, lane_before(8), index);
      const auto levels = [&]<int Phase>(Word &to) {
        const Word of = cuda::trellis_index<Phase>(x, before, second);
        to = trellis_levels<1, false>(of, 0);
      };
      levels.template operator()<0>(own.a[0][0]);
      levels.template operator()<1>(own.a[0][1]);
      levels.template operator()<2>(own.a[1][0]);
      levels.template operator()<3>(own.a[1][1]);
    } else {
      const Word x = load_trellis<2>(codes, lane_, index),
                 second = load_trellis<2>(codes, lane_before(4), index);
      const auto [of_first, of_second] = trellis_indices(x, __funnelshift_l(second, x, 16), second);
      Word third = 0;
      if constexpr (Bits == 3) {
        third = load_trellis<1>(codes + Layout::key_unit_bytes(2), lane_, index);
        third |= third << 18;  // tokens 2 and 3 of each column
      }
      trellis_levels<Bits, false>(of_first, third, own.a[0][0], own.a[1][0]);
      trellis_levels<Bits, true>(of_second, third << 1, own.a[0][1], own.a[1][1]);
    }
    if constexpr (unit == 8) {  // columns of the other unit meet no level
      const Word columns = index % 2 == 0 ? 0x00ff00ffu : 0xff00ff00u;
#pragma unroll
      for (int i = 0; i < 2; ++i) own.a[i][0] &= columns, own.a[i][1] &= columns;
    }
    return own;
  }

  template <int Bits, bool Trellis>
  __device__ KeyRegisters registers(int codes, int index) const {
    constexpr Word nibble = 0x0f0f0f0fu;
    if constexpr (Trellis) {
      return trellis_registers<Bits>(codes, index);
    } else if constexpr (Bits == 4) {
      Word w[2];
      load<4>(codes, index, w);
      return {{{w[0] & nibble, w[1] & nibble},
               {of_second_tile(w[0] & ~nibble), of_second_tile(w[1] & ~nibble)}}};
    } else if constexpr (Bits == 1) {
      constexpr Word low = 0x01010101u, high = low << 4;
      const Word n = load_nibbles(codes, index);
      return {{{n & low, n >> 1 & low}, {of_second_tile(n << 2 & high), of_second_tile(n << 1 & high)}}};
    } else {
      constexpr Word low = 0x03030303u, high = low << 4;
      Word w[1];
      load<2>(codes, index, w);
      const Word next = w[0] >> 2;
      KeyRegisters own{{{w[0] & low, next & low}, {w[0] & high, next & high}}};
      if constexpr (Bits == 3) {
        const Word n = load_nibbles(codes + Layout::key_unit_bytes(2), index);
        constexpr Word bit = 0x04040404u;
        own.a[0][0] |= n << 2 & bit;
        own.a[0][1] |= n << 1 & bit;
        own.a[1][0] |= n << 4 & bit << 4;
        own.a[1][1] |= n << 3 & bit << 4;
      }
      own.a[1][0] = of_second_tile(own.a[1][0]);
      own.a[1][1] = of_second_tile(own.a[1][1]);
      return own;
    }
  }

  /// Queries as B, of a step of 16 channels.
  __device__ Word step(int index) const { return shared_at<const Word>(bytes_ + index * 128); }
  __device__ Word queries(int index) const { return step(unit == 16 ? index : index / 2); }

  /// `count` units of one width, from `first` on, whose codes are the next. Unrolled: addresses are one
  /// register and constants then.
  template <int Bits, bool Trellis = false>
  __device__ void add_run(int first, int count) {
    constexpr int bytes = Layout::key_unit_bytes(Bits);
    if constexpr (unit == 16) {
      const int b = bytes_ + first * 128;
#pragma unroll
      for (int i = 0; i < Layout::key_units; i += 2) {
        if (i + 1 >= count) break;
        const KeyRegisters x = registers<Bits, Trellis>(codes_ + i * bytes, i);
        const KeyRegisters y = registers<Bits, Trellis>(codes_ + (i + 1) * bytes, i + 1);
        const Word b0 = shared_at<const Word>(b + i * 128),
                   b1 = shared_at<const Word>(b + (i + 1) * 128);
        multiply(x, y, b0, b1);
      }
      if (count % 2 != 0) {
        multiply(registers<Bits, Trellis>(codes_ + (count - 1) * bytes, count - 1),
                 shared_at<const Word>(b + (count - 1) * 128));
      }
    } else {
      int i = 0;
#pragma unroll 1
      for (; i + 1 < count; i += 2) {
        const KeyRegisters x = registers<Bits, Trellis>(codes_ + i * bytes, first + i);
        const KeyRegisters y = registers<Bits, Trellis>(codes_ + (i + 1) * bytes, first + i + 1);
        multiply(x, y, queries(first + i), queries(first + i + 1));
      }
      if (i < count)
        multiply(registers<Bits, Trellis>(codes_ + i * bytes, first + i), queries(first + i));
    }
    codes_ += count * bytes;
  }
  __device__ void multiply(const KeyRegisters &x, const KeyRegisters &y, Word b0, Word b1) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      multiply_add_signed(c_[i], x.a[i][0], x.a[i][1], y.a[i][0], y.a[i][1], b0, b1);
    }
  }
  __device__ void multiply(const KeyRegisters &x, Word b) {
#pragma unroll
    for (int i = 0; i < 2; ++i) multiply_add_signed(c_[i], x.a[i][0], x.a[i][1], b);
  }

  /// The first `count` units, of 8 bits.
  __device__ void add_wide(int count) {
#pragma unroll 1
    for (int index = 0; index < count; ++index) {
      Word w[4];
      load<8>(codes_, index, w);
      const Word high = step(steps + (unit == 16 ? index : index / 2)), low = queries(index);
      codes_ += Layout::key_unit_bytes(8);
      constexpr Word first = 0x0f0f0f0fu, second = first << 4;
      multiply_add_signed(c_[0], w[0] >> 4 & first, w[1] >> 4 & first, w[0] & first, w[1] & first, high,
                          low);
      multiply_add_signed(c_[1], of_second_tile(w[2] & second), of_second_tile(w[3] & second),
                          of_second_tile(w[2] << 4 & second), of_second_tile(w[3] << 4 & second), high,
                          low);
    }
  }

  int codes_, bytes_;
  int lane_;  // of the page
  int c_[2][4] = {};
};

/// Sums of values' codes, weighted by integers of 16 bits: of channels 16 j + g (and + 8) in rows of C.
template <int Tiles>
struct ValueSums {
  int c[Tiles][4];

  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < Tiles; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
  }
  /// Divides by 2^by, rounding.
  __device__ void shift(int by) {
#pragma unroll
    for (int j = 0; j < Tiles; ++j) shift(j, by);
  }
  /// Of tile j. A negative `by` multiplies.
  __device__ void shift(int j, int by) {
    const int half = by > 0 ? 1 << by >> 1 : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) c[j][i] = by >= 0 ? (c[j][i] + half) >> by : c[j][i] << -by;
  }
  __device__ bool exceeds(int most) const {
    bool any = false;
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) any = any || c[j][i] > most;
    }
    return any;
  }
};

/// How codes of `Bits` bits join such sums.
template <class Layout, ValueCoding Values, int Bits>
class ValueCodes {
 public:
  static constexpr int tiles = Layout::channel_tiles;
  static constexpr int step_bytes = value_step_bytes(Bits, tiles);
  using Sums = ValueSums<tiles>;
  /// Of 3 bits, tiles that share a word do not share the factor of their sums as others do.
  static constexpr bool trellis = Layout::value_codes_of(Bits) == Codes::trellis;
  static constexpr int places = Bits == 3 || trellis ? 1 : 8 / Bits;

  /// Adds the codes of two steps of 16 tokens, from offset `step` on; b(j): the weights of tile j's, as
  /// B.
  template <class B>
  __device__ static void add(Sums &sums, int step, B &&b) {
    if constexpr (trellis) return add_trellis(sums, step, b);
    auto &c = sums.c;
    constexpr int main_bits = Bits == 3 ? 2 : Bits, words = value_words(main_bits, tiles);
    Word low[words], high[words];
    load<words>(step, low);
    load<words>(step + step_bytes, high);
    if constexpr (Bits == 3) {
      constexpr int bit_words = value_words(1, tiles), plane = value_plane_bytes(2, tiles);
      Word low_bits[bit_words], high_bits[bit_words];
      load<bit_words>(step + plane, low_bits);
      load<bit_words>(step + plane + step_bytes, high_bits);
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        const uint2 own = b(j);
        multiply_add_unsigned(c[j], three(low, low_bits, j, 0), three(low, low_bits, j, 1),
                              three(high, high_bits, j, 0), three(high, high_bits, j, 1), own.x, own.y);
      }
    } else {
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        const uint2 own = b(j);
        multiply_add_unsigned(c[j], masked(low, j, 0), masked(low, j, 1), masked(high, j, 0),
                              masked(high, j, 1), own.x, own.y);
      }
    }
  }

  /// Sums of masked places, where add() left them together; and back.
  __device__ static void take_apart(Sums &sums) { add_masked<-1>(sums); }
  __device__ static void put_together(Sums &sums) { add_masked<1>(sums); }

  /// A tile's sums are so many bits too far up.
  __device__ static constexpr int place(int j) {
    if (trellis) return trellis_unit_bits;
    return places > 1 ? j % places * Bits : 0;
  }

 private:
  static constexpr int trellis_unit_bits = 4;
  static_assert(1 << trellis_unit_bits == trellis_unit);

  /// Adds the trellis codes of 32 tokens: a row of the trellis goes on from lane to lane.
  template <class B>
  __device__ static void add_trellis(Sums &sums, int step, B &&b) {
    constexpr int plane_bits = Bits == 1 ? 1 : 2, words = trellis_value_words(plane_bits, tiles);
    Word w[words + 2];  // two of the lane before first
    load_behind<words>(step, w);
    if constexpr (Bits == 1) {
#pragma unroll
      for (int word = 0; word < words; ++word) {
        const auto add = [&]<int Phase>() {
          Word a[4];
          trellis_levels<1, false>(cuda::trellis_index<Phase>(w[word + 2], w[word + 1], w[word]), 0,
                                   a[0], a[2]);
          trellis_levels<1, false>(cuda::trellis_index<Phase + 1>(w[word + 2], w[word + 1], w[word]), 0,
                                   a[1], a[3]);
          const int j = 2 * word + Phase / 2;
          const uint2 own = b(j);
          multiply_add_unsigned(sums.c[j], a[0], a[1], a[2], a[3], own.x, own.y);
        };
        add.template operator()<0>();
        add.template operator()<2>();
      }
    } else {
      Word third[words / 2] = {};
      if constexpr (Bits == 3) load<words / 2>(step + 2 * value_plane_bytes(2, tiles), third);
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        const auto [first, second] = trellis_indices(w[j + 2], w[j + 1], w[j]);
        const Word bits = third[j / 2] << j % 2 * 2;
        Word a[4];
        trellis_levels<Bits, false>(first, bits, a[0], a[2]);
        trellis_levels<Bits, true>(second, bits << 1, a[1], a[3]);
        const uint2 own = b(j);
        multiply_add_unsigned(sums.c[j], a[0], a[1], a[2], a[3], own.x, own.y);
      }
    }
  }

  /// The lane's words of a plane, behind the last two of the lane before of equal t.
  template <int Words>
  __device__ static void load_behind(int plane, Word (&words)[Words + 2]) {
    const int lane = opaque(lane_index()), before = (lane - 4) & (warp_lanes - 1);
    if constexpr (Words % 4 == 0) {
      const uint2 two = shared_at<const uint2>(plane + ((Words / 4 - 1) * warp_lanes + before) * 16 + 8);
      words[0] = two.x, words[1] = two.y;
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        words[i] = shared_at<const Word>(plane + (before * Words + Words - 2 + i) * 4);
    }
    Word own[Words];
    load<Words>(plane, own);
#pragma unroll
    for (int i = 0; i < Words; ++i) words[i + 2] = own[i];
  }

  /// Whether a tile's words are taken as they are: those whose place is the last, where all tiles of a
  /// word have the same weights, as those of 32 channels have in plain values.
  __device__ static constexpr bool is_whole(int j) {
    constexpr bool alike = Values == ValueCoding::symmetric || places * 16 <= Layout::value_group;
    return alike && places > 1 && j % places == places - 1;
  }

  template <int Sign>
  __device__ static void add_masked(Sums &sums) {
#pragma unroll
    for (int j = 0; j < tiles; ++j) {
      if (!is_whole(j)) continue;
#pragma unroll
      for (int k = j / places * places; k < j; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.c[j][i] += Sign * sums.c[k][i];
      }
    }
  }

  template <int Words>
  __device__ static void load(int step, Word (&words)[Words]) {
    const int lane = opaque(lane_index());
    if constexpr (Words % 4 == 0) {
#pragma unroll
      for (int i = 0; i < Words; i += 4) {
        const uint4 four = shared_at<const uint4>(step + (i / 4 * warp_lanes + lane) * 16);
        words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
      }
    } else if constexpr (Words == 2) {
      const uint2 two = shared_at<const uint2>(step + lane * 8);
      words[0] = two.x, words[1] = two.y;
    } else {
#pragma unroll
      for (int i = 0; i < Words; ++i) words[i] = shared_at<const Word>(step + (lane * Words + i) * 4);
    }
  }

  template <int Words>
  __device__ static Word masked(const Word (&words)[Words], int j, int half) {
    const ValuePlace at = value_word_place(Bits, tiles, j, half);
    const Word word = words[at.word];
    if (is_whole(j)) return word;
    if constexpr (Bits == 8) return word;
    constexpr Word mask = ((1u << Bits) - 1) * 0x01010101u;
    // Halves that share a word come to the same place.
    const int own = j % places, by = (at.place - own) * Bits;
    return word >> by & mask << own * Bits;
  }

  template <int Words, int BitWords>
  __device__ static Word three(const Word (&words)[Words], const Word (&bits)[BitWords], int j,
                               int half) {
    const ValuePlace at = value_word_place(2, tiles, j, half),
                     high = value_word_place(1, tiles, j, half);
    const Word bit =
        high.place > 2 ? bits[high.word] >> (high.place - 2) : bits[high.word] << (2 - high.place);
    return (words[at.word] >> 2 * at.place & 0x03030303u) | (bit & 0x04040404u);
  }
};

}  // namespace squat::cuda
