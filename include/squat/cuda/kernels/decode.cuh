#pragma once

// Attention of few query tokens over sinks, pages and tails, in one kernel.
//
// A block serves one KV head at a time, whose matrices it keeps in shared memory. Its warps are teams of
// four; a team has four query rows, and each of its warps a quarter of every page's tokens. Teams of a
// group read the same pages, for rows of their own. decode_work.cuh says which pages;
// exact_attention.cuh and page_attention.cuh what becomes of them.
//
//   piece     the team's warps add up what they found, by their references (decode_sums.cuh)
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
#include "squat/cuda/kernels/face_pages.cuh"
#include "squat/cuda/kernels/page_attention.cuh"
#include "squat/cuda/kernels/row_sums.cuh"
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
  using typename Pages::Memory, typename Pages::Slot, typename Pages::Row, Pages::task, Pages::line,
      Pages::group, Pages::team_in_group, Pages::thread_of_team, Pages::sync_team, Pages::sync_group,
      Pages::slot_of;
  static constexpr int HeadDim = Layout::HeadDim;
  static constexpr bool exact = Memory::exact;

  /// Attends for a piece of that name, and adds up its segment where that was the last. table_parity: of
  /// the phase that the tables are there at the end of.
  __device__ void attend(const DecodePiece &piece, int head, int name, unsigned table_parity) const {
    this->set_task(piece, head, name);
    const Row row = this->fetch_row();  // while pages are looked up
    if constexpr (!exact) {
      if (task().pages > 0) this->stage_pages(0);
    }
    this->store_row(row);
    sync_group();  // the team's pages and rows are there, and nobody reads the group's slots
    if constexpr (!exact) {
      if (task().pages > 0) this->begin_copies();
    }
    // Half of the groups begin with exact rows, which wait for memory, half with pages, which do not.
    const bool exact_first = exact || group() % 2 == 0;
#pragma unroll 1
    for (int step = 0; step < 2; ++step) {
      if ((step == 0) == exact_first) {
        if (piece.exact_first < piece.exact_last || (exact && task().pages > 0)) {
          ExactAttention<Layout, Values, T, S>(call_, plan_).attend();
        } else {
          write_nothing<HeadDim>(task().slot, warp_);
        }
        continue;
      }
      if constexpr (!exact) {
        if (task().pages > 0) {
          wait_for(&shared_at<CopyBarrier>(Memory::table_barrier), table_parity);
          Pages::attend();
          continue;
        }
      }
      write_nothing<HeadDim>(task().slot + Slot::part, warp_);
    }
    if (arrive()) finish_apart(call_, plan_);
  }

 private:
  using Pages::call_, Pages::plan_, Pages::memory_, Pages::warp_;

  /// A function of its own, so that it takes no registers of the pages.
  static __device__ __noinline__ void finish_apart(const AttendCall<S> &call, const DecodePlan &plan) {
    DecodeWarp(call, plan).finish();
  }

  __device__ static bool is_whole(const DecodePiece &piece) {
    return piece.own.begin == piece.all.begin && piece.own.end == piece.all.end;
  }

  /// Whether all pieces of the segment are there.
  __device__ bool arrive() const {
    if (is_whole(task().piece)) return true;
    const Run all = task().piece.all, own = task().piece.own;
    __threadfence();
    sync_team();
    if (thread_of_team() == 0) {
      int *counter = call_.counters + task().piece.segment * plan_.teams_of_group + team_in_group();
      const int size = own.end - own.begin;
      const bool last = atomicAdd(counter, size) + size == all.end - all.begin;
      if (last) *counter = 0;
      shared_at<int>(memory_ + Memory::flag) = last ? 1 : 0;
    }
    sync_team();
    if (shared_at<const int>(memory_ + Memory::flag) == 0) return false;
    __threadfence();
    return true;
  }

  /// Adds up the warp's row of a segment over its pieces, and writes it.
  __device__ void finish() const {
    const DecodePiece &piece = task().piece;
    const float *slots = task().slot;
    int count = 1;
    if (!is_whole(piece)) {
      const Stretch &stretch = shared_at<Stretch>(Memory::stretch);
      const Run workers = line().workers_of(stretch, piece.all);
      // Names of neighbours follow each other.
      slots = slot_of(line().piece(piece.segment, task().head, piece.entry, stretch, workers.begin));
      count = workers.end - workers.begin;
    }
    RowSums<HeadDim> sums;
    sums.clear();
    add_decode_slots<HeadDim>(sums, warp_, slots,
                              static_cast<std::size_t>(plan_.teams_of_group * Slot::floats), count);
    const int row = task().first_row + warp_;
    if (row < task().rows) write_row(row, sums);
  }

  __device__ void write_row(int row, RowSums<HeadDim> &sums) const {
    if constexpr (Values == ValueCoding::symmetric) rotate_quads<HeadDim>(sums.packed);
    const int heads = task().heads;
    auto *out = reinterpret_cast<DeviceElementOf<S> *>(
        call_.out.row(task().entry->first_row + row / heads, task().head * heads + row % heads));
    const float inverse = 1 / sums.weight;
#pragma unroll
    for (int i = 0; i < RowSums<HeadDim>::count; ++i) {
      if (!sums.has(i)) continue;
      const float4 e = sums.exact[i], p = sums.packed[i];
      const float of_quad[4] = {e.x + p.x, e.y + p.y, e.z + p.z, e.w + p.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[sums.quad(i) * 4 + j] = static_cast<DeviceElementOf<S>>(of_quad[j] * inverse);
      }
    }
  }
};

