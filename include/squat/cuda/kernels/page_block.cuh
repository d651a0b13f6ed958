#pragma once

// Attention of many query rows to pages of 128 tokens and heads of 128 channels: a block meets a page
// after the other, or eight blocks of exact rows, with all its query rows.
//
//   scores^T [16 tokens, rows] = keys [16, HeadDim] queries^T
//   sums^T [16 channels, rows] += values^T [16, tokens] weights^T [tokens, rows]
//
// For the scores each of its 8 warps has 16 tokens, for the sums 16 channels, which are A: numbers come
// into registers as they lie in memory, or are made there of codes, and no more is written of them.
// What all warps meet, queries and weights, is B in shared memory (warpgroup_products.cuh): two barriers
// a page. Keys that are made of codes here take as many products as 128 query rows do: that pays where
// no other block needs the same, and where products are wgmma's.
//
// The references of the rows' softmax are the block's. Weights are computed by the reference that was;
// only where a score of any warp exceeds it (slack) are they computed again, behind a new one, a few
// times a segment.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/exact_blocks.cuh"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/query_rows.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/row_softmax.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/unpack_keys.cuh"
#include "squat/cuda/kernels/unpack_pages.cuh"
#include "squat/cuda/kernels/unpack_tile.cuh"
#include "squat/cuda/kernels/value_levels.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/kernels/warpgroup_products.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Query rows of a block.
inline constexpr int page_block_rows = 64;

/// Whether there are such kernels for a layout.
template <class Layout, ValueCoding Values>
constexpr bool meets_codes() {
  return Layout::HeadDim == 128 && Layout::Group == 128 && !Layout::shares_bits && !Layout::trellis &&
         Layout::KeyBits < 16 && Layout::ValueBits < 16 && Values == ValueCoding::symmetric;
}

/// Floats, in an order of integers.
__device__ inline int ordered(float x) {
  const int i = __float_as_int(x);
  return i >= 0 ? i : i ^ 0x7fffffff;
}
__device__ inline float from_ordered(int i) { return __int_as_float(i >= 0 ? i : i ^ 0x7fffffff); }

/// One block's work on segments, as RowBlock does it; nothing becomes of scores. MakesKeys: of codes,
/// for channels that turn in place (UnpackedKeys); else they are unpacked already.
template <class Layout, bool MakesKeys, class T, class S>
class PageBlock {
  static_assert(meets_codes<Layout, ValueCoding::symmetric>());

 public:
  static constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group, steps = HeadDim / 16;
  static constexpr int warps = Group / 16, threads = warps * warp_lanes, rows = page_block_rows;
  static_assert(warps == steps, "squat: a warp has a tile of tokens, then one of channels");
  static constexpr int step_tiles = warps, page_steps = 1;

  __host__ __device__ static constexpr int shared_bytes() {
    return (entry_at + entry_bytes + 127) / 128 * 128;
  }

  __device__ PageBlock(const RowCall<S> &rows_call, const BatchEntry &entry, const RowShape &shape,
                       int first_page, int head, int tile, std::uint8_t *memory)
      : call_(rows_call), memory_(memory) {
    const AttendCall<S> &call = rows_call.call;
    const LayerState &state = *entry.state;
    const CodingTables &coding = call.codings[state.coding];
    const int all = call.rows(entry), length = state.length(), first_row = tile * rows;
    __syncthreads();  // the segment before is through with the memory
    if (threadIdx.x == 0) {
      const auto chunk_page =
          static_cast<std::size_t>(first_page + shape.first_page - rows_call.first_page);
      segment() = {
          .entry = entry,
          .pages = state.pages + shape.first_page,
          .unpacked = rows_call.unpacked +
                      (chunk_page * call.kv_heads + static_cast<std::size_t>(head)) * unpacked_bytes,
          .head = head,
          .first_row = first_row,
          .exact_blocks = shape.exact_blocks,
          .least_limit = call.template least_seen<false>(entry, length, first_row),
          .most_limit = call.template most_seen<false>(entry, length, min(first_row + rows, all) - 1),
          .coding = coding.heads[head],
          .tiles = coding.tiles};
    }
    if (threadIdx.x < rows) {
      const int row = first_row + static_cast<int>(threadIdx.x);
      limits()[threadIdx.x] = row < all ? call.template seen<false>(entry, length, row) : 0;
    }
    if constexpr (MakesKeys)
      Matrices::fetch(memory_ + matrix_at, coding.heads[head], coding.tiles.mode_tiles);
    __syncthreads();
    face();
  }

