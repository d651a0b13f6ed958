#pragma once

// What a decode block keeps in shared memory, and where.

#include <cstdint>
#include <type_traits>

#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/decode_work.cuh"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::cuda {

/// A row of what a team has found out, or of a slot of the workspace: sums of the row's channels, then
/// what they are relative to, a power of two, or -infinity where there is nothing, then the sum of the
/// weights.
__host__ __device__ constexpr int found_row_floats(int head_dim) { return head_dim + 4; }

/// Pages whose queries are made at a time.
inline constexpr int batch_pages = 4;

/// A page of a piece, where it lies and what it needs of the queries.
struct DecodePage {
  const std::uint8_t *data;  ///< of the head
  long long base;
  std::int32_t before;       ///< the position of its first token, had all counted
  std::int16_t first, last;  ///< of its tokens, those that count
  std::int16_t masked;       ///< not all of its tokens are seen by all rows
  std::uint16_t batch;       ///< of the batch that begins here, see PageBatch
  std::int32_t tile;         ///< of the piece: pages of one have one base
  std::int32_t mode_row;     ///< offset of its first row's modes, in bytes
  long long named_base;      ///< of the i-th of the batch, the i-th base of its pages, or any
};

/// The same where heads share bits.
struct SharedDecodePage : DecodePage {
  std::int32_t codes;      ///< where the head's begin, behind `data`
  std::int32_t key_bytes;  ///< of these, of keys
  std::int32_t value_bits;
};

/// The tables of a head: offsets in shared memory, or where they lie in the device's.
struct DecodeTables {
  const uint4 *basis;       ///< null: none
  const uint4 *projection;  ///< null: no mean
  const uint4 *mode_rows;   ///< null: in shared memory
  const float *value_mean;  ///< null: none
  std::int32_t pairs, interleaved;
  std::int32_t eight, four, three, two, one;  ///< units of that width
  std::int32_t plain_key_bits;                ///< where heads share bits
  std::int32_t mode_tiles;                    ///< 0: no mean
  std::int32_t mode_stride;                   ///< of mode_rows from one mode tile to the next, in bytes
  float projection_unit;
};

/// What a team does.
struct DecodeTask {
  const LayerState *state;
  const PageEntry *pages;
  std::uint16_t *unpacked;       ///< see BatchEntry
  std::int32_t token;            ///< of the call's tensors, the entry's first
  std::int32_t first_row, rows;  ///< of the entry
  std::int32_t page_count, first_batch;
  std::int32_t limits[team_rows];  ///< rows see the positions below
  std::int32_t all_see;            ///< all rows see from here on, but for their limits
  float slopes[team_rows];         ///< of rows, see ScoreRule
  DecodePiece piece;
  WorkerRun left;  ///< from the piece on
};

/// What a block does.
struct DecodeBlock {
  WorkLine line;
  Stretch stretch;
};

/// Where a team is in its copies.
struct DecodeCopies {
  std::int32_t slot;  ///< offset of the group's whose turn it is
  std::uint32_t slot_parity, parts_parity;
};

template <class Layout, ValueCoding Values>
struct DecodeMemory {
  static constexpr int HeadDim = Layout::HeadDim, steps = HeadDim / 16;
  static constexpr bool exact = Layout::KeyBits == 16;  // pages are: they need no slots and no tables
  static constexpr bool rotates = !exact && Values == ValueCoding::symmetric;  // packed values

  __host__ __device__ static constexpr int rounded(int bytes, int to) {
    return (bytes + to - 1) / to * to;
  }

  // A slot has the codes of a unit's pages, and the values' scales; then barriers, and counts of the
  // warps that are done with it. Large ones have room once for a group: keys and values come apart then,
  // so that the next keys come while a page's values are met.
  // Where heads share bits, there is room for the widest.
  static constexpr bool shares_bits = Layout::shares_bits;
  static constexpr int pages_of_unit = unit_tokens / Layout::Group;
  static_assert(!shares_bits || (pages_of_unit == 1 && Values == ValueCoding::symmetric));
  static constexpr int page_bytes =
      shares_bits ? Layout::most_code_bytes : rounded(Layout::value_end(Values) - Layout::key_codes, 16);
  using Page = std::conditional_t<shares_bits, SharedDecodePage, DecodePage>;
  static constexpr int slot_parts = page_bytes * pages_of_unit > 12 * 1024 ? 2 : 1;
  static constexpr int slot_end = pages_of_unit * page_bytes, slot_bytes = slot_end + 16 * slot_parts;
  __device__ static constexpr int slot_barrier(int slot, int part) { return slot + slot_end + 8 * part; }
  __device__ static constexpr int slot_count(int slot, int part) {
    return slot + slot_end + 8 * slot_parts + 4 * part;
  }
  /// Where a part's bytes begin in a page's; part slot_parts: where they end.
  __device__ static constexpr int part_offset(int part) {
    return part == 0 ? 0 : part == slot_parts ? page_bytes : Layout::value_codes - Layout::key_codes;
  }

