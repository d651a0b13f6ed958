#pragma once

// The segments of a worker, one after the other: what attention of many query rows does with each.

#include <cstdint>

#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// For each segment of the block: what make(entry, shape, first_page, head, tile) returns attends to the
/// units that are the block's, and stores what it has found out. Work: its type. first_page: the entry's
/// first among all; tile: of the entry's query rows. By all threads of the block, or of a part of it;
/// waits for the launches before.
template <class Work, class S, class Make>
__device__ inline void visit_row_segments(const RowCall<S> &rows, const RowStart *starts, Make &&make) {
  const AttendCall<S> &call = rows.call;
  const int units = starts[call.entries].unit, worker = static_cast<int>(blockIdx.x);
  const int busy = busy_row_workers(units, starts[call.entries].segment, static_cast<int>(gridDim.x));
  const int last = worker < busy ? run_start(units, worker + 1, busy) : 0;
#pragma unroll 1
  for (int unit = worker < busy ? run_start(units, worker, busy) : 0; unit < last;) {
    const int index = find_entry(starts, call.entries, unit, &RowStart::unit);
    const BatchEntry entry = call.batch[index];
    const RowShape shape(rows, entry, starts[index].page, Work::rows, Work::step_tiles,
                         Work::page_steps);
    const int segment = (unit - starts[index].unit) / shape.units;  // of the entry
    const int first = (unit - starts[index].unit) % shape.units;
    const int end = min(shape.units, first + last - unit);
    const int head = segment / shape.tiles, tile = call.first_tile + segment % shape.tiles;
    Work work = make(entry, shape, starts[index].page, head, tile);
    wait_for_launches();  // until pages are unpacked, and nobody reads the slots of the chunk before
    const auto slot = [&](bool packed) {
      return row_slot<Work::HeadDim>(rows, Work::rows, starts[index].segment + segment, worker, packed);
    };
    // Where values of pages are rotated, what exact rows come to has a slot of its own.
    const bool apart = rows.values_are_rotated != 0;
#pragma unroll 1
    for (const bool exact : {true, false}) {
      const int before = exact ? 0 : shape.exact_units, all = exact ? shape.exact_units : shape.units;
      const int from = max(first, before), to = min(end, all);
      if (from >= to) continue;
      if (apart || from == first) work.clear();
      work.attend(exact, work.visible_begin(exact, from - before), work.visible_end(exact, to - before));
      if (apart || to == end) work.store(slot(!apart || !exact));
    }
    unit += end - first;
  }
  wait_for_launches();
}

}  // namespace squat::cuda
