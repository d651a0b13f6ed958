#pragma once

// Keys of a packed page as they came, of 16 tokens a warp, in registers:
//
//   key = R(base) (A^-1 (zero + scale code) + mean of its row)
//
// A^-1 is the transpose of the matrix that queries meet; the mean key is a product of rank
// 16 mode_tiles (MeanModes): HeadDim (HeadDim + 16 mode_tiles) multiply-adds a token. Codes come as A
// with tokens in rows and leave as C with tokens in rows, which is how tiles of exact keys lie and what
// scores take as A: nothing moves between lanes.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/unpack_tile.cuh"
#include "squat/cuda/kernels/unpack_trellis.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/kernels/warpgroup_products.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Matrices of one head as B: tiles of A, [rows / 16, HeadDim / 16], whose four 8 x 8 parts are
/// transposed. Heads of up to 128 channels have them in shared memory, steps of 16 rows for
/// warpgroup_products.cuh, unless pages are so short that a block is no warpgroup.
template <class Layout, bool ByWarpgroup>
struct UnpackMatrices {
  static constexpr int HeadDim = Layout::HeadDim;
  static constexpr bool shared = Layout::KeyBits < 16 && HeadDim <= 128 && Layout::Group > 32;
  static constexpr int steps = HeadDim / 16;
  static constexpr int step_bytes = operand_step_bytes(HeadDim);
  static constexpr int basis_bytes = steps * step_bytes;
  static constexpr int bytes = shared ? basis_bytes + most_mode_tiles(HeadDim) * step_bytes : 0;

  /// A tile of A as B: x, y of its first eight columns, z, w of the others.
  __device__ static uint4 turned(uint4 a) {
    return {transpose(a.x), transpose(a.y), transpose(a.z), transpose(a.w)};
  }
  /// Fills shared memory with a head's, by all warps of a block.
  __device__ static void fetch(std::uint8_t *to, const HeadTables &head, int mode_tiles) {
    if constexpr (shared) {
      fetch(to, head.basis, steps * steps);
      fetch(to + basis_bytes, head.projection, mode_tiles * steps);
      publish_operand();
    }
  }
  /// c += a times step `step` of the basis, in shared memory at `fetched`, or of the projection.
  __device__ static void multiply_basis(float (&c)[2 * steps][4], const uint4 &a,
                                        const std::uint8_t *fetched, const HeadTables &head, int step) {
    multiply(c, a, fetched, head.basis, step);
  }
  __device__ static void multiply_projection(float (&c)[2 * steps][4], const uint4 &a,
                                             const std::uint8_t *fetched, const HeadTables &head,
                                             int step) {
    multiply(c, a, fetched + basis_bytes, head.projection, step);
  }

 private:
  __device__ static void fetch(std::uint8_t *to, const uint4 *from, int tiles) {
    if (from == nullptr) return;
    const int warps = static_cast<int>(blockDim.x) / warp_lanes;
    auto *words = reinterpret_cast<Word *>(to) + lane_index();
#pragma unroll 4
    for (int i = warp_index(); i < tiles; i += warps) {
      const uint4 b = turned(from[i * warp_lanes + lane_index()]);
      Word *tile = words + i * 128;
      tile[0] = b.x, tile[32] = b.y, tile[64] = b.z, tile[96] = b.w;
    }
  }
  __device__ static void multiply(float (&c)[2 * steps][4], const uint4 &a, const std::uint8_t *fetched,
                                  const uint4 *from, int step) {
    if constexpr (shared) {
      const Word at = shared_address(fetched) + static_cast<Word>(step * step_bytes);
      if constexpr (ByWarpgroup) {
        begin_products();
        add_product(c, a, at);
        commit_products();
        wait_for_products();
      } else {
        add_own_product(c, a, at);
      }
    } else {
#pragma unroll
      for (int i = 0; i < steps; ++i) {
        const uint4 b = turned(from[(step * steps + i) * warp_lanes + lane_index()]);
        multiply_add(c[2 * i], a.x, a.y, a.z, a.w, b.x, b.y);
        multiply_add(c[2 * i + 1], a.x, a.y, a.z, a.w, b.z, b.w);
      }
    }
  }
};

/// A head's part of a page, and what it is coded with.
struct UnpackedPage {
  const std::uint8_t *data;
  const CodingTables *coding;
  long long base;
  std::int32_t row;
  // Where heads share bits: `data` are scales and zeros of keys alone.
  std::int32_t value_bits;
  const std::uint8_t *keys, *values;
};

