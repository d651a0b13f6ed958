#pragma once

// Attention of a team over pages of codes.
//
//   batch of 4 pages   the team makes the queries that they see (face_pages.cuh): three barriers
//   page               no barrier: scores and values of 32 tokens a warp (score_codes.cuh); the last
//                      warp that is done with a slot asks for the unit that comes into its place
//
// Weights of the softmax times values' scales are integers of 16 bits, of a reference that rises when
// they would not fit: sums are shifted then.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/byte_products.cuh"
#include "squat/cuda/kernels/face_pages.cuh"
#include "squat/cuda/kernels/page_copies.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/score_codes.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::cuda {

/// What a warp's pages come to. A lane's row is t.
template <class Layout, ValueCoding Values>
struct PageSums {
  static constexpr bool plain = Values == ValueCoding::plain;

  ValueSums<Layout::channel_tiles> codes;
  float reference, weight;
  int constant;      // symmetric values: the sum of weights times scales
  float about_mean;  // and of the weights of those that are coded about their mean
  float constants[plain ? Layout::HeadDim / 32 : 1];  // plain ones: of weights times zeros
  // Where heads share bits: of the codes that `constant` counts, and what the middle of others takes
  // off. Elsewhere 0, and yet never left out: without it compilers spill registers in the loop over
  // pages, which makes a step a sixth slower (bench/cuda/README.md).
  int bits;
  float others;

  __device__ void clear() {
    codes.clear();
    reference = no_reference;
    weight = about_mean = others = 0;
    constant = 0;
    bits = Layout::ValueBits;
#pragma unroll
    for (float &x : constants) x = 0;
  }
  __device__ void raise(float to) {
    const float factor = power_of_two(reference - to);
    const int by = static_cast<int>(fminf(to - reference, 30.0f));
    reference = to;
    weight *= factor;
    about_mean *= factor;
    others *= factor;
    constant = (constant + ((1 << by) >> 1)) >> by;
    codes.shift(by);
#pragma unroll
    for (float &x : constants) x *= factor;
  }

  /// What the middle of codes takes off each sum.
  __device__ float off() const { return fmaf(middle(), static_cast<float>(constant), others); }
  __device__ float middle() const {
    const int width = Layout::shares_bits ? bits : Layout::ValueBits;
    if (Layout::value_codes_of(width) == Codes::trellis) return trellis_middle;
    return static_cast<float>((1 << width) - 1) / 2;
  }

  /// Calls run<Bits>() for the width of the codes.
  template <class Run>
  __device__ void with_codes(Run &&run) const {
    if constexpr (Layout::shares_bits) {
      if (bits == 1) run.template operator()<ValueCodes<Layout, Values, 1>>();
      if (bits == 2) run.template operator()<ValueCodes<Layout, Values, 2>>();
      if (bits == 3) run.template operator()<ValueCodes<Layout, Values, 3>>();
      if (bits == 4) run.template operator()<ValueCodes<Layout, Values, 4>>();
    } else {
      run.template operator()<ValueCodes<Layout, Values, Layout::ValueBits>>();
    }
  }

  /// Goes on with codes of another width.
  __device__ void change_width(int to) {
    others = off();
    constant = 0;
    // Sums that are small get no larger than sums may be.
    constexpr int most = 1 << 26, raised = 3;
    with_codes([&]<class Codes>() { Codes::take_apart(codes); });
    if (__any_sync(0xffffffffu, codes.exceeds(most))) raise(reference + raised);
    with_codes([&]<class Codes>() {
#pragma unroll
      for (int j = 0; j < Codes::tiles; ++j) codes.shift(j, Codes::place(j));
    });
    bits = to;
    with_codes([&]<class Codes>() {
#pragma unroll
      for (int j = 0; j < Codes::tiles; ++j) codes.shift(j, -Codes::place(j));
      Codes::put_together(codes);
    });
  }
};

/// A team that meets its pages.
template <class Layout, ValueCoding Values, class S>
class PageAttention : public PageCopies<Layout, Values, S> {
 public:
  using Copies = PageCopies<Layout, Values, S>;
  using Copies::Copies, Copies::page_at, Copies::first_batch, Copies::stage_pages, Copies::fill_parts,
      Copies::leave_slot, Copies::next_slot, Copies::pages_of_unit;
  using typename Copies::Memory, Copies::task, Copies::tables, Copies::copies, Copies::facing,
      Copies::sync_team, Copies::add_up, Copies::limit, Copies::first_seen, Copies::thread_of_team;
  static constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group;
  static constexpr bool plain = Values == ValueCoding::plain;