/// Takes the tables of a head and a coding to shared memory; by a warp.
template <class Memory>
__device__ inline void copy_tables(const CodingTables &coding, int head, int row_room) {
  const HeadTables &from = coding.heads[head];
  const bool has_mean = from.projection != nullptr && !Memory::exact;
  const int modes = has_mean ? coding.tiles.mode_tiles : 0, row_tiles = coding.tiles.frame / 16;
  const int row_bytes = modes * row_tiles * 512, rows = row_bytes <= row_room ? row_bytes : 0;
  const int basis = from.basis != nullptr ? Memory::basis_bytes : 0;
  const int projection = Memory::shares_matrices ? modes * Memory::steps * 512 : 0;
  const BarrierCopy copy(&shared_at<CopyBarrier>(Memory::table_barrier), rows + basis + projection);
  if (basis > 0) copy.add(decode_bytes + Memory::basis, from.basis, basis);
  if (projection > 0) copy.add(decode_bytes + Memory::projection, from.projection, projection);
  if (rows > 0) copy.add(decode_bytes + Memory::mode_rows, coding.tiles.mode_rows, rows);
  copy.end();
  if (lane_index() != 0) return;
  shared_at<DecodeTables>(Memory::head_tables) = {
      .basis = from.basis,
      .projection = from.projection,
      .mode_rows = rows == row_bytes ? nullptr : coding.tiles.mode_rows,
      .pairs = coding.tiles.pairs,
      .interleaved = coding.tiles.interleaved,
      .eight = from.eight_bit_units,
      .four = from.four_bit_units,
      .two = from.two_bit_units,
      .mode_tiles = modes,
      .mode_stride = row_tiles * 512,
      .projection_unit = has_mean ? from.projection_unit : 0.0f};
}

template <class Layout, ValueCoding Values, class T, class S>
__global__ void __launch_bounds__(DecodeMemory<Layout, Values>::most_teams *team_threads, 1)
    decode(const __grid_constant__ AttendCall<S> call, const __grid_constant__ DecodePlan plan) {
  using Memory = DecodeMemory<Layout, Values>;
  const typename Memory::Block block(plan, call.entries);
  auto *works = &shared_at<EntryWork>(block.works);
  auto *table_barrier = &shared_at<CopyBarrier>(Memory::table_barrier);
  allow_next_launch();
  if (threadIdx.x == 0) {
    init_barrier(table_barrier);
    for (int i = 0; i < plan.teams; ++i) {
      init_barrier(&shared_at<CopyBarrier>(block.teams + i * Memory::team_bytes + Memory::barrier));
    }
    for (int i = 0; i < plan.groups() * plan.slots; ++i) {
      const int slot = block.slots + i * Memory::slot_bytes;
      init_barrier(&shared_at<CopyBarrier>(slot + Memory::slot_barrier));
      shared_at<unsigned>(slot + Memory::slot_count) = 0;
    }
    fence_barriers();
  }
  wait_for_launches();
  find_works(call, plan, Layout::Group, works);
  WorkLine &line = shared_at<WorkLine>(Memory::line);
  if (threadIdx.x == 0) line = WorkLine(call, plan, works, static_cast<int>(gridDim.x));
  const DecodeWarp<Layout, Values, T, S> warp(call, plan);
  warp.clear();
  __syncthreads();
  const Run run = line.of_block(static_cast<int>(blockIdx.x));
  unsigned parity = 0;
#pragma unroll 1
  for (int at = run.begin; at < run.end;) {
    const int head = line.head(at), entry = line.entry(at);
    const Stretch stretch = line.stretch(head, entry);
    at = stretch.run.end;
    const int place = static_cast<int>(blockIdx.x) - stretch.first_block;  // among its blocks
    if (place < 0 || place >= stretch.blocks) continue;
    if (threadIdx.x == 0) shared_at<Stretch>(Memory::stretch) = stretch;
    const CodingTables &coding = call.codings[line.coding(entry)];
    if (warp_index() == 0) {
      copy_tables<Memory>(coding, head, plan.row_bytes);
    }
    for (int i = static_cast<int>(threadIdx.x); i < coding.tiles.pairs;
         i += static_cast<int>(blockDim.x)) {
      shared_at<unsigned long long>(Memory::frequencies + i * 8) =
          turns_of(coding.tiles.inverse_frequencies[i]);
    }
    __syncthreads();
    const int worker = place * plan.groups() + warp.group();
    const Run own = line.of_worker(stretch, worker);
#pragma unroll 1
    for (int from = own.begin; from < own.end;) {
      const DecodePiece piece = piece_at(call, plan, line, Layout::Group, head, own, from);
      warp.attend(piece, head, line.piece(piece.segment, head, piece.entry, stretch, worker), parity);
      from = piece.own.end;
    }
    wait_for(table_barrier, parity);
    parity ^= 1;
    __syncthreads();  // nobody reads the tables any more
  }
}

}  // namespace squat::cuda