  /// All units may be seen.
  __device__ int visible_begin(bool, int first) const { return first; }
  /// The end of the units up to `last` that rows of the block see.
  __device__ int visible_end(bool exact, int last) const {
    if (!exact) return last;
    return min(last, exact_blocks().units_seen(segment().most_limit, step_tiles));
  }

  /// Forgets what was found out.
  __device__ void clear() {
    __syncthreads();
    if (threadIdx.x < rows) {
      row_states()[threadIdx.x].y = no_reference;
      next_references()[threadIdx.x] = ordered(no_reference);
    }
#pragma unroll
    for (auto &sums : sums_) sums[0] = sums[1] = sums[2] = sums[3] = 0;
    weights_[0] = weights_[1] = weights_[2] = weights_[3] = 0;
  }

  /// Attends to the units [first, last) of exact rows, or of pages.
  __device__ void attend(bool exact, int first, int last) {
    if (first >= last) return;
    __syncthreads();
    if (!exact) {
      copy_entry(first);
      if (first + 1 < last) copy_entry(first + 1);
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
    }
    uint4 keys[steps];
    const auto fetch_keys = [&](int unit) {
      if constexpr (MakesKeys) {
        if (!exact) {
          copy_key_codes(unit);
          commit_copies();
          find_turn(unit);
          return;
        }
      }
      load_keys(exact, unit, keys);
    };
    if (!exact) copy_values(first);
    fetch_keys(first);
    commit_copies();
#pragma unroll 1
    for (int unit = first; unit < last; ++unit) {
      wait_for_copies<0>();
      __syncthreads();  // the page is there, the other stage and the weights free
      if (!exact && unit + 1 < last) {
        copy_values(unit + 1);
        if (unit + 2 < last) copy_entry(unit + 2);
        commit_copies();
      }
      if constexpr (MakesKeys) {
        if (!exact) make_keys(unit, keys);
      }
      const bool about_mean = !exact && Layout::values_about_mean(signs(unit));
      weigh(exact, unit, keys);
      if (unit + 1 < last) fetch_keys(unit + 1);
      if (exact) {
        add_exact_values(unit);
      } else {
        add_values(unit, about_mean);
      }
    }
  }

