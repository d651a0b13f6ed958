#pragma once

// Unpacks a chunk's pages into exact ones, float16 in the layout of 16-bit pages, for attend_rows.cuh.
//
//   values = scale (code - middle) + mean
//
// and keys as unpack_keys.cuh has them, so that queries meet all pages as they come, whatever these were
// coded in: many row tiles share what is done here once. Values stay in their Hadamard rotation, which
// the merge takes back.
//
// Reads a page once and writes 4 HeadDim bytes a token and head, which the second-level cache keeps for
// the attention where the chunk is small. The products of its keys are a quarter of what 32 query rows
// take.
//
// A warp takes 16 tokens of one head: then 16 warps fit a processor, and these are what its latencies
// need, more than they need matrices to be read half as often from shared memory. Rows of layouts with
// trellis codes are tokens in another order: they are written word by word.

#include <cuda_fp16.h>

#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/unpack_keys.cuh"
#include "squat/cuda/kernels/unpack_tile.cuh"
#include "squat/cuda/kernels/unpack_trellis.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// What is unpacked: heads of ExactPageLayout, or their keys alone, one behind the other, or nothing.
enum class UnpackedParts { all, keys, none };

/// Bytes of a head in the workspace of unpacked pages.
template <int HeadDim, int Group>
__host__ __device__ constexpr int unpacked_head_bytes(UnpackedParts parts) {
  using Exact = ExactPageLayout<HeadDim, Group>;
  return parts == UnpackedParts::keys ? Exact::value_codes : Exact::head_bytes(ValueCoding::symmetric);
}

template <class Layout, ValueCoding Values, class T>
struct UnpackWarp {
  static constexpr int HeadDim = Layout::HeadDim, steps = HeadDim / 16;
  static constexpr int warps = Layout::token_tiles;
  static constexpr int threads = warps * warp_lanes;
  /// Blocks of a processor, by registers.
  static constexpr int most_threads = HeadDim <= 128 ? 512 : 256;
  static constexpr int blocks = threads < most_threads ? most_threads / threads : 1;
  using Keys = UnpackedKeys<Layout, T, false>;
  using Exact = ExactPageLayout<HeadDim, Layout::Group>;

  const UnpackedPage &found;
  const HeadTables &head;
  const TileTables &tables;
  const std::uint8_t *matrices;  // in shared memory
  const float2 *angles;          // of R(base)
  int first;                     // token tile of the page

  /// page, to: the head's part.
  __device__ void keys(const std::uint8_t *page, std::uint8_t *to) const {
    const bool in_place = Keys::turns_in_place(tables);
    Keys keys{head, tables, matrices, angles, first};
    if constexpr (Layout::shares_bits) {
      keys.shared_codes = found.keys;
      keys.plain_bits = found.coding->plain_key_bits;
    }
    Sums c;
    keys.make(page, in_place ? found.base : 0, found.row, c);
    if constexpr (Layout::trellis) {
      write_rows(c, to);
    } else {
      write_tiles(c, to);
    }
    if (found.base != 0 && !in_place) turn_written(to);
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
  using Sums = typename Keys::Sums;

  __device__ void write_tiles(const Sums &c, std::uint8_t *to) const {
    auto *out = reinterpret_cast<uint4 *>(to) + first * steps * warp_lanes + lane_index();
#pragma unroll
    for (int step = 0; step < steps; ++step) out[step * warp_lanes] = Keys::tile(c, step);
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
        words[tile * 128 + word] = saturated_pair(c[n][2 * i], c[n][2 * i + 1]);
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
    const std::uint8_t *unit = codes_of_page + first * value_step_bytes(Bits, Layout::channel_tiles);
    auto *out =
        reinterpret_cast<uint4 *>(to + Exact::value_codes) + first * steps * warp_lanes + lane_index();
    const int place = value_element(16 * first) + t * value_element(2);  // of tokens 2t and 2t + 8
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

  /// The mean value of the lane's channel among eight.
  __device__ static __half2 mean_of(const float *mean, int first) {
    return __half2half2(saturated_half(mean != nullptr ? __ldg(mean + first + lane_index() / 4) : 0.0f));
  }

  /// The same of any pairs, of keys that are written already.
  __device__ void turn_written(std::uint8_t *to) const {
    using Block = BlockLayout<HeadDim>;
    auto *keys = reinterpret_cast<__half *>(to);
    __syncwarp();
#pragma unroll 1
    for (int i = lane_index(); i < 16 * tables.pairs; i += warp_lanes) {
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
  using Matrices = UnpackMatrices<Layout, false>;
  constexpr int stage_bytes = unpack_stage_bytes<Layout, Values>(Parts),
                head_bytes = Layout::head_bytes(Values),
                to_bytes = unpacked_head_bytes<Layout::HeadDim, Layout::Group>(Parts);
  extern __shared__ __align__(128) std::uint8_t unpack_memory[];
  __shared__ float4 angles[2][Layout::HeadDim / 4];  // of the page at hand and the next
  __shared__ UnpackedPage found[4];                  // these two and one more
  const AttendCall<S> &call = rows.call;
  std::uint8_t *matrices = unpack_memory, *stages = matrices + Matrices::bytes;
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
  Matrices::fetch(matrices, *fetched, found[0].coding->tiles.mode_tiles);
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
      Matrices::fetch(matrices, tables, tiles.mode_tiles);
      fetched = &tables;
      __syncthreads();
    }
    const std::uint8_t *from = stage_bytes > 0 ? stages + stage * stage_bytes : page.data;
    std::uint8_t *to = rows.unpacked + (static_cast<std::size_t>(index - rows.first_page) * heads +
                                        static_cast<std::size_t>(head)) *
                                           to_bytes;
    const Warp warp{page,        tables, tiles, matrices, reinterpret_cast<float2 *>(angles[stage]),
                    warp_index()};
    warp.keys(from, to);
    if constexpr (Parts == UnpackedParts::all) warp.values(from, to);
    if (index + step < end) turn(next, stage ^ 1);
  }
}

}  // namespace squat::cuda
