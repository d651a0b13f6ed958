#pragma once

// Unpacks a chunk's pages into exact ones, float16 in the layout of 16-bit pages, for attend_rows.cuh.
//
//   key   = R(base) (A^-1 (zero + scale code) + mean of its row)      values = scale (code - middle) +
//   mean
//
// so that queries meet all pages as they come, whatever these were coded in: many row tiles share what
// is done here once. Values stay in their Hadamard rotation, which the merge takes back. A^-1 is the
// transpose of the matrix that queries meet; the mean key is a product of rank 16 mode_tiles
// (MeanModes).
//
// Reads a page once and writes 4 HeadDim bytes a token and head, which the second-level cache keeps for
// the attention where the chunk is small. HeadDim (HeadDim + 16 mode_tiles) multiply-adds a token: a
// quarter of what 32 query rows take.
//
// A warp takes 16 tokens of one head: then 16 warps fit a processor, and these are what its latencies
// need, more than they need matrices to be read half as often from shared memory. Its codes come as A
// with tokens in rows and leave as C with tokens in rows, which is how tiles of exact keys lie: nothing
// moves between lanes. Rows of layouts with trellis codes are tokens in another order: they are written
// word by word.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/unpack_tile.cuh"
#include "squat/cuda/kernels/unpack_trellis.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Matrices of one head as B: tiles of A, [rows / 16, HeadDim / 16], whose four 8 x 8 parts are
/// transposed. Heads of up to 128 channels have them in shared memory, unless pages are so short that a
/// block is one warp.
template <class Layout>
struct UnpackMatrices {
  static constexpr int HeadDim = Layout::HeadDim;
  static constexpr bool shared = Layout::KeyBits < 16 && HeadDim <= 128 && Layout::Group > 32;
  static constexpr int steps = HeadDim / 16;
  static constexpr int basis = steps * steps * warp_lanes;  // uint4
  static constexpr int projection = most_mode_tiles(HeadDim) * steps * warp_lanes;
  static constexpr int bytes = shared ? (basis + projection) * 16 : 0;

  /// A tile of A as B: x, y of its first eight columns, z, w of the others.
  __device__ static uint4 turned(uint4 a) {
    return {transpose(a.x), transpose(a.y), transpose(a.z), transpose(a.w)};
  }
  /// Fills shared memory, by all warps of a block.
  __device__ static void fetch(uint4 *to, const uint4 *from, int tiles) {
    if (!shared || from == nullptr) return;
    const int warps = static_cast<int>(blockDim.x) / warp_lanes;
#pragma unroll 8
    for (int i = warp_index(); i < tiles; i += warps) {
      to[i * warp_lanes + lane_index()] = turned(from[i * warp_lanes + lane_index()]);
    }
  }
  __device__ static uint4 tile(const uint4 *fetched, const uint4 *from, int i) {
    if constexpr (shared) return fetched[i * warp_lanes + lane_index()];
    return turned(from[i * warp_lanes + lane_index()]);
  }
};

/// What is unpacked: heads of ExactPageLayout, or their keys alone, one behind the other.
enum class UnpackedParts { all, keys };

/// Bytes of a head in the workspace of unpacked pages.
template <int HeadDim, int Group>
__host__ __device__ constexpr int unpacked_head_bytes(UnpackedParts parts) {
  using Exact = ExactPageLayout<HeadDim, Group>;
  return parts == UnpackedParts::keys ? Exact::value_codes : Exact::head_bytes(ValueCoding::symmetric);
}

/// A page of the chunk: a head's part of it, and what it is coded with.
struct UnpackedPage {
  const std::uint8_t *data;
  const CodingTables *coding;
  long long base;
  std::int32_t row;
  // Where heads share bits: `data` are scales and zeros of keys alone.
  std::int32_t value_bits;
  const std::uint8_t *keys, *values;
};