  /// Writes what was found out.
  __device__ void store(std::uint8_t *slot) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
    auto *logarithms = reinterpret_cast<float *>(slot + rows * HeadDim * 2);
    __syncthreads();
    auto *weights = reinterpret_cast<float *>(memory_ + weight_at);  // nobody reads others any more
    if (g == 0) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = 8 * own() + 2 * t + j;
        weights[row] = weights_[j];
        logarithms[row] = weights_[j] > 0 ? row_states()[row].y + log2f(weights_[j]) : no_reference;
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < rows / 8; ++n) {
      const float2 weight = *reinterpret_cast<const float2 *>(weights + 8 * n + 2 * t);
      const float x = weight.x > 0 ? 1 / weight.x : 0.0f, y = weight.y > 0 ? 1 / weight.y : 0.0f;
      auto *to = reinterpret_cast<Word *>(slot + (8 * n + g) * HeadDim * 2) + own() * 8 + t;
      to[0] = transpose(halves(sums_[n][0] * x, sums_[n][1] * y));
      to[4] = transpose(halves(sums_[n][2] * x, sums_[n][3] * y));
    }
  }

 private:
  using Matrices = UnpackMatrices<Layout, true>;

  /// What is the same for a segment, in shared memory: it takes no registers there.
  struct Segment {
    BatchEntry entry;
    const PageEntry *pages;        // from the first of the chunk on
    const std::uint8_t *unpacked;  // of the head in the first of these pages
    int head, first_row;
    int exact_blocks;
    int least_limit, most_limit;  // positions below are seen by all rows, or by any
    HeadTables coding;
    TileTables tiles;
  };

  static constexpr int unpacked_bytes = unpacked_head_bytes<HeadDim, Group>(UnpackedParts::keys);

  // Shared memory: queries; weights, [token tiles] steps; matrices that unpack keys, what they are
  // turned by, and their codes, scales and zeros; two stages of values, behind 16 bytes of keys' scales
  // where these are not there; rows' units and references, references to come, and limits; the segment;
  // page entries.
  static constexpr int query_bytes = rows * HeadDim * 2;
  static constexpr int weight_at = query_bytes, weight_tile_bytes = operand_step_bytes(rows);
  static constexpr int matrix_at = weight_at + warps * weight_tile_bytes;
  static constexpr int angle_at = matrix_at + (MakesKeys ? Matrices::bytes : 0);
  static constexpr int key_at = angle_at + (MakesKeys ? HeadDim / 2 * 8 : 0);
  static constexpr int stage_at = key_at + (MakesKeys ? Layout::value_codes : 0);
  static constexpr int sign_bytes = MakesKeys ? 0 : 16;
  static constexpr int value_bytes = Layout::head_bytes(ValueCoding::symmetric) - Layout::value_codes;
  static constexpr int stage_bytes = sign_bytes + value_bytes;
  static_assert(Layout::about_mean_byte < 16 && value_bytes % 16 == 0);
  static constexpr int row_at = stage_at + 2 * stage_bytes;
  static constexpr int segment_at = row_at + rows * 16;
  static constexpr int entry_at = segment_at + (sizeof(Segment) + 15) / 16 * 16;
  static constexpr int entries = 4;  // of pages: the unit's, and those of two to come
  static constexpr int entry_bytes = entries * static_cast<int>(sizeof(PageEntry));
  static constexpr float slack = 8;

  /// The warp's tile of tokens, then of channels.
  __device__ static int own() { return warp_index(); }
  /// Weights of a tile of tokens.
  __device__ std::uint8_t *weights_of(int tile) const {
    return memory_ + weight_at + tile * weight_tile_bytes;
  }
  __device__ std::uint8_t *staged(int unit) const { return memory_ + stage_at + unit % 2 * stage_bytes; }
  /// Scales of keys of a unit that is staged.
  __device__ const std::uint8_t *signs(int unit) const {
    return MakesKeys ? memory_ + key_at : staged(unit);
  }
  /// Unit and reference of each row.
  __device__ float2 *row_states() const { return reinterpret_cast<float2 *>(memory_ + row_at); }
  __device__ int *next_references() const {
    return reinterpret_cast<int *>(memory_ + row_at) + 2 * rows;
  }
  __device__ int *limits() const { return next_references() + rows; }
  __device__ Segment &segment() const { return *reinterpret_cast<Segment *>(memory_ + segment_at); }
  __device__ PageEntry &page(int unit) const {
    return reinterpret_cast<PageEntry *>(memory_ + entry_at)[unit % entries];
  }
  __device__ ExactBlocks<HeadDim> exact_blocks() const {
    return {*segment().entry.state, segment().entry};
  }
  /// Behind the last block stands that one again: as numbers, for what is masked is multiplied by 0.
  __device__ const uint4 *exact_rows(int block) const {
    const Segment &of = segment();
    return reinterpret_cast<const uint4 *>(
        exact_blocks().rows(min(block, of.exact_blocks - 1), of.head, call_.call.kv_heads));
  }
  /// The head's part of a page.
  __device__ const std::uint8_t *page_head(int unit) const {
    return page(unit).data + static_cast<std::size_t>(segment().head) *
                                 static_cast<std::size_t>(Layout::head_bytes(ValueCoding::symmetric));
  }
  /// Writes queries. Weights are lost.
  __device__ void face() {
    const Segment &of = segment();
    const int own = 16 * warp_index();
    if (own < rows) {
      auto *units = reinterpret_cast<float *>(memory_ + weight_at) + own;  // for the moment
      face_rows<SharedQueries<rows>, HeadDim, 1>(
          reinterpret_cast<uint4 *>(memory_) + warp_index() * warp_lanes, units,
          query_rows(call_.call, of.entry, of.head), of.first_row + own, &of.tiles, 0);
      if (lane_index() < 16) row_states()[own + lane_index()].x = units[lane_index()];
    }
    publish_operand();
    __syncthreads();
  }

  __device__ void copy_entry(int unit) const {
    constexpr int pieces = sizeof(PageEntry) / 8;
    const int i = static_cast<int>(threadIdx.x);
    if (i >= pieces) return;
    copy_async_8(reinterpret_cast<std::uint8_t *>(&page(unit)) + i * 8,
                 reinterpret_cast<const std::uint8_t *>(segment().pages + unit) + i * 8);
  }

  /// Copies `Bytes` bytes, by all threads.
  template <int Bytes>
  __device__ static void copy_all(std::uint8_t *to, const std::uint8_t *from) {
    static_assert(Bytes % 16 == 0);
#pragma unroll
    for (int first = 0; first < Bytes; first += threads * 16) {
      const int i = first + static_cast<int>(threadIdx.x) * 16;
      if (Bytes % (threads * 16) == 0 || i < Bytes) copy_async(to + i, from + i);
    }
  }
  __device__ void copy_key_codes(int unit) const {
    copy_all<Layout::value_codes>(memory_ + key_at, page_head(unit));
  }
  __device__ void copy_values(int unit) const {
    std::uint8_t *to = staged(unit);
    const std::uint8_t *from = page_head(unit);
    if (sign_bytes > 0 && threadIdx.x == 0) copy_async(to, from);
    copy_all<value_bytes>(to + sign_bytes, from + Layout::value_codes);
  }

  /// What a page's keys are turned by, in shared memory.
  __device__ void find_turn(int unit) const {
    const long long base = page(unit).base;
    const int pair = static_cast<int>(threadIdx.x);
    if (base == 0 || pair >= segment().tiles.pairs) return;
    const float2 back = turn_back(__ldg(segment().tiles.turns + pair), base);
    reinterpret_cast<float2 *>(memory_ + angle_at)[pair] = {back.x, -back.y};
  }
  /// The keys of the warp's tokens of a page, of their codes, as A.
  __device__ void make_keys(int unit, uint4 (&keys)[steps]) const {
    using Keys = UnpackedKeys<Layout, T, true>;
    const Segment &of = segment();
    const Keys made{of.coding, of.tiles, memory_ + matrix_at,
                    reinterpret_cast<const float2 *>(memory_ + angle_at), own()};
    typename Keys::Sums c;
    made.make(memory_ + key_at, page(unit).base, page(unit).row, c);
#pragma unroll
    for (int step = 0; step < steps; ++step) keys[step] = Keys::tile(c, step);
  }
  /// The keys of the warp's tokens of a unit that are numbers, as A.
  __device__ void load_keys(bool exact, int unit, uint4 (&keys)[steps]) const {
    const uint4 *from;
    if (exact) {
      from = exact_rows(unit * step_tiles + own());
    } else {
      const std::size_t page = static_cast<std::size_t>(call_.call.kv_heads) * unpacked_bytes;
      from =
          reinterpret_cast<const uint4 *>(segment().unpacked + static_cast<std::size_t>(unit) * page) +
          own() * steps * warp_lanes;
    }
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const uint4 words = read_written_once(from + step * warp_lanes + lane_index());
      keys[step] = exact ? ExactTile<T>{words}.halves() : words;
    }
  }

  /// Weights of a unit, to shared memory, and references that hold them. Ends with a barrier.
  __device__ void weigh(bool exact, int unit, const uint4 (&keys)[steps]) {
    const bool exceeds = weigh_tokens<false>(exact, unit, keys);
    if (!__syncthreads_or(exceeds ? 1 : 0)) return;
    weigh_tokens<true>(exact, unit, keys);
    __syncthreads();
    rescale();
    __syncthreads();
    if (threadIdx.x < rows) {
      float &reference = row_states()[threadIdx.x].y;
      reference = fmaxf(reference, from_ordered(next_references()[threadIdx.x]));
    }
    __syncthreads();
    weigh_tokens<false>(exact, unit, keys);
    __syncthreads();
  }

  /// Of the warp's tokens: their weights, to shared memory, or else the largest score of each row.
  /// Returns whether a score exceeds its row's reference.
  template <bool Largest>
  __device__ bool weigh_tokens(bool exact, int unit, const uint4 (&keys)[steps]) const {
    const int t = lane_index() % 4;
    float c[rows / 8][4];
    const std::uint32_t queries = shared_address(memory_);
    begin_products();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      add_product(c, keys[step], queries + step * operand_step_bytes(rows), step > 0);
    }
    commit_products();
    wait_for_products();
    mask(exact, unit, c);
    Word most = 0;
    const std::uint32_t to = matrix_row(weights_of(own()));
