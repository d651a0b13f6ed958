#pragma once

// One warp of a team of a decode block: who is who, what the team is about to do, and its query rows.
//
// Nearly all of that is in shared memory, for the pages need the registers: objects here are made where
// they are used.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/decode_memory.cuh"
#include "squat/cuda/kernels/decode_sums.cuh"
#include "squat/cuda/kernels/decode_work.cuh"
#include "squat/cuda/kernels/face_pages.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/exact_tiles.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// S: what queries and outputs are.
template <class Layout, ValueCoding Values, class S>
class DecodeTeam {
 public:
  using Memory = DecodeMemory<Layout, Values>;
  using Facing = PageFacing<Layout, Values>;
  using Slot = DecodeSlot<Layout::HeadDim>;
  static constexpr int HeadDim = Layout::HeadDim;

  __device__ DecodeTeam(const AttendCall<S> &call, const DecodePlan &plan)
      : DecodeTeam(call, plan, typename Memory::Block(plan, call.entries)) {}

  /// Before the first task; a barrier follows.
  __device__ void clear() const {
    if (thread_of_team() == 0) copies() = {.slot = slots_, .slot_parity = 0, .parts_parity = 0};
  }

  __device__ DecodeTask &task() const { return shared_at<DecodeTask>(memory_ + Memory::task); }
  __device__ DecodeCopies &copies() const { return shared_at<DecodeCopies>(memory_ + Memory::copies); }
  __device__ const DecodeTables &tables() const { return shared_at<DecodeTables>(Memory::head_tables); }
  __device__ const WorkLine &line() const { return shared_at<WorkLine>(Memory::line); }
  __device__ Facing facing() const { return Facing(tables(), memory_, 1 + team_, warp_); }
  /// The group's place in the block, and the team's in the group.
  __device__ int group() const { return team_ / plan_.teams_of_group; }
  __device__ int team_in_group() const { return team_ % plan_.teams_of_group; }
  __device__ void sync_team() const { sync_threads(1 + team_, team_threads); }
  __device__ void sync_group() const {
    if (plan_.teams_of_group == 1) return sync_team();
    sync_threads(1 + plan_.teams + group(), plan_.teams_of_group * team_threads);
  }
  __device__ static int thread_of_team() { return static_cast<int>(threadIdx.x) % team_threads; }

  /// Begins a piece of that name.
  __device__ void set_task(const DecodePiece &piece, int head, int name) const {
    const BatchEntry &entry = call_.batch[piece.entry];
    const LayerState *state = entry.state;
    const int heads = call_.query_heads / call_.kv_heads, rows = entry.tokens * heads;
    const int first_row = (piece.tile + call_.first_tile) * plan_.rows() + team_in_group() * team_rows;
    const int past = state->length() - entry.tokens;
    const auto limit = [&](int row) { return past + min(row, rows - 1) / heads + 1; };
    sync_team();  // nobody reads the task before
    if (thread_of_team() == 0) {
      task() = {
          .entry = &entry,
          .state = state,
          .slot = slot_of(name),
          .head = head,
          .first_row = first_row,
          .rows = rows,
          .heads = heads,
          .first_page = piece.page_first,
          .pages = piece.page_last - piece.page_first,
          .limits = {limit(first_row), limit(first_row + 1), limit(first_row + 2), limit(first_row + 3)},
          .piece = piece};
    }
    sync_team();
  }

  /// The warp's row: channels lane, lane + 32, ...
  struct Row {
    static constexpr int count = HeadDim / warp_lanes;
    float x[count];
  };
  __device__ Row fetch_row() const {
    using Element = DeviceElementOf<S>;
    const DecodeTask &task = this->task();
    const int index = task.first_row + warp_;
    Row row{};
    if (index < task.rows) {
      const auto *from = reinterpret_cast<const Element *>(call_.q.row(
          task.entry->first_row + index / task.heads, task.head * task.heads + index % task.heads));
#pragma unroll
      for (int i = 0; i < Row::count; ++i) {
        row.x[i] = static_cast<float>(from[i * warp_lanes + lane_index()]) * call_.scale;
      }
    }
    return row;
  }
  /// Keeps it over its norm, in float16.
  __device__ void store_row(const Row &row) const {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < Row::count; ++i) squares += row.x[i] * row.x[i];
    squares = sum_lanes<1>(squares);
    const float norm = sqrtf(squares), inverse = norm > 0 ? 1 / norm : 0.0f;
    const int to = memory_ + Memory::queries + (warp_ * HeadDim + lane_index()) * 2;
#pragma unroll
    for (int i = 0; i < Row::count; ++i) {
      shared_at<__half>(to + i * 64) = __float2half_rn(row.x[i] * inverse);
    }
    if (lane_index() == 0) shared_at<float>(memory_ + Memory::norms + warp_ * 4) = norm;
    __syncwarp();
  }
  /// Of row t.
  __device__ float norm() const {
    return shared_at<const float>(memory_ + Memory::norms + lane_index() % 4 * 4);
  }

  /// Row t sees the positions below.
  __device__ int limit() const { return task().limits[lane_index() % 4]; }

  /// Adds up what the warps have and writes it to a part of a slot, see add_warps().
  template <class Value>
  __device__ void add_up(float reference, float weight, float *part, Value &&value) const {
    add_warps<HeadDim>(memory_, Memory::sums_row, memory_ + Memory::references, 1 + team_, warp_,
                       reference, weight, part, value);
  }

  /// The team's slot of a piece.
  __device__ float *slot_of(int piece) const {
    const std::size_t index =
        static_cast<std::size_t>(piece) * static_cast<std::size_t>(plan_.teams_of_group) +
        static_cast<std::size_t>(team_in_group());
    return call_.slots + index * Slot::floats;
  }

 protected:
  const AttendCall<S> &call_;
  const DecodePlan &plan_;
  int team_, warp_;  // of the block, of the team
  int memory_;       // offset of the team's
  int slots_;        // of the group's slots

 private:
  __device__ DecodeTeam(const AttendCall<S> &call, const DecodePlan &plan,
                        const typename Memory::Block &block)
      : call_(call),
        plan_(plan),
        team_(opaque(warp_index() / team_warps)),
        warp_(opaque(warp_index() % team_warps)),
        memory_(opaque(block.teams + team_ * Memory::team_bytes)),
        slots_(opaque(block.slots + group() * plan.slots * Memory::slot_bytes)) {}
};

}  // namespace squat::cuda
