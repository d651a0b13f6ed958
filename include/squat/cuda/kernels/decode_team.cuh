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
#include "squat/cuda/kernels/shared_memory.cuh"
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
  static constexpr int HeadDim = Layout::HeadDim;

  __device__ DecodeTeam(const AttendCall<S> &call, const DecodePlan &plan)
      : DecodeTeam(call, plan, typename Memory::Parts(plan, call.entries)) {}

  /// Before the first task; a barrier follows.
  __device__ void clear() const {
    if (thread_of_team() == 0) copies() = {.slot = slots_, .slot_parity = 0, .parts_parity = 0};
  }

  __device__ DecodeTask &task() const { return shared_at<DecodeTask>(memory_ + Memory::task); }
  __device__ DecodeCopies &copies() const { return shared_at<DecodeCopies>(memory_ + Memory::copies); }
  __device__ const DecodeTables &tables() const {
    return shared_at<DecodeTables>(block_ + Memory::head_tables);
  }
  __device__ const DecodeBlock &block() const { return shared_at<DecodeBlock>(block_ + Memory::block); }
  __device__ const WorkLine &line() const { return block().line; }
  __device__ const Stretch &stretch() const { return block().stretch; }
  __device__ Facing facing() const { return Facing(tables(), block_, memory_, 1 + team_, warp_); }
  /// The group's place in the block, and the team's in the group.
  __device__ int group() const { return team_ >> plan_.group_bits; }
  __device__ int team_in_group() const { return team_ & (plan_.teams_of_group() - 1); }
  __device__ void sync_team() const { sync_threads(1 + team_, team_threads); }
  __device__ void sync_group() const {
    if (plan_.group_bits == 0) return sync_team();
    sync_threads(1 + plan_.teams + group(), team_threads << plan_.group_bits);
  }
  __device__ static int thread_of_team() { return static_cast<int>(threadIdx.x) % team_threads; }
  /// The warp that finds out what the team has to do: teams' are on different schedulers.
  __device__ bool leads() const { return warp_ == (team_ & (team_warps - 1)); }

  /// Begins with the part of a stretch that is the group's, by the leading warp.
  __device__ void begin_stretch() const {
    const int place = static_cast<int>(blockIdx.x) - stretch().first_block;
    const WorkerRun run = line().of_worker(stretch(), place, group());
    if (lane_index() == 0) task().left = run;
    __syncwarp();
  }

  /// Goes on to what the group has left, and says whether that is anything. By all of the team; begins
  /// and ends with barriers.
  __device__ bool next_piece() const {
    sync_team();  // nobody reads the task before
    if (leads()) find_piece();
    sync_team();
    return !task().piece.own.empty();
  }

  /// The team's slot of a worker's piece.
  __device__ float *slot_of(int segment, int worker) const {
    const auto piece = static_cast<std::size_t>(line().piece(segment, stretch(), worker));
    const std::size_t index = (piece << plan_.group_bits) + static_cast<std::size_t>(team_in_group());
    return call_.slots + index * slot_floats;
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
      const auto *from = reinterpret_cast<const Element *>(call_.q.row(token_of(index), head_of(index)));
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
  /// And from here on.
  __device__ int first_seen() const { return call_.rule.first_seen(limit()); }
  /// Of row t.
  __device__ float slope() const { return task().slopes[lane_index() % 4]; }

  /// Of a row of the entry: the row of the call's tensors, and the query head.
  __device__ int token_of(int row) const { return task().token + row / call_.heads_per_kv_head; }
  __device__ int head_of(int row) const {
    const int heads = call_.heads_per_kv_head;
    return stretch().head * heads + row % heads;
  }

  /// What the warp's row has come to, of a team.
  __device__ float *found(int team) const {
    return &shared_at<float>(memory_ + (team - team_) * Memory::team_bytes + Memory::found +
                             warp_ * found_row_floats(HeadDim) * 4);
  }
  /// Adds up what the warps have, see add_warps(). rotated: of values that are, as those of rows of
  /// bytes and of symmetric pages; what the row has come to is as values of pages are. Order: which
  /// channels rows are, ChannelOrder or a PageLayout.
  template <class Order, class Value>
  __device__ void add_up(bool rotated, float reference, float weight, Value &&value) const {
    FoundRow<HeadDim> row =
        add_warps<HeadDim, Order>(memory_, Memory::sums_row, memory_ + Memory::references, 1 + team_,
                                  warp_, reference, weight, value);
    if (Memory::rotates && !rotated) rotate_quads<HeadDim>(row.sum);
    if (!Memory::rotates && rotated) rotate_quads_back<HeadDim>(row.sum);
    row.add(FoundRow<HeadDim>::read(found(team_)));
    __syncwarp();
    row.write(found(team_));
    __syncwarp();
  }

 protected:
  const AttendCall<S> &call_;
  const DecodePlan &plan_;
  int block_;        // its memory
  int team_, warp_;  // of the block, of the team
  int memory_;       // the team's
  int slots_;        // the group's

  static constexpr int slot_floats = team_rows * found_row_floats(HeadDim);

 private:
  __device__ void find_piece() const {
    WorkerRun left = task().left;
    __syncwarp();
    if (left.piece.empty()) {
      if (lane_index() == 0) task().piece.own = left.piece;
      return;
    }
    const DecodePiece piece = piece_at(call_, plan_, line(), Layout::Group, stretch().head, left);
    const BatchEntry &entry = call_.batch[piece.entry];
    const LayerState *state = entry.state;
    const int rows = call_.rows(entry);
    const int first_row = (piece.tile + call_.first_tile) * plan_.rows() + team_in_group() * team_rows;
    left.own.begin = left.piece.begin = piece.own.end;
    const int lane = lane_index(), row = min(first_row + lane % team_rows, rows - 1);
    const int limit = call_.seen(entry, state->length(), row);
    const int most = reduce_lanes<1>(limit, [](int a, int b) { return max(a, b); });
    if (lane < team_rows) {
      task().limits[lane] = limit;
      task().slopes[lane] = call_.rule.slope(head_of(row));
    }
    if (lane == 0) {
      DecodeTask &task = this->task();
      task.state = state;
      task.pages = state->pages + piece.page_first;
      task.unpacked = entry.unpacked;
      task.token = entry.first_row;
      task.first_row = first_row;
      task.rows = rows;
      task.page_count = piece.page_last - piece.page_first;
      task.all_see = call_.rule.first_seen(most);
      task.piece = piece;
      task.left = left;
    }
  }

  __device__ DecodeTeam(const AttendCall<S> &call, const DecodePlan &plan,
                        const typename Memory::Parts &parts)
      : call_(call),
        plan_(plan),
        block_(shared_base()),
        team_(opaque(warp_index() / team_warps)),
        warp_(opaque(warp_index() % team_warps)),
        memory_(opaque(block_ + parts.teams + team_ * Memory::team_bytes)),
        slots_(opaque(block_ + parts.slots + group() * plan.slots * Memory::slot_bytes)) {}
};

}  // namespace squat::cuda