template <class Layout, ValueCoding Values, class T>
struct UnpackWarp {
  static constexpr int HeadDim = Layout::HeadDim, steps = HeadDim / 16;
  static constexpr int tiles = 1;  // of 16 tokens
  static constexpr int warps = Layout::token_tiles / tiles;
  static constexpr int threads = warps * warp_lanes;
  /// Blocks of a processor, by registers.
  static constexpr int most_threads = HeadDim <= 128 ? 512 : 256;
  static constexpr int blocks = threads < most_threads ? most_threads / threads : 1;
  using Matrices = UnpackMatrices<Layout>;
  using Exact = ExactPageLayout<HeadDim, Layout::Group>;

  const UnpackedPage &found;
  const HeadTables &head;
  const TileTables &tables;
  const uint4 *basis, *projection;  // in shared memory
  const float2 *angles;             // of R(base)
  int first;                        // token tile of the page

  /// page, to: the head's part.
  __device__ void keys(const std::uint8_t *page, long long base, int row, std::uint8_t *to) const {
    float c[tiles][2 * steps][4];
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
#pragma unroll
      for (int n = 0; n < 2 * steps; ++n) c[i][n][0] = c[i][n][1] = c[i][n][2] = c[i][n][3] = 0;
    }
    if constexpr (Layout::KeyBits == 16) {
      add_exact(page, c);
    } else {
      if (head.projection != nullptr) add_means(row, c);
      if (fits(page)) {
        add_codes<false>(page, c);
      } else {
        add_codes<true>(page, c);
      }
    }
    const bool in_place = tables.interleaved || tables.pairs * 2 == HeadDim;
    if (base != 0 && in_place) turn(c);
    if constexpr (Layout::trellis) {
      write_rows(c, to);
    } else {
      write_tiles(c, to);
    }
    if (base != 0 && !in_place) turn_written(to);
  }

  __device__ void values(const std::uint8_t *page, std::uint8_t *to) const {
    const float *mean = Layout::values_about_mean(page) ? head.value_mean : nullptr;
    if constexpr (Layout::shares_bits) {
      with_bits(found.value_bits, [&]<int Bits>() {
        write_values<Bits>(found.values, found.values + Layout::value_bytes(Bits), mean, to);
      });
    } else {
      write_values<Layout::ValueBits>(page + Layout::value_codes, page + Layout::value_scales, mean, to);
    }
  }

 private:
  using Sums = float[tiles][2 * steps][4];

  __device__ void write_tiles(const Sums &c, std::uint8_t *to) const {
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      auto *out = reinterpret_cast<uint4 *>(to) + (first + i) * steps * warp_lanes + lane_index();
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const auto &low = c[i][2 * step], &high = c[i][2 * step + 1];
        out[step * warp_lanes] = {saturated_pair(low[0], low[1]), saturated_pair(low[2], low[3]),
                                  saturated_pair(high[0], high[1]), saturated_pair(high[2], high[3])};
      }
    }
  }

  /// The same where rows are tokens in another order.
  __device__ void write_rows(const Sums &c, std::uint8_t *to) const {
    auto *words = reinterpret_cast<Word *>(to);
    const int lane = lane_index(), column = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = Layout::row_token(first * 16 + lane / 4 + 8 * i);
#pragma unroll
      for (int n = 0; n < 2 * steps; ++n) {
        const int tile = token / 16 * steps + n / 2;
        const int word = tile_element(token % 16, n % 2 * 8 + column) / 2;
        words[tile * 128 + word] = saturated_pair(c[0][n][2 * i], c[0][n][2 * i + 1]);
      }
    }
  }

  /// Writes the values of layouts with trellis codes; two warps share 32 tokens.
  template <int Bits>
  __device__ void write_value_rows(const std::uint8_t *codes_of_page, const std::uint8_t *scales,
                                   const float *mean, std::uint8_t *to) const {
    const int slice = first / 2;
    const std::uint8_t *codes = codes_of_page + slice * Layout::value_slice_bytes(Bits);
    const auto *scale = reinterpret_cast<const __half *>(scales) + slice * 32;
    auto *out = reinterpret_cast<__half *>(to + Exact::value_codes);
    const auto place = [&](int channel, int token) {
      const int tile = (slice * 2 + token / 16) * steps + channel / 16;
      return tile * 256 + tile_element(channel % 16, token % 16);
    };
    const auto mean_at = [&](int channel) {
      return __half2half2(saturated_half(mean != nullptr ? __ldg(mean + channel) : 0.0f));
    };
    if constexpr (Layout::value_codes_of(Bits) == Codes::trellis) {
      constexpr float level = 1.0f / trellis_unit;
      read_trellis_values<Bits, HeadDim>(codes, first % 2, [&](int channel, int token, Word pair) {
        const __half2 number =
            __hfma2(code_numbers(pair), __float2half2_rn(level), __float2half2_rn(-trellis_middle));
        const __half2 of_tokens = *reinterpret_cast<const __half2 *>(scale + token);
        *reinterpret_cast<Word *>(out + place(channel, token)) =
            saturated(__hfma2(number, of_tokens, mean_at(channel)));
      });
    } else {
#pragma unroll 1
      for (int i = lane_index(); i < HeadDim * 16; i += warp_lanes) {
        const int channel = i / 16, token = first % 2 * 16 + i % 16;
        const int code = read_code(
            codes_of_page, Layout::value_places(Codes::scalar, Bits, channel, slice * 32 + token));
        constexpr float middle = static_cast<float>((1 << Bits) - 1) / 2;
        const Word x = saturated(__hfma2(__float2half2_rn(static_cast<float>(code) - middle),
                                         __half2half2(scale[token]), mean_at(channel)));
        out[place(channel, token)] = __low2half(as_halves(x));
      }
    }
  }

  /// Calls run<Bits>() for a width of heads that share bits.
  template <class Run>
  __device__ static void with_bits(int bits, Run &&run) {
    if (bits == 1) run.template operator()<1>();
    if (bits == 2) run.template operator()<2>();
    if (bits == 3) run.template operator()<3>();
    if (bits == 4) run.template operator()<4>();
  }

  template <int Bits>
  __device__ void write_values(const std::uint8_t *codes_of_page, const std::uint8_t *scales,
                               const float *mean, std::uint8_t *to) const {
    if constexpr (Layout::trellis) return write_value_rows<Bits>(codes_of_page, scales, mean, to);
    constexpr int zeros = Layout::value_zeros(Values) - Layout::value_scales;
    const int t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      const int tile = first + i;
      const std::uint8_t *unit = codes_of_page + tile * value_step_bytes(Bits, Layout::channel_tiles);
      auto *out =
          reinterpret_cast<uint4 *>(to + Exact::value_codes) + tile * steps * warp_lanes + lane_index();
      const int place = value_element(16 * tile) + t * value_element(2);  // of tokens 2t and 2t + 8
      const auto pair = [&](int offset, int group) {
        const auto *numbers =
            reinterpret_cast<const std::uint16_t *>(scales + offset) + group * Layout::Group + place;
        return column_pairs(*reinterpret_cast<const Word *>(numbers),
                            *reinterpret_cast<const Word *>(numbers + value_element(1)));
      };
#pragma unroll 4
      for (int step = 0; step < steps; ++step) {
        if constexpr (Bits == 16) {
          const auto *from = reinterpret_cast<const ExactTile<T> *>(unit) + lane_index();
          out[step * warp_lanes] = from[step * warp_lanes].halves();
        } else {
          Word codes[4];
          read_value_codes<Bits, Layout::channel_tiles>(unit, step, codes);
          if constexpr (Values == ValueCoding::plain) {
            const uint2 scale = pair(0, step / 2), zero = pair(zeros, step / 2);
            out[step * warp_lanes] = {
                unpacked(codes[0], scale.x, zero.x), unpacked(codes[1], scale.x, zero.x),
                unpacked(codes[2], scale.y, zero.y), unpacked(codes[3], scale.y, zero.y)};
          } else {
            constexpr float middle = static_cast<float>((1 << Bits) - 1) / 2;
            const uint2 scale = pair(0, 0);
            const __half2 upper = mean_of(mean, step * 16), lower = mean_of(mean, step * 16 + 8);
            out[step * warp_lanes] = {unpacked_about(codes[0], middle, scale.x, upper),
                                      unpacked_about(codes[1], middle, scale.x, lower),
                                      unpacked_about(codes[2], middle, scale.y, upper),
                                      unpacked_about(codes[3], middle, scale.y, lower)};
          }
        }
      }
    }
  }

  /// The mean value of the lane's channel among eight.
  __device__ static __half2 mean_of(const float *mean, int first) {
    return __half2half2(saturated_half(mean != nullptr ? __ldg(mean + first + lane_index() / 4) : 0.0f));
  }

  /// c += the keys' rows of R(row) mean.
  __device__ void add_means(int row, Sums &c) const {
    const int row_tiles = tables.frame / 16;
    const uint4 *rows = tables.mode_rows + (row / 16 + first) * warp_lanes + lane_index();
    const int modes = tables.mode_tiles;
    const auto fetch = [&](int mode, uint4(&a)[tiles]) {
#pragma unroll
      for (int i = 0; i < tiles; ++i) a[i] = __ldg(rows + (mode * row_tiles + i) * warp_lanes);
    };
    uint4 a[tiles], next[tiles];
    if (modes > 0) fetch(0, a);
#pragma unroll 1
    for (int mode = 0; mode < modes; ++mode) {
      fetch(min(mode + 1, modes - 1), next);
      multiply_row(a, projection, head.projection, mode, c);
#pragma unroll
      for (int i = 0; i < tiles; ++i) a[i] = next[i];
    }
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
#pragma unroll
      for (int n = 0; n < 2 * steps; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][n][j] *= head.projection_unit;
      }
    }
  }

  /// c += a times row tile `row` of a matrix.
  __device__ static void multiply_row(const uint4 (&a)[tiles], const uint4 *fetched, const uint4 *from,
                                      int row, Sums &c) {
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const uint4 b = Matrices::tile(fetched, from, row * steps + step);
#pragma unroll
      for (int i = 0; i < tiles; ++i) {
        multiply_add(c[i][2 * step], a[i].x, a[i].y, a[i].z, a[i].w, b.x, b.y);
        multiply_add(c[i][2 * step + 1], a[i].x, a[i].y, a[i].z, a[i].w, b.z, b.w);
      }
    }
  }

  /// The tokens' numbers in 16 channels or coordinates, as A: both units of eight, or one of 16. Returns
  /// whether they are levels of trellis codes.
  template <int Bits, bool Trellis>
  __device__ bool read_unit(const std::uint8_t *unit, int part, Word (&codes)[tiles][4]) const {
    constexpr bool levels = Trellis && Bits <= most_trellis_bits;
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      Word *to = codes[i] + (Layout::unit == 8 ? 2 * part : 0);
      if constexpr (levels) {
        read_trellis_keys<Bits, Layout::unit, Layout::Group>(unit, first + i, to);
      } else {
        read_key_codes<Bits, Layout::unit, Layout::Group>(unit, first + i, to);
      }
    }
    return levels;
  }
  /// The numbers of a step; low, high: whether a0 and a1, a2 and a3 are levels.
  template <bool Saturates>
  __device__ static void scale_codes(const std::uint8_t *page, int step, const Word (&codes)[tiles][4],
                                     bool low, bool high, uint4 (&a)[tiles]) {
    const int at = key_element(step * 16) + lane_index() % 4 * key_element(2);
    const auto pair = [&](int offset) {
      const auto numbers =
          *reinterpret_cast<const uint2 *>(reinterpret_cast<const std::uint16_t *>(page + offset) + at);
      return column_pairs(numbers.x, numbers.y);
    };
    const uint2 scale = pair(Layout::key_scales), zero = pair(Layout::key_zeros);
    const Word first = scale.x & 0x7fff7fffu, second = scale.y & 0x7fff7fffu;
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      const auto number = [&](int j) {
        const __half2 x = code_numbers(codes[i][j]);
        const bool level = Layout::trellis && (j < 2 ? low : high);
        return level ? __hmul2(x, __float2half2_rn(1.0f / trellis_unit)) : x;
      };
      a[i] = {unpacked<Saturates>(number(0), first, zero.x),
              unpacked<Saturates>(number(1), first, zero.x),
              unpacked<Saturates>(number(2), second, zero.y),
              unpacked<Saturates>(number(3), second, zero.y)};
    }
  }

  /// Whether none of the page's keys can leave float16's range before they leave the basis; of a warp.
  __device__ static bool fits(const std::uint8_t *page) {
    const auto magnitudes = [&](int offset, int channel) {
      const auto *numbers = reinterpret_cast<const Word *>(page + offset) + channel / 2;
      return as_halves(*numbers & 0x7fff7fffu);
    };
    constexpr float most_code = 255;
    __half2 largest = __float2half2_rn(0);
    for (int i = 2 * lane_index(); i < HeadDim; i += 2 * warp_lanes) {
      largest = __hmax2(largest, __hfma2(magnitudes(Layout::key_scales, i), __float2half2_rn(most_code),
                                         magnitudes(Layout::key_zeros, i)));
    }
    constexpr Word most = 0x7bff;  // 65504
    return __all_sync(0xffffffffu,
                      (as_word(largest) & 0xffffu) <= most && as_word(largest) >> 16 <= most);
  }

  /// The codes of a page's keys.
  __device__ const std::uint8_t *key_codes(const std::uint8_t *page) const {
    if constexpr (Layout::shares_bits) return found.keys;
    return page + Layout::key_codes;
  }

  template <bool Saturates>
  __device__ void add_codes(const std::uint8_t *page, Sums &c) const {
    const bool in_basis =
        (*reinterpret_cast<const std::uint16_t *>(page + Layout::key_scales) & 0x8000u) != 0;
    if (!in_basis) {
      if constexpr (Layout::shares_bits) {
        const int bits = found.coding->plain_key_bits;
        with_bits(bits, [&]<int Bits>() { add_channels<Bits, Saturates>(page, c); });
        if (bits == 8) add_channels<8, Saturates>(page, c);
      } else {
        add_channels<Layout::KeyBits, Saturates>(page, c);
      }
    } else if (Layout::key_codes_of(page, most_trellis_bits) == Codes::trellis) {
      add_basis<Layout::trellis, Saturates>(page, c);
    } else {
      add_basis<false, Saturates>(page, c);
    }
  }
  template <bool Trellis, bool Saturates>
  __device__ void add_basis(const std::uint8_t *page, Sums &c) const {
    if constexpr (Layout::unit == 16) {
      const std::uint8_t *unit = key_codes(page);
      int step = 0;
      const auto add = [&]<int Bits>(int count) {
        add_width<Bits, Trellis, Saturates>(page, unit, step, count, c);
      };
      add.template operator()<8>(head.eight_bit_units);
      add.template operator()<4>(head.four_bit_units);
      if constexpr (Layout::shares_bits) add.template operator()<3>(head.three_bit_units);
      add.template operator()<2>(head.two_bit_units);
      if constexpr (Layout::shares_bits) add.template operator()<1>(head.one_bit_units);
      add.template operator()<0>(steps - step);
    } else {
      add_coordinates<Trellis, Saturates>(page, c);
    }
  }

  /// The next `count` steps, of one width (0: no codes), which begin at `unit`.
  template <int Bits, bool Trellis, bool Saturates>
  __device__ void add_width(const std::uint8_t *page, const std::uint8_t *&unit, int &step, int count,
                            Sums &c) const {
    const int end = step + count;
#pragma unroll 1
    for (; step < end; ++step) {
      Word codes[tiles][4] = {};
      bool levels = false;
      if constexpr (Bits > 0) {
        levels = read_unit<Bits, Trellis>(unit, 0, codes);
        unit += Layout::key_unit_bytes(Bits);
      }
      uint4 a[tiles];
      scale_codes<Saturates>(page, step, codes, levels, levels, a);
      multiply_row(a, basis, head.basis, step, c);
    }
  }

  /// Where units of two widths may share a step.
  template <bool Trellis, bool Saturates>
  __device__ void add_coordinates(const std::uint8_t *page, Sums &c) const {
    const int eight = head.eight_bit_units, four = eight + head.four_bit_units,
              three = four + head.three_bit_units, two = three + head.two_bit_units,
              one = two + head.one_bit_units;
    const std::uint8_t *unit = key_codes(page);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      Word codes[tiles][4] = {};
      bool levels[2] = {false, false};
#pragma unroll
      for (int part = 0; part < 16 / Layout::unit; ++part) {
        const int index = step * (16 / Layout::unit) + part;
        const auto read = [&]<int Bits>() {
          levels[part] = read_unit<Bits, Trellis>(unit, part, codes);
          unit += Layout::key_unit_bytes(Bits);
        };
        if (index < eight) {
          read.template operator()<8>();
        } else if (index < four) {
          read.template operator()<4>();
        } else if (index < three) {
          if constexpr (Layout::shares_bits) read.template operator()<3>();
        } else if (index < two) {
          read.template operator()<2>();
        } else if (index < one) {
          if constexpr (Layout::shares_bits) read.template operator()<1>();
        }
      }
      uint4 a[tiles];
      scale_codes<Saturates>(page, step, codes, levels[0], levels[1], a);
      multiply_row(a, basis, head.basis, step, c);
    }
  }

  template <int Bits, bool Saturates>
  __device__ void add_channels(const std::uint8_t *page, Sums &c) const {
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      Word codes[tiles][4] = {};
#pragma unroll
      for (int part = 0; part < 16 / Layout::unit; ++part) {
        const int index = step * (16 / Layout::unit) + part;
        read_unit<Bits, false>(key_codes(page) + index * Layout::key_unit_bytes(Bits), part, codes);
      }
      uint4 a[tiles];
      scale_codes<Saturates>(page, step, codes, false, false, a);
#pragma unroll
      for (int i = 0; i < tiles; ++i) add_tile(a[i], c[i][2 * step], c[i][2 * step + 1]);
    }
  }

  __device__ void add_exact(const std::uint8_t *page, Sums &c) const {
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      const auto *from =
          reinterpret_cast<const ExactTile<T> *>(page) + (first + i) * steps * warp_lanes + lane_index();
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        add_tile(from[step * warp_lanes].halves(), c[i][2 * step], c[i][2 * step + 1]);
      }
    }
  }

  __device__ static void add_tile(uint4 a, float (&low)[4], float (&high)[4]) {
    const auto add = [](Word pair, float &first, float &second) {
      const float2 x = __half22float2(as_halves(pair));
      first += x.x, second += x.y;
    };
    add(a.x, low[0], low[1]), add(a.y, low[2], low[3]);
    add(a.z, high[0], high[1]), add(a.w, high[2], high[3]);
  }

  /// Turns the keys by the base, where the channels of a pair are in one lane.
  __device__ void turn(Sums &c) const {
    const int t = lane_index() % 4;
    const auto meet = [](float2 angle, float &first, float &second) {
      const float2 turned = turn_pair(angle, {first, second});
      first = turned.x, second = turned.y;
    };
    if (tables.interleaved) {
#pragma unroll
      for (int n = 0; n < 2 * steps; ++n) {
        const int pair = n * 4 + t;
        if (pair >= tables.pairs) break;
        const float2 angle = angles[pair];
#pragma unroll
        for (int i = 0; i < tiles; ++i) {
          meet(angle, c[i][n][0], c[i][n][1]);
          meet(angle, c[i][n][2], c[i][n][3]);
        }
      }
      return;
    }
#pragma unroll
    for (int n = 0; n < steps; ++n) {
      const float4 two = reinterpret_cast<const float4 *>(angles)[n * 4 + t];
      const float2 angle[2] = {{two.x, two.y}, {two.z, two.w}};
#pragma unroll
      for (int i = 0; i < tiles; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) meet(angle[j % 2], c[i][n][j], c[i][n + steps][j]);
      }
    }
  }

  /// The same of any pairs, of keys that are written already.
  __device__ void turn_written(std::uint8_t *to) const {
    using Block = BlockLayout<HeadDim>;
    auto *keys = reinterpret_cast<__half *>(to);
    __syncwarp();
#pragma unroll 1
    for (int i = lane_index(); i < tiles * 16 * tables.pairs; i += warp_lanes) {
      const int token = Layout::row_token(first * 16 + i / tables.pairs), pair = i % tables.pairs;
      __half *tile = keys + token / 16 * Block::part_elements;
      const int2 channels = pair_channels(tables, pair);
      __half &first = tile[Block::key(token % 16, channels.x)];
      __half &second = tile[Block::key(token % 16, channels.y)];
      const float2 turned = turn_pair(angles[pair], {__half2float(first), __half2float(second)});
      first = saturated_half(turned.x);
      second = saturated_half(turned.y);
    }
  }
};