  __device__ void attend() const {
    PageSums<Layout, Values> sums;
    sums.clear();
    if constexpr (Layout::shares_bits) sums.bits = page_at(0).value_bits;
    DecodeCopies at = copies();
    PageBatch batch{.first = 0, .count = first_batch()};
    int staged = min(first_batch() + Memory::page_ring - batch_pages, task().page_count);
#pragma unroll 1
    for (; batch.count > 0;
         batch.first += batch.count, batch.count = min(batch_pages, task().page_count - batch.first)) {
      constexpr int ahead = Memory::page_ring / 2 - batch_pages;
      if (staged < task().page_count && staged - batch.first <= ahead) staged = stage_pages(staged);
      wait_for(&shared_at<CopyBarrier>(memory_ + Memory::barrier), at.parts_parity);
      at.parts_parity ^= 1;
      make_queries(batch);
      // No run of pages makes sums overflow.
      const bool rises = (batch.first & 255) < batch_pages;
      float spare[4] = {};
#pragma unroll 1
      for (int i = 0; i < batch.count; i += pages_of_unit) {
        const int own = i + (pages_of_unit == 1 ? 0 : warp_ * 32 / Group);
        const int unit = (batch.first + i) / pages_of_unit;
        const auto wait_for_part = [&](int part) {
          wait_for(&shared_at<CopyBarrier>(Memory::slot_barrier(at.slot, part)), at.slot_parity);
        };
        const auto go_on_to_values = [&] {
          if constexpr (Memory::slot_parts == 1) return;
          leave_slot(unit, at.slot, 0);
          wait_for_part(1);
        };
        wait_for_part(0);
        if (own < batch.count) {
          add_page(batch, own, at.slot, rises && i == 0, spare, sums, go_on_to_values);
        } else {
          go_on_to_values();
        }
        leave_slot(unit, at.slot, Memory::slot_parts - 1);
        at.slot = next_slot(at.slot);
        if (at.slot == slots_) at.slot_parity ^= 1;
      }
    }
    sync_team();  // nobody reads what sums go over
    if (thread_of_team() == 0) copies() = at;
    float about_mean = sums.about_mean;
#pragma unroll
    for (int step = 4; step < warp_lanes; step *= 2) {
      sums.constant += __shfl_xor_sync(0xffffffffu, sums.constant, step);
      if constexpr (Layout::shares_bits) sums.others += __shfl_xor_sync(0xffffffffu, sums.others, step);
      about_mean += __shfl_xor_sync(0xffffffffu, about_mean, step);
      if constexpr (plain) {
#pragma unroll
        for (float &x : sums.constants) x += __shfl_xor_sync(0xffffffffu, x, step);
      }
    }
    const float of_all = -sums.off();
    const float *mean = tables().value_mean + Layout::row_channel(lane_index() / 4);
    const bool has_mean = __any_sync(0xffffffffu, about_mean > 0);
    sums.with_codes([&]<class Codes>() {
      Codes::take_apart(sums.codes);
      const auto value = [&](int j, int half) {
        const auto high = static_cast<float>(sums.codes.c[j][2 * half]);
        const auto low = static_cast<float>(sums.codes.c[j][2 * half + 1]);
        const float sum = fmaf(fmaf(high, 256, low), 1.0f / static_cast<float>(1 << Codes::place(j)),
                               plain ? sums.constants[j / 2 % (HeadDim / 32)] : of_all);
        if (plain || !has_mean) return sum;
        return fmaf(about_mean, __ldg(mean + Layout::row_channel(j * 16 + half * 8)), sum);
      };
      this->template add_up<Layout>(Memory::rotates, sums.reference, sums.weight, value);
    });
  }

 protected:
  using Copies::block_, Copies::memory_, Copies::slots_, Copies::warp_, Copies::call_;

 private:
  /// The queries of a batch, and then the copies for the next.
  __device__ void make_queries(PageBatch &batch) const {
    const int first = batch.first;
    batch.set(page_at(first).batch);
    batch.in_basis = batch.about_mean = batch.trellis = 0;
#pragma unroll
    for (int i = 0; i < batch_pages; ++i) {
      // Scales' signs say which space a page is coded in, and about what.
      const int scale = memory_ + Memory::parts + i * Memory::part_bytes + Layout::key_scales;
      batch.in_basis |= (shared_at<const std::uint16_t>(scale) >> 15 & 1u) << i;
      batch.about_mean |= (shared_at<const std::uint8_t>(scale + Layout::about_mean_byte) >> 7 & 1u)
                          << i;
      if constexpr (Layout::trellis)
        batch.trellis |= (shared_at<const std::uint8_t>(scale + Layout::trellis_byte) >> 7 & 1u) << i;
    }
    float zeros[batch_pages] = {};
#pragma unroll 1
    for (int pass = 0; pass < batch.passes; ++pass) {
      if (pass > 0) sync_team();
      facing().turn(page_at(first + 2 * pass + warp_ % 2).named_base);
      sync_team();
      facing().make(batch, pass, zeros);
    }
    // The scores of zeros, [page, row, warp].
    const float sum = combine_by_page(zeros, [](float a, float b) { return a + b; });
    const int lane = opaque(lane_index());
    if ((lane & 4) == 0) {
      shared_at<float>(memory_ + Memory::zeros + (lane >> 3) * Memory::of_rows +
                       ((lane & 3) * team_warps + warp_) * 4) = sum;
    }
    sync_team();
    const int next = first + batch.count;
    if (warp_ == 0 && next < task().page_count)
      fill_parts(next, min(batch_pages, task().page_count - next));
  }

