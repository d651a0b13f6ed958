#pragma once

// The tables of heads that share the bits of a page: widths of their keys, and where their codes are.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/bit_shares.hpp"
#include "squat/coding/codes.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/page_shape.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/cuda/coding/coding_tables.hpp"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Bytes of the codes of a page's keys, which lie here without gaps.
inline std::size_t bytes_of_units(const BitAllocation &allocation, Index tokens) {
  std::size_t bits = 0;
  for (const CodeRun &run : allocation.runs())
    bits += static_cast<std::size_t>(run.bits * run.channels * tokens);
  return bits / 8;
}

/// Notes where the codes of heads are in both kinds of pages (HeadTables::places); without `shares`, of
/// the widths that were asked for.
inline void place_codes(std::span<HeadTables> heads, const PageShape &page, const BitShares *shares) {
  const int d = static_cast<int>(page.head_dim), count = static_cast<int>(heads.size());
  for (const KeySpace space : {KeySpace::channels, KeySpace::basis}) {
    int next = shared_parameters(d, count, count);
    for (int head = 0; head < count; ++head) {
      std::size_t key_bytes = page.key_bytes(page.key_bits);
      int value_bits = page.value_bits;
      if (shares != nullptr) {
        value_bits = shares->place(page, head, space).value_bits;
        key_bytes = space == KeySpace::basis ? bytes_of_units(shares->allocation(head), page.group)
                                             : page.key_bytes(shares->plain().keys);
      }
      SharedPlace &place =
          heads[static_cast<std::size_t>(head)].places[space == KeySpace::basis ? 1 : 0];
      place = {next, static_cast<std::int32_t>(key_bytes), value_bits};
      next += place.key_bytes + shared_value_bytes(d, value_bits) + shared_value_scale_bytes;
    }
  }
}

/// The tables of heads with the widths that they share bits with. equal: of widths that were asked for.
inline std::vector<HeadTables> shared_head_tables(std::span<const HeadTables> equal,
                                                  std::span<const KeyQuantizer> quantizers,
                                                  const PageShape &page, const BitShares &shares) {
  std::vector<HeadTables> heads(equal.begin(), equal.end());
  for (std::size_t i = 0; i < heads.size(); ++i) {
    HeadTables &head = heads[i];
    head.eight_bit_units = head.four_bit_units = head.three_bit_units = head.two_bit_units =
        head.one_bit_units = 0;
    std::fill(std::begin(head.widths), std::end(head.widths), std::uint8_t{0});
    for (const CodeRun &run : shares.allocation(static_cast<Index>(i)).runs())
      add_units(head, run, allocation_unit(page.head_dim));
    head.key_weight = static_cast<float>(ShareChoices::key_weight(quantizers[i]));
  }
  place_codes(heads, page, &shares);
  return heads;
}

/// Throws Error for a record of heads that share bits with widths that kernels have no room for, see
/// ShareChoices::most_key_bytes().
inline void check_shared_widths(const PageShape &page, const CodingRecord &record) {
  if (!record.shared) return;
  const auto require = [](bool holds) {
    if (!holds)
      throw Error("squat: snapshot.coding is impossible on CUDA: more than twice the bits asked for");
  };
  for (const HeadRecord &head : record.heads) {
    std::size_t bytes = 0;
    for (const WidthRecord &run : head.widths)
      bytes += squat::code_bytes(run.bits, page.group, run.channels);
    require(bytes <= ShareChoices::most_key_bytes(page));
  }
  require(page.code_bytes({record.plain_key_bits, record.plain_value_bits}) <= 2 * page.code_bytes());
}

}  // namespace squat::cuda