/// Shared memory of a block's pages: the one that is unpacked and the next, unless they are so large
/// that they are read where they lie, as those are whose heads share bits.
template <class Layout, ValueCoding Values>
__host__ __device__ constexpr int unpack_stage_bytes(UnpackedParts parts) {
  const int bytes = parts == UnpackedParts::keys ? Layout::value_codes : Layout::head_bytes(Values);
  return bytes <= 36 * 1024 && !Layout::shares_bits ? bytes : 0;
}

/// Some blocks a KV head, so that each fetches one head's matrices; the chunk's pages are dealt out one
/// after another.
template <class Layout, ValueCoding Values, UnpackedParts Parts, class T, class S>
__global__ void __launch_bounds__(UnpackWarp<Layout, Values, T>::threads,
                                  UnpackWarp<Layout, Values, T>::blocks)
    unpack_pages(const RowCall<S> rows) {
  using Warp = UnpackWarp<Layout, Values, T>;
  using Matrices = typename Warp::Matrices;
  constexpr int stage_bytes = unpack_stage_bytes<Layout, Values>(Parts),
                head_bytes = Layout::head_bytes(Values),
                to_bytes = unpacked_head_bytes<Layout::HeadDim, Layout::Group>(Parts);
  extern __shared__ __align__(128) std::uint8_t unpack_memory[];
  __shared__ float4 angles[2][Layout::HeadDim / 4];  // of the page at hand and the next
  __shared__ UnpackedPage found[4];                  // these two and one more
  const AttendCall<S> &call = rows.call;
  auto *basis = reinterpret_cast<uint4 *>(unpack_memory), *projection = basis + Matrices::basis;
  std::uint8_t *stages = unpack_memory + Matrices::bytes;
  auto *starts = reinterpret_cast<RowStart *>(stages + 2 * stage_bytes);
  allow_next_launch();
  find_page_starts(call, starts);
  const int heads = call.kv_heads, head = static_cast<int>(blockIdx.x) % heads;
  const int step = static_cast<int>(gridDim.x) / heads;
  const int end = min(rows.first_page + rows.pages, starts[call.entries].page);
  // By one thread, as it takes reads one behind the other.
  const auto find = [&](int index, UnpackedPage &to) {
    index = min(index, end - 1);
    const int e = find_entry(starts, call.entries, index, &RowStart::page);
    const LayerState &state = *call.batch[e].state;
    const PageEntry &entry = state.pages[index - starts[e].page];
    to.coding = &call.codings[state.coding];
    to.base = entry.base;
    to.row = entry.row;
    if constexpr (Layout::shares_bits) {
      to.data = entry.data + Layout::parameters(head, heads);
      const auto scale = *reinterpret_cast<const std::uint16_t *>(to.data + Layout::key_scales);
      const SharedPlace &place = to.coding->heads[head].places[scale >> 15];
      to.keys = entry.data + place.codes;
      to.values = to.keys + place.key_bytes;
      to.value_bits = place.value_bits;
    } else {
      to.data = entry.data + static_cast<std::size_t>(head) * head_bytes;
    }
  };
  const auto copy = [&](const UnpackedPage &page, int stage) {
    if constexpr (stage_bytes > 0) {
#pragma unroll 4
      for (int i = static_cast<int>(threadIdx.x) * 16; i < stage_bytes;
           i += static_cast<int>(blockDim.x) * 16)
        copy_async(stages + stage * stage_bytes + i, page.data + i);
    }
    commit_copies();
  };
  const auto fetch = [&](const HeadTables &tables, int mode_tiles) {
    Matrices::fetch(basis, tables.basis, Warp::steps * Warp::steps);
    Matrices::fetch(projection, tables.projection, mode_tiles * Warp::steps);
  };
  const auto turn = [&](const UnpackedPage &page, int stage) {
    if (page.base == 0) return;
    make_turn(page.coding->tiles, page.base, reinterpret_cast<float2 *>(angles[stage]));
  };
  int index = rows.first_page + static_cast<int>(blockIdx.x) / heads, stage = 0, slot = 0;
  if (index >= end) {
    wait_for_launches();
    return;
  }
  if (threadIdx.x < 2) {
    find(index + static_cast<int>(threadIdx.x) * step, found[threadIdx.x]);
  }
  __syncthreads();
  copy(found[0], stage);
  const HeadTables *fetched = &found[0].coding->heads[head];
  fetch(*fetched, found[0].coding->tiles.mode_tiles);
  turn(found[0], stage);
  wait_for_launches();  // until nobody reads what was unpacked before
#pragma unroll 1
  for (; index < end; index += step, stage ^= 1, slot = (slot + 1) % 4) {
    wait_for_copies<0>();
    __syncthreads();  // the page is there, what it is turned by too, and the other stage free
    const UnpackedPage &page = found[slot], &next = found[(slot + 1) % 4];
    if (index + step < end) copy(next, stage ^ 1);
    if (threadIdx.x == blockDim.x - 1) find(index + 2 * step, found[(slot + 2) % 4]);
    const HeadTables &tables = page.coding->heads[head];
    const TileTables &tiles = page.coding->tiles;
    if (&tables != fetched) {
      fetch(tables, tiles.mode_tiles);
      fetched = &tables;
      __syncthreads();
    }
    const std::uint8_t *from = stage_bytes > 0 ? stages + stage * stage_bytes : page.data;
    std::uint8_t *to = rows.unpacked + (static_cast<std::size_t>(index - rows.first_page) * heads +
                                        static_cast<std::size_t>(head)) *
                                           to_bytes;
    const Warp warp{page,
                    tables,
                    tiles,
                    basis,
                    projection,
                    reinterpret_cast<float2 *>(angles[stage]),
                    warp_index() * Warp::tiles};
    warp.keys(from, page.base, page.row, to);
    if constexpr (Parts == UnpackedParts::all) warp.values(from, to);
    if (index + step < end) turn(next, stage ^ 1);
  }
}

}  // namespace squat::cuda