/// The keys of 16 tokens, one warp's. T: of exact ones. ByWarpgroup: four warps multiply together.
template <class Layout, class T, bool ByWarpgroup>
struct UnpackedKeys {
  static constexpr int HeadDim = Layout::HeadDim, steps = HeadDim / 16;
  using Matrices = UnpackMatrices<Layout, ByWarpgroup>;
  /// C: rows are tokens, columns channels.
  using Sums = float[2 * steps][4];

  const HeadTables &head;
  const TileTables &tables;
  const std::uint8_t *matrices;  // in shared memory
  const float2 *angles;          // of R(base)
  int first;                     // token tile of the page
  // Where heads share bits.
  const std::uint8_t *shared_codes = nullptr;
  int plain_bits = 0;  // of pages that are not in the basis

  /// Whether turn() turns them: the channels of a pair are in one lane.
  __device__ static bool turns_in_place(const TileTables &tables) {
    return tables.interleaved || tables.pairs * 2 == HeadDim;
  }

  /// page: the head's part; base: not 0 only where they turn in place.
  __device__ void make(const std::uint8_t *page, long long base, int row, Sums &c) const {
#pragma unroll
    for (int n = 0; n < 2 * steps; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
    if constexpr (Layout::KeyBits == 16) {
      add_exact(page, c);
    } else {
      if (head.projection != nullptr) add_means(row, c);
      add_codes(page, c);
    }
    if (base != 0) turn(c);
  }

  /// The pairs of a step as A.
  __device__ static uint4 tile(const Sums &c, int step) {
    const auto &low = c[2 * step], &high = c[2 * step + 1];
    return {saturated_pair(low[0], low[1]), saturated_pair(low[2], low[3]),
            saturated_pair(high[0], high[1]), saturated_pair(high[2], high[3])};
  }

 private:
  /// c += the keys' rows of R(row) mean.
  __device__ void add_means(int row, Sums &c) const {
    const int row_tiles = tables.frame / 16, modes = tables.mode_tiles;
    const uint4 *rows = tables.mode_rows + (row / 16 + first) * warp_lanes + lane_index();
    uint4 a, next;
    if (modes > 0) a = __ldg(rows);
#pragma unroll 1
    for (int mode = 0; mode < modes; ++mode) {
      next = __ldg(rows + min(mode + 1, modes - 1) * row_tiles * warp_lanes);
      Matrices::multiply_projection(c, a, matrices, head, mode);
      a = next;
    }
#pragma unroll
    for (int n = 0; n < 2 * steps; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) c[n][j] *= head.projection_unit;
    }
  }

  /// The tokens' numbers in 16 channels or coordinates, as A: both units of eight, or one of 16. Returns
  /// whether they are levels of trellis codes.
  template <int Bits, bool Trellis>
  __device__ bool read_unit(const std::uint8_t *unit, int part, Word (&codes)[4]) const {
    constexpr bool levels = Trellis && Bits <= most_trellis_bits;
    Word *to = codes + (Layout::unit == 8 ? 2 * part : 0);
    if constexpr (levels) {
      read_trellis_keys<Bits, Layout::unit, Layout::Group>(unit, first, to);
    } else {
      read_key_codes<Bits, Layout::unit, Layout::Group>(unit, first, to);
    }
    return levels;
  }
  /// The numbers of a step; low, high: whether a0 and a1, a2 and a3 are levels.
  __device__ static uint4 scaled(const std::uint8_t *page, int step, const Word (&codes)[4], bool low,
                                 bool high, bool saturates) {
    const int at = key_element(step * 16) + lane_index() % 4 * key_element(2);
    const auto pair = [&](int offset) {
      const auto numbers =
          *reinterpret_cast<const uint2 *>(reinterpret_cast<const std::uint16_t *>(page + offset) + at);
      return column_pairs(numbers.x, numbers.y);
    };
    const uint2 scale = pair(Layout::key_scales), zero = pair(Layout::key_zeros);
    const Word first = scale.x & 0x7fff7fffu, second = scale.y & 0x7fff7fffu;
    const auto number = [&](int j) {
      const __half2 x = code_numbers(codes[j]);
      const bool level = Layout::trellis && (j < 2 ? low : high);
      return level ? __hmul2(x, __float2half2_rn(1.0f / trellis_unit)) : x;
    };
    uint4 a = {unpacked<false>(number(0), first, zero.x), unpacked<false>(number(1), first, zero.x),
               unpacked<false>(number(2), second, zero.y), unpacked<false>(number(3), second, zero.y)};
    if (saturates) {
      a = {saturated(as_halves(a.x)), saturated(as_halves(a.y)), saturated(as_halves(a.z)),
           saturated(as_halves(a.w))};
    }
    return a;
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
    if constexpr (Layout::shares_bits) return shared_codes;
    return page + Layout::key_codes;
  }