  // Queries as bytes: of 16 channels each, and once more, 16 times as large, of those whose codes have 8
  // bits, for these are taken apart into two of 4.
  // Of keys that share bits with other heads' up to twice as many have 8 bits.
  static constexpr int most_key_bits =
      shares_bits ? 2 * (Layout::KeyBits + Layout::ValueBits) - 4 : Layout::KeyBits;
  static constexpr int wide_steps = most_key_bits >= 8 ? steps : (steps * most_key_bits + 7) / 8;
  static constexpr int step_bytes = 128;
  static constexpr int query_bytes_of_page = exact ? 0 : (steps + wide_steps) * step_bytes;
  static constexpr int of_rows = team_rows * team_warps * 4;  // [row][warp] floats

  // A team.
  static constexpr int bytes = 0;  // [batch_pages][step]
  static constexpr int turned = bytes + batch_pages * query_bytes_of_page;
  static constexpr int turned_step = 288;  // of eight columns, where steps do not meet in banks
  static constexpr int modes = turned + steps * turned_step;  // [pass][mode tile][lane]
  static constexpr int modes_of_pass = exact ? 0 : most_mode_tiles(HeadDim) * warp_lanes * 8;
  static constexpr int sums_row = HeadDim + 8;                              // floats
  static constexpr int sums_bytes = team_warps * team_rows * sums_row * 4;  // what warps came to, from 0
  static constexpr int modes_end = modes + 2 * modes_of_pass;
  static constexpr int parts = modes_end > sums_bytes ? modes_end : sums_bytes;
  static constexpr int part_bytes = Layout::key_codes;  // of a page: scales and zeros
  static constexpr int zeros = rounded(parts + batch_pages * part_bytes, 16);  // [page] of_rows
  static constexpr int largest = zeros + batch_pages * of_rows;                // the same
  static constexpr int units = largest + batch_pages * of_rows;                // [page][row] float
  static constexpr int queries = units + batch_pages * team_rows * 4;          // [row][HeadDim] half
  static constexpr int norms = queries + team_rows * HeadDim * 2;              // [row] float
  static constexpr int references = norms + 16;                                // [warp][2][row] float
  static constexpr int found = references + team_warps * 2 * team_rows * 4;    // [row] FoundRow
  static constexpr int task = found + team_rows * found_row_floats(HeadDim) * 4;
  static constexpr int copies = task + static_cast<int>(sizeof(DecodeTask));
  static constexpr int pages = rounded(copies + static_cast<int>(sizeof(DecodeCopies)), 16);
  static constexpr int page_ring = exact ? 1 : 32 * pages_of_unit;  // DecodePage
  static constexpr int barrier = pages + page_ring * static_cast<int>(sizeof(Page));
  static constexpr int flag = barrier + 8;
  static constexpr int team_bytes = rounded(flag + 8, 128);

  // Tables: those that make queries, if they are small enough, then the rows of the mean's modes.
  // Keys of 8 bits are hardly ever in a basis, and their pages need the room.
  static constexpr bool shares_matrices = HeadDim <= 128 && Layout::KeyBits < 8;
  static constexpr int basis_bytes = shares_matrices ? steps * steps * 512 : 0;
  static constexpr int projection_bytes = shares_matrices ? most_mode_tiles(HeadDim) * steps * 512 : 0;
  /// At 48 modes and 256 rows of a tile.
  static constexpr int wanted_row_bytes = Layout::KeyBits < 8 ? 16 * 3 * 512 : 0;

  /// Teams of a block at most, for the registers that a thread needs.
  static constexpr int most_teams = HeadDim > 128 ? 2 : Values == ValueCoding::symmetric ? 4 : 3;

  // A block: what is of one size, then tables, works, teams, slots.
  static constexpr int head_tables = 0;                                              // DecodeTables
  static constexpr int block = rounded(static_cast<int>(sizeof(DecodeTables)), 16);  // DecodeBlock
  static constexpr int turns = rounded(block + static_cast<int>(sizeof(DecodeBlock)), 16);
  static constexpr int table_barrier = turns + HeadDim / 2 * 8;
  static constexpr int basis = rounded(table_barrier + 8, 128);
  static constexpr int projection = basis + basis_bytes;
  static constexpr int mode_rows = projection + projection_bytes;

  struct Parts {
    int works, teams, slots, bytes;

    __host__ __device__ Parts(const DecodePlan &plan, int entries)
        : works(mode_rows + plan.row_bytes),
          teams(rounded(works + (entries + 1) * static_cast<int>(sizeof(EntryWork)), 128)),
          slots(teams + plan.teams * team_bytes),
          bytes(slots + plan.groups() * plan.slots * slot_bytes) {}
  };
};

}  // namespace squat::cuda