#pragma unroll
    for (int m = 0; m < rows / 16; ++m) {
      Word p[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = 2 * m + i;
        // Of rows 2t and 2t + 1 of eight.
        const float4 states = *reinterpret_cast<const float4 *>(row_states() + 8 * n + 2 * t);
        if constexpr (Largest) {
          const float x = largest_row(fmaxf(c[n][0], c[n][2])) * states.x,
                      y = largest_row(fmaxf(c[n][1], c[n][3])) * states.z;
          if (lane_index() < 4) {
            int *next = next_references() + 8 * n + 2 * t;
            atomicMax(next, ordered(x));
            atomicMax(next + 1, ordered(y));
          }
        } else {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float x = fmaf(c[n][2 * j], states.x, -states.y),
                        y = fmaf(c[n][2 * j + 1], states.z, -states.w);
            p[2 * i + j] = halves(power_of_two(x), power_of_two(y));
            most = as_word(__hmax2(as_halves(most), as_halves(p[2 * i + j])));
          }
        }
      }
      if constexpr (!Largest) store_transposed(to + m * 512, p);
    }
    publish_operand();
    constexpr Word exceeding = 0x5c00;  // 2^slack as float16
    static_assert(slack == 8);
    return (most & 0xffffu) > exceeding || most >> 16 > exceeding;
  }

  /// Takes out what does not count, or rows do not see.
  __device__ void mask(bool exact, int unit, float (&c)[rows / 8][4]) const {
    const TokenTile tile =
        exact ? exact_blocks().tokens(unit * step_tiles + own()) : page_tile(page(unit), 16 * own());
    const bool all_count =
        tile.position >= tile.begin && tile.position + 16 <= min(tile.end, segment().least_limit);
    if (all_count) return;
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int n = 0; n < rows / 8; ++n) {
      const int2 seen = *reinterpret_cast<const int2 *>(limits() + 8 * n + 2 * t);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = tile.position + g + j / 2 * 8, limit = j % 2 == 0 ? seen.x : seen.y;
        if (at < tile.begin || at >= min(tile.end, limit)) c[n][j] = -INFINITY;
      }
    }
  }

  /// Sums become relative to the references to come.
  __device__ void rescale() {
    const int t = lane_index() % 4;
    const auto factor = [&](int row) {
      const float old = row_states()[row].y;
      return power_of_two(old - fmaxf(old, from_ordered(next_references()[row])));
    };
#pragma unroll
    for (int n = 0; n < rows / 8; ++n) {
      const float x = factor(8 * n + 2 * t), y = factor(8 * n + 2 * t + 1);
      sums_[n][0] *= x, sums_[n][1] *= y, sums_[n][2] *= x, sums_[n][3] *= y;
    }
    const float x = factor(8 * own() + 2 * t), y = factor(8 * own() + 2 * t + 1);
    weights_[0] *= x, weights_[1] *= y, weights_[2] *= x, weights_[3] *= y;
  }

  /// Sums += weights times values of a tile of tokens and the warp's channels, A: a group of products.
  __device__ void add_tile(int tile, const uint4 &a) {
    begin_products();
    add_product(sums_, a, shared_address(weights_of(tile)));
    commit_products();
    wait_for_products<1>();  // registers hold few tiles
    const auto *w = reinterpret_cast<const Word *>(weights_of(tile) + own() * 256) + lane_index();
    multiply_add(weights_, two_ones, two_ones, two_ones, two_ones, w[0], w[warp_lanes]);
  }

  __device__ void add_exact_values(int unit) {
#pragma unroll 2
    for (int tile = 0; tile < step_tiles; ++tile) {
      constexpr int values = BlockLayout<HeadDim>::part_elements / 8;
      const uint4 *from = exact_rows(unit * step_tiles + tile) + values + own() * warp_lanes;
      add_tile(tile, reinterpret_cast<const ExactTile<T> *>(from)[lane_index()].halves());
    }
    wait_for_products();
  }

  __device__ void add_values(int unit, bool about_mean) {
    const float *means = about_mean ? segment().coding.value_mean : nullptr;
    const auto mean_of = [&](int first) {
      const float mean = means != nullptr ? __ldg(means + own() * 16 + first + lane_index() / 4) : 0.0f;
      return __half2half2(saturated_half(mean));
    };
    const __half2 upper = mean_of(0), lower = mean_of(8);
    const std::uint8_t *values = staged(unit) + sign_bytes;
    const std::uint8_t *scales = values + warps * Layout::value_step_bytes;
    // Where scales and means are small no value leaves float16's range.
    const uint2 some = *reinterpret_cast<const uint2 *>(scales + lane_index() * 8);
    const __half2 largest_mean = __hmax2(__habs2(upper), __habs2(lower));
    const Word most = as_word(__hmax2(__hmax2(__habs2(as_halves(some.x)), __habs2(as_halves(some.y))),
                                      __hmul2(largest_mean, __float2half2_rn(largest_scale / 32768))));
    constexpr Word largest = half_of_power(largest_scale);
    if (__all_sync(0xffffffffu, (most & 0xffffu) <= largest && most >> 16 <= largest)) {
      add_scaled_values<false>(values, scales, upper, lower);
    } else {
      add_scaled_values<true>(values, scales, upper, lower);
    }
  }

  /// Scales up to which levels stay below half of float16's range.
  static constexpr float largest_scale = 65536.0f / (1 << (Layout::ValueBits + 1));
  /// The bits of a power of two as float16.
  __host__ __device__ static constexpr Word half_of_power(float x) {
    Word exponent = 15;
    for (; x > 1; x /= 2) ++exponent;
    return exponent << 10;
  }

  template <bool Saturate>
  __device__ void add_scaled_values(const std::uint8_t *values, const std::uint8_t *scales,
                                    __half2 upper, __half2 lower) {
    const ValueLevels<Layout::ValueBits, steps> levels(own());
    const auto *from = reinterpret_cast<const uint4 *>(scales) + lane_index() % 4;
    const auto value = [&](__half2 level, Word scale, __half2 mean) {
      const __half2 x = __hfma2(level, as_halves(scale), mean);
      return Saturate ? saturated(x) : as_word(x);
    };
#pragma unroll
    for (int pair = 0; pair < step_tiles / 2; ++pair) {
      const uint4 numbers = from[pair * 4];  // of 32 tokens, see value_element()
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint2 scale =
            i == 0 ? column_pairs(numbers.x, numbers.z) : column_pairs(numbers.y, numbers.w);
        const int tile = 2 * pair + i;
        __half2 level[4];
        levels.read(values + tile * Layout::value_step_bytes, level);
        add_tile(tile, {value(level[0], scale.x, upper), value(level[1], scale.x, lower),
                        value(level[2], scale.y, upper), value(level[3], scale.y, lower)});
      }
    }
    wait_for_products();
  }

  const RowCall<S> &call_;
  std::uint8_t *memory_;
  float sums_[rows / 8][4];  // of 16 channels and the rows
  float weights_[4];         // sums of eight rows'
};

}  // namespace squat::cuda