  __device__ void add_codes(const std::uint8_t *page, Sums &c) const {
    const bool in_basis =
        (*reinterpret_cast<const std::uint16_t *>(page + Layout::key_scales) & 0x8000u) != 0;
    const bool saturates = !fits(page);
    if (!in_basis) {
      if constexpr (Layout::shares_bits) {
        const auto add = [&]<int Bits>() {
          if (plain_bits == Bits) add_channels<Bits>(page, saturates, c);
        };
        add.template operator()<1>();
        add.template operator()<2>();
        add.template operator()<3>();
        add.template operator()<4>();
        add.template operator()<8>();
      } else {
        add_channels<Layout::KeyBits>(page, saturates, c);
      }
    } else if (Layout::key_codes_of(page, most_trellis_bits) == Codes::trellis) {
      add_basis<Layout::trellis>(page, saturates, c);
    } else {
      add_basis<false>(page, saturates, c);
    }
  }
  template <bool Trellis>
  __device__ void add_basis(const std::uint8_t *page, bool saturates, Sums &c) const {
    if constexpr (Layout::unit == 16) {
      const std::uint8_t *unit = key_codes(page);
      int step = 0;
      const auto add = [&]<int Bits>(int count) {
        add_width<Bits, Trellis>(page, saturates, unit, step, count, c);
      };
      add.template operator()<8>(head.eight_bit_units);
      add.template operator()<4>(head.four_bit_units);
      if constexpr (Layout::shares_bits) add.template operator()<3>(head.three_bit_units);
      add.template operator()<2>(head.two_bit_units);
      if constexpr (Layout::shares_bits) add.template operator()<1>(head.one_bit_units);
      add.template operator()<0>(steps - step);
    } else {
      add_coordinates<Trellis>(page, saturates, c);
    }
  }

  /// The next `count` steps, of one width (0: no codes), which begin at `unit`.
  template <int Bits, bool Trellis>
  __device__ void add_width(const std::uint8_t *page, bool saturates, const std::uint8_t *&unit,
                            int &step, int count, Sums &c) const {
    const int end = step + count;
#pragma unroll 1
    for (; step < end; ++step) {
      Word codes[4] = {};
      bool levels = false;
      if constexpr (Bits > 0) {
        levels = read_unit<Bits, Trellis>(unit, 0, codes);
        unit += Layout::key_unit_bytes(Bits);
      }
      Matrices::multiply_basis(c, scaled(page, step, codes, levels, levels, saturates), matrices, head,
                               step);
    }
  }

  /// Where units of two widths may share a step.
  template <bool Trellis>
  __device__ void add_coordinates(const std::uint8_t *page, bool saturates, Sums &c) const {
    const int eight = head.eight_bit_units, four = eight + head.four_bit_units,
              three = four + head.three_bit_units, two = three + head.two_bit_units,
              one = two + head.one_bit_units;
    const std::uint8_t *unit = key_codes(page);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      Word codes[4] = {};
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
      Matrices::multiply_basis(c, scaled(page, step, codes, levels[0], levels[1], saturates), matrices,
                               head, step);
    }
  }

  template <int Bits>
  __device__ void add_channels(const std::uint8_t *page, bool saturates, Sums &c) const {
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      Word codes[4] = {};
#pragma unroll
      for (int part = 0; part < 16 / Layout::unit; ++part) {
        const int index = step * (16 / Layout::unit) + part;
        read_unit<Bits, false>(key_codes(page) + index * Layout::key_unit_bytes(Bits), part, codes);
      }
      add_tile(scaled(page, step, codes, false, false, saturates), c[2 * step], c[2 * step + 1]);
    }
  }

  __device__ void add_exact(const std::uint8_t *page, Sums &c) const {
    const auto *from =
        reinterpret_cast<const ExactTile<T> *>(page) + first * steps * warp_lanes + lane_index();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      add_tile(from[step * warp_lanes].halves(), c[2 * step], c[2 * step + 1]);
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
        meet(angle, c[n][0], c[n][1]);
        meet(angle, c[n][2], c[n][3]);
      }
      return;
    }
#pragma unroll
    for (int n = 0; n < steps; ++n) {
      const float4 two = reinterpret_cast<const float4 *>(angles)[n * 4 + t];
      const float2 angle[2] = {{two.x, two.y}, {two.z, two.w}};
#pragma unroll
      for (int j = 0; j < 4; ++j) meet(angle[j % 2], c[n][j], c[n + steps][j]);
    }
  }
};

}  // namespace squat::cuda
