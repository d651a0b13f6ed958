#pragma once

// Blocks of 16 exact rows as a snapshot keeps rows (cache/snapshot.hpp), and back, by the host.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "squat/core/config.hpp"
#include "squat/cuda/page/byte_block.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// Slots: ExactSlots or ByteSlots.
template <class Slots, int HeadDim>
struct RowRecords {
  static constexpr bool in_bytes = std::is_same_v<Slots, ByteSlots>;
  static constexpr std::size_t row_bytes = in_bytes ? HeadDim + 2 : 2 * HeadDim;

  /// Calls visit(byte in the head's block, byte in the record's row, bytes) for the parts of the key, or
  /// of the value, of row `token` of a block.
  template <class Visit>
  static void for_each_part(int token, bool of_value, Visit &&visit) {
    constexpr int size = in_bytes ? 1 : 2;
    for (int channel = 0; channel < HeadDim; ++channel) {
      int element;
      if constexpr (in_bytes) {
        element = of_value ? ByteBlock<HeadDim>::value(token, channel)
                           : ByteBlock<HeadDim>::key(token, channel);
      } else {
        element = of_value ? BlockLayout<HeadDim>::value(token, channel)
                           : BlockLayout<HeadDim>::key(token, channel);
      }
      visit(size * element, size * channel, size);
    }
    if constexpr (in_bytes) {
      visit(of_value ? ByteBlock<HeadDim>::value_step(token) : ByteBlock<HeadDim>::key_step(token),
            HeadDim, 2);
    }
  }

  /// The row of a token to the record, and back. Bytes count from 128 in a block and from 0 in a record.
  static void write(const std::byte *block, int token, bool of_value, std::byte *row) {
    for_each_part(token, of_value, [&](int from, int to, int size) {
      std::memcpy(row + to, block + from, static_cast<std::size_t>(size));
      if (size == 1) row[to] ^= std::byte{0x80};
    });
  }
  static void read(const std::byte *row, int token, bool of_value, std::byte *block) {
    for_each_part(token, of_value, [&](int to, int from, int size) {
      std::memcpy(block + to, row + from, static_cast<std::size_t>(size));
      if (size == 1) block[to] ^= std::byte{0x80};
    });
  }
};

}  // namespace squat::cuda
