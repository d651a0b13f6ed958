#pragma once

// Attention of few query tokens over sinks, pages and tails, in one kernel.
//
// A block serves one KV head at a time, whose matrices it keeps in shared memory. Its warps are teams of
// four; a team has four query rows, and each of its warps a quarter of every page's tokens. Teams of a
// group read the same pages, for rows of their own. decode_work.cuh says which pages;
// exact_attention.cuh and page_attention.cuh what becomes of them.
//
//   piece     the team's warps add up what they found, by their references (decode_sums.cuh), then the
//             groups of a block, where they share the piece
//   segment   the last team to arrive adds up its pieces, turns values back from their Hadamard rotation
//             and writes the output

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/decode_memory.cuh"
#include "squat/cuda/kernels/decode_sums.cuh"
#include "squat/cuda/kernels/decode_team.cuh"
#include "squat/cuda/kernels/decode_work.cuh"
#include "squat/cuda/kernels/exact_attention.cuh"
#include "squat/cuda/kernels/page_attention.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// One warp of a team.
template <class Layout, ValueCoding Values, class T, class S>
class DecodeWarp : public PageAttention<Layout, Values, S> {
 public:
  using Pages = PageAttention<Layout, Values, S>;
  using Pages::Pages;
  using typename Pages::Memory, typename Pages::Row, Pages::task, Pages::line, Pages::stretch,
      Pages::group, Pages::team_in_group, Pages::thread_of_team, Pages::sync_team, Pages::sync_group,
      Pages::slot_of, Pages::found, Pages::token_of, Pages::head_of;
  static constexpr int HeadDim = Layout::HeadDim;
  static constexpr bool exact = Memory::exact;

  /// Attends for the team's piece, and adds up its segment where that was the last. table_parity: of the
  /// phase that the tables are there at the end of.
  __device__ void attend(unsigned table_parity) const {
    const Row row = this->fetch_row();  // while pages are looked up
    ExactAttention<Layout, Values, T, S>(call_, plan_).prefetch_rows();
    if constexpr (!exact) {
      if (task().page_count > 0) this->stage_pages(0);
    }
    this->store_row(row);
    FoundRow<HeadDim>().write(found(this->team_));
    sync_group();  // the team's pages and rows are there, and nobody reads the group's slots
    if constexpr (!exact) {
      if (task().page_count > 0) this->begin_copies();
    }
    if (task().page_count > 0) {
      wait_for(&shared_at<CopyBarrier>(block_ + Memory::table_barrier), table_parity);
      if constexpr (!exact) Pages::attend();
    }
    if (task().piece.has_exact_rows() || (exact && task().page_count > 0)) {
      ExactAttention<Layout, Values, T, S>(call_, plan_).attend();
    }
    finish_apart(call_, plan_);
  }

 private:
  using Pages::call_, Pages::plan_, Pages::block_, Pages::memory_, Pages::warp_, Pages::slot_floats;

  /// A function of its own, so that it takes no registers of the pages.
  static __device__ __noinline__ void finish_apart(const AttendCall<S> &call, const DecodePlan &plan) {
    DecodeWarp(call, plan).finish();
  }

  /// Adds up the warp's row over the groups that share the piece, and over the pieces of the segment
  /// where this was the last, and writes it then.
  __device__ void finish() const {
    const DecodePiece &piece = task().piece;
    FoundRow<HeadDim> row = FoundRow<HeadDim>::read(found(this->team_));
    if (line().shares_pieces(stretch())) {
      sync_block();  // each group has one piece of such a stretch
      if (group() > 0) return;
#pragma unroll 1
      for (int team = this->team_ + plan_.teams_of_group(); team < plan_.teams;
           team += plan_.teams_of_group()) {
        row.add(FoundRow<HeadDim>::read(found(team)));
      }
    }
    if (!piece.is_whole()) {
      const int worker =
          (static_cast<int>(blockIdx.x) - stretch().first_block) * plan_.groups() + group();
      const int of_row = warp_ * found_row_floats(HeadDim);
      row.write(slot_of(piece.segment, worker) + of_row);
      if (!arrive(piece)) return;
      const WorkLine::Workers workers = line().workers_of(stretch(), piece.all);
      // Names of neighbours follow each other.
      row = add_slots<HeadDim>(
          slot_of(piece.segment, workers.first) + of_row,
          static_cast<std::size_t>((workers.step << plan_.group_bits) * slot_floats), workers.count);
    }
    const int index = task().first_row + warp_;
    if (index < task().rows) write_row(index, row);
  }

  /// Whether all pieces of the segment are there.
  __device__ bool arrive(const DecodePiece &piece) const {
    __threadfence();
    sync_team();
    if (thread_of_team() == 0) {
      int *counter = call_.counters + (piece.segment << plan_.group_bits) + team_in_group();
      const int size = piece.own.end - piece.own.begin;
      const bool last = atomicAdd(counter, size) + size == piece.all.end - piece.all.begin;
      if (last) *counter = 0;
      shared_at<int>(memory_ + Memory::flag) = last ? 1 : 0;
    }
    sync_team();
    if (shared_at<const int>(memory_ + Memory::flag) == 0) return false;
    __threadfence();
    return true;
  }