  /// Adds page `index` of the batch, which the slot holds. rises: the reference does, at least by 1.
  /// spare: the mean's scores from the other base of the pass. between() is called between the codes of
  /// keys and those of values.
  template <class Between>
  __device__ void add_page(const PageBatch &batch, int index, int slot, bool rises, float (&spare)[4],
                           PageSums<Layout, Values> &sums, Between &&between) const {
    const int memory = opaque(memory_), lane = opaque(lane_index()), g = lane >> 2, t = lane & 3;
    const int slice = opaque(warp_) & (Group / 32 - 1);
    const int bytes = slot + index % pages_of_unit * Memory::page_bytes;
    const typename Memory::Page &page = page_at(batch.first + index);
    if constexpr (Layout::shares_bits) {
      if (page.value_bits != sums.bits) sums.change_width(page.value_bits);
    }
    float mean[4];
    if ((batch.reuse >> index & 1) != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) mean[i] = spare[i];
    } else {
      add_means(page.mode_row + slice * 1024, batch.name(index), memory, lane, mean, spare);
    }
    KeyScores<Layout> scores(bytes, memory + Memory::bytes + index * Memory::query_bytes_of_page, lane,
                             slice);
    const bool trellis = Layout::trellis && (batch.trellis >> index & 1) != 0;
    scores.add((batch.in_basis >> index & 1) != 0, trellis, tables());
    between();
    const float4 zeros =
        shared_at<const float4>(memory + Memory::zeros + index * Memory::of_rows + t * team_warps * 4);
    const float norm = shared_at<const float>(memory + Memory::norms + t * 4),
                zero = norm * ((zeros.x + zeros.y) + (zeros.z + zeros.w));
    const float unit =
        norm * shared_at<const float>(memory + Memory::units + (index * team_rows + t) * 4);
    const float mean_unit = norm * tables().projection_unit;
    const float of_second = unit * (1.0f / KeyScores<Layout>::second_tile);
    const bool masked = page.masked != 0;
    // Row g + 8 i is token row_token(g) + step i.
    constexpr int step = Layout::row_token(8);
    const int token = slice * 32 + Layout::row_token(g);
    float x[4];
    const auto find_exponents = [&](float reference) {
      const bool bends = call_.rule.bends();
      const float from = bends ? zero : zero - reference;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = fmaf(scores[i], i < 2 ? unit : of_second, fmaf(mean[i], mean_unit, from));
      }
      if (bends) {
        const float4 bent = call_.rule.template bent<step>(float4{x[0], x[1], x[2], x[3]}, this->slope(),
                                                           limit() - 1 - page.before - token);
        x[0] = bent.x - reference, x[1] = bent.y - reference;
        x[2] = bent.z - reference, x[3] = bent.w - reference;
      }
      if (masked) {
        const int last = page.last, seen = limit() - page.before,
                  first = max(static_cast<int>(page.first), first_seen() - page.before);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int own = token + step * i;
          if (own < first || own >= min(last, seen)) x[i] = -INFINITY;
        }
      }
    };
    // Scales, or zeros, of rows g + 8 i.
    constexpr int groups = Layout::scales_of_a_value(Values);
    const int scales = bytes + scales_begin(page) + (slice * 8 + g) * 8;
    const auto four = [](int from, float(&to)[4]) {
      const uint2 words = shared_at<const uint2>(from);
      const float2 a = __half22float2(as_halves(words.x)), b = __half22float2(as_halves(words.y));
      to[0] = a.x, to[1] = a.y, to[2] = b.x, to[3] = b.y;
    };
    // Weights times scales: integers in the low bits of floats.
    constexpr float start = 8388608.0f;  // 2^23
    float p[4], w[groups][4];
    const auto find_weights = [&] {
      float most = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] = power_of_two(x[i]);
#pragma unroll
      for (int k = 0; k < groups; ++k) {
        float scale[4];
        four(scales + k * Group * 2, scale);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          w[k][i] = fmaf(p[i], scale[i], start);
          most = fmaxf(most, w[k][i]);
        }
      }
      return most;
    };
    find_exponents(sums.reference);
    if (__any_sync(0xffffffffu, find_weights() > start + 65000.0f) || rises) {
      find_exponents(0);
      float top = no_reference;
#pragma unroll
      for (int k = 0; k < groups; ++k) {
        float scale[4];
        four(scales + k * Group * 2, scale);
#pragma unroll
        for (int i = 0; i < 4; ++i) top = fmaxf(top, x[i] + __log2f(scale[i]));
      }
      // Weights are 2^15 at most.
      sums.raise(fmaxf(sums.reference + (rises ? 1.0f : 0.0f), ceilf(largest_row(top)) - 15));
      find_exponents(sums.reference);
      find_weights();
    }
    const float weight = (p[0] + p[1]) + (p[2] + p[3]);
    sums.weight += weight;
    if (!plain && (batch.about_mean >> index & 1) != 0) sums.about_mean += weight;
    uint2 columns[groups];
#pragma unroll
    for (int k = 0; k < groups; ++k) {
      columns[k] = {transpose(split_bytes(w[k][0], w[k][1])), transpose(split_bytes(w[k][2], w[k][3]))};
    }
    if constexpr (plain) {
#pragma unroll
      for (int k = 0; k < groups; ++k) {
        // What rounding takes off a weight is made up for with the middle code, so that it makes errors
        // of deviations from that alone.
        constexpr float middle = static_cast<float>((1 << Layout::ValueBits) - 1) / 2;
        float z[4], scale[4];
        four(scales + (groups + k) * Group * 2, z);
        four(scales + k * Group * 2, scale);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float lost = fmaf(p[i], scale[i], start - w[k][i]);
          sums.constants[k] = fmaf(p[i], z[i], fmaf(lost, middle, sums.constants[k]));
        }
      }
    } else {
      // Sums of the low bits: those of 2^23 cancel, as there are four.
      unsigned sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += __float_as_uint(w[0][i]);
      sums.constant += static_cast<int>(sum - 4 * 0x4B000000u);
    }
    sums.with_codes([&]<class Codes>() {
      Codes::add(sums.codes, bytes + values_begin(page) + slice * 2 * Codes::step_bytes,
                 [&](int j) { return columns[j * groups / Layout::channel_tiles]; });
    });
  }

  /// Where a page's values, and their scales, begin in a slot.
  __device__ static int values_begin(const typename Memory::Page &page) {
    if constexpr (Layout::shares_bits) return page.key_bytes;
    return Layout::value_codes - Layout::key_codes;
  }
  __device__ static int scales_begin(const typename Memory::Page &page) {
    if constexpr (Layout::shares_bits) return page.key_bytes + Layout::value_bytes(page.value_bits);
    return Layout::value_scales - Layout::key_codes;
  }

  /// The mean key's scores at rows g + 8 i, over the projection's unit. row: offset of the first's
  /// modes; name: of the page's base; other: the same from the other base of its pass.
  __device__ void add_means(int row, int name, int memory, int lane, float (&mean)[4],
                            float (&other)[4]) const {
    const DecodeTables &tables = this->tables();
    float c[2][4] = {};
    int weights = memory + Memory::modes + (name >> 1) * Memory::modes_of_pass + lane * 8;
    row += lane * 16;
    const int stride = tables.mode_stride;
    const auto add = [&](uint4 first, uint4 second) {
      const uint2 b = shared_at<const uint2>(weights);
      multiply_add(c[0], first.x, first.y, first.z, first.w, b.x, b.y);
      multiply_add(c[1], second.x, second.y, second.z, second.w, b.x, b.y);
      row += stride, weights += 256;
    };
    const int tiles = tables.mode_tiles;
    if (tables.mode_rows == nullptr) {
#pragma unroll 1
      for (int i = 0; i < tiles; ++i) {
        add(shared_at<const uint4>(block_ + Memory::mode_rows + row),
            shared_at<const uint4>(block_ + Memory::mode_rows + row + 512));
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < tiles; ++i) {
        const uint4 *from = tables.mode_rows + row / 16;
        add(__ldg(from), __ldg(from + warp_lanes));
      }
    }
    const bool second = (name & 1) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = c[i / 2][i % 2 * 2], high = c[i / 2][i % 2 * 2 + 1];
      mean[i] = second ? high : low;
      other[i] = second ? low : high;
    }
  }
};

}  // namespace squat::cuda