  __device__ void write_row(int index, FoundRow<HeadDim> &row) const {
    if constexpr (Memory::rotates) rotate_quads_back<HeadDim>(row.sum);
    const int token = token_of(index), head = head_of(index);
    auto *out = reinterpret_cast<DeviceElementOf<S> *>(call_.out.row(token, head));
    const float factor = call_.rule.add_sink(head, row.reference, row.weight);
    const float inverse = factor / row.weight;
    if (call_.lse.data != nullptr && volatile_lane() == 0)
      *call_.lse.row(token, head) = natural_logarithm(row.reference, row.weight);
    using Quads = RowSums<HeadDim>;
#pragma unroll
    for (int i = 0; i < Quads::count; ++i) {
      if (!Quads::has(i)) continue;
      const float of_quad[4] = {row.sum[i].x, row.sum[i].y, row.sum[i].z, row.sum[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[Quads::quad(i) * 4 + j] = static_cast<DeviceElementOf<S>>(of_quad[j] * inverse);
      }
    }
  }
};

/// Takes the tables of a head and a coding to the memory of a block; by a warp.
template <class Memory>
__device__ inline void copy_tables(const CodingTables &coding, int head, int row_room, int block) {
  const HeadTables &from = coding.heads[head];
  const bool has_mean = from.projection != nullptr && !Memory::exact;
  const int modes = has_mean ? coding.tiles.mode_tiles : 0, row_tiles = coding.tiles.frame / 16;
  const int row_bytes = modes * row_tiles * 512, rows = row_bytes <= row_room ? row_bytes : 0;
  const int basis = from.basis != nullptr ? Memory::basis_bytes : 0;
  const int projection = Memory::shares_matrices ? modes * Memory::steps * 512 : 0;
  const int turns = (coding.tiles.pairs + 1) / 2 * 16;
  if (lane_index() == 0) {  // before the barrier: who waits for it finds them
    shared_at<DecodeTables>(block + Memory::head_tables) = {
        .basis = from.basis,
        .projection = from.projection,
        .mode_rows = rows == row_bytes ? nullptr : coding.tiles.mode_rows,
        .value_mean = from.value_mean,
        .pairs = coding.tiles.pairs,
        .interleaved = coding.tiles.interleaved,
        .eight = from.eight_bit_units,
        .four = from.four_bit_units,
        .three = from.three_bit_units,
        .two = from.two_bit_units,
        .one = from.one_bit_units,
        .plain_key_bits = coding.plain_key_bits,
        .mode_tiles = modes,
        .mode_stride = row_tiles * 512,
        .projection_unit = has_mean ? from.projection_unit : 0.0f};
  }
  __syncwarp();
  const BarrierCopy copy(&shared_at<CopyBarrier>(block + Memory::table_barrier),
                         turns + rows + basis + projection);
  const auto add = [&](int to, const void *table, int bytes) {
    if (bytes > 0) copy.add(&shared_at<std::uint8_t>(block + to), table, bytes);
  };
  add(Memory::turns, coding.tiles.turns, turns);
  add(Memory::basis, from.basis, basis);
  add(Memory::projection, from.projection, projection);
  add(Memory::mode_rows, coding.tiles.mode_rows, rows);
  copy.end();
}

/// Initialises a block's barriers and counts, by its second warp: the first looks up the batch
/// meanwhile.
template <class Memory>
__device__ inline void init_barriers(const DecodePlan &plan, const typename Memory::Parts &parts,
                                     int block) {
  if (warp_index() != 1) return;
  const int slots = plan.groups() * plan.slots, count = 1 + plan.teams + slots;
  for (int i = lane_index(); i < count; i += warp_lanes) {
    if (i == 0) {
      init_barrier(&shared_at<CopyBarrier>(block + Memory::table_barrier));
    } else if (i <= plan.teams) {
      const int team = block + parts.teams + (i - 1) * Memory::team_bytes;
      init_barrier(&shared_at<CopyBarrier>(team + Memory::barrier));
    } else {
      const int slot = block + parts.slots + (i - 1 - plan.teams) * Memory::slot_bytes;
      for (int part = 0; part < Memory::slot_parts; ++part) {
        init_barrier(&shared_at<CopyBarrier>(Memory::slot_barrier(slot, part)));
        shared_at<unsigned>(Memory::slot_count(slot, part)) = 0;
      }
    }
    fence_barriers();
  }
}

template <class Layout, ValueCoding Values, class T, class S>
__global__ void __launch_bounds__(DecodeMemory<Layout, Values>::most_teams *team_threads, 1)
    decode(const __grid_constant__ AttendCall<S> call, const __grid_constant__ DecodePlan plan) {
  using Memory = DecodeMemory<Layout, Values>;
  const typename Memory::Parts parts(plan, call.entries);
  const int base = shared_base();
  const EntryWorks works(base + parts.works, call.entries);
  DecodeBlock &block = shared_at<DecodeBlock>(base + Memory::block);
  const DecodeWarp<Layout, Values, T, S> warp(call, plan);
  allow_next_launch();
  init_barriers<Memory>(plan, parts, base);
  warp.clear();
  wait_for_launches();
  find_works(call, plan, Layout::Group, works);
  if (threadIdx.x == 0) {
    block.line = WorkLine(call, plan, works, static_cast<int>(gridDim.x));
    block.stretch = {};
  }
#pragma unroll 1
  for (unsigned parity = 0;; parity ^= 1) {
    if (warp_index() == 0) {
      __syncwarp();
      const Stretch next = block.line.next_stretch(static_cast<int>(blockIdx.x), block.stretch.run.end);
      __syncwarp();
      if (lane_index() == 0) block.stretch = next;
    }
    sync_block();
    if (block.stretch.blocks == 0) break;
    if (warp_index() == 1) {  // which leads no team
      copy_tables<Memory>(call.codings[block.stretch.coding], block.stretch.head, plan.row_bytes, base);
    }
    if (warp.leads()) warp.begin_stretch();
#pragma unroll 1
    while (warp.next_piece()) warp.attend(parity);
    wait_for(&shared_at<CopyBarrier>(base + Memory::table_barrier), parity);
    __syncthreads();  // nobody reads the tables any more
  }
}

}  // namespace squat::cuda
