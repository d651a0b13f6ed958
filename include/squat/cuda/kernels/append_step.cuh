#pragma once

// A decode step: one token a sequence appended, and what was packed counted.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/pack_call.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// What a decode step cannot throw: bits of a word in device memory, which stay set.
enum StepError : std::uint32_t {
  bad_element = 1,  ///< of k or v, not finite or out of float16's range: became 0
  tail_full = 2,    ///< a token had no slot: dropped
};

/// Counts a token that a step appended; by one thread, when nobody reads the counts any more.
__device__ inline void count_step(LayerState &state, bool room, std::uint32_t *errors) {
  if (room) {
    ++state.tail;
    ++state.position;
  } else {
    atomicOr(errors, tail_full);
  }
}

/// Appends row `first_row` of k and v to the tail of every entry, and counts it. One block an entry, two
/// channels a thread at a time; 2 kv_heads HeadDim elements read once, written once as T. All threads
/// read the counts before the barrier behind which one changes them.
template <int HeadDim, class T, class S>
__global__ void append_step(const BatchEntry *batch, int kv_heads, DeviceTensor<const S> k,
                            DeviceTensor<const S> v, std::uint32_t *errors) {
  using Block = BlockLayout<HeadDim>;
  allow_next_launch();
  wait_for_launches();
  const BatchEntry entry = batch[blockIdx.x];
  LayerState &state = *entry.state;
  const ExactSlots tail = tail_slots<HeadDim>(state, kv_heads);
  const bool room = state.tail < tail.capacity;
  bool bad = false;
  const auto checked = [&](float x) {
    if (in_range(x)) return x;
    bad = true;
    return 0.0f;
  };
  if (room) {
    const int row = state.tail % 16;
    for (int i = static_cast<int>(threadIdx.x); i < kv_heads * (HeadDim / 2);
         i += static_cast<int>(blockDim.x)) {
      const int head = i / (HeadDim / 2), channel = i % (HeadDim / 2) * 2;
      std::uint16_t *block = tail.block<HeadDim>(head, state.tail);
      const S *key = k.row(entry.first_row, head) + channel,
              *value = v.row(entry.first_row, head) + channel;
      const float a = checked(load_element(key)), b = checked(load_element(key + 1));
      *reinterpret_cast<Word *>(block + Block::key(row, channel)) = word_of<T>(a, b);
      block[Block::value(row, channel)] = element_bits<T>(checked(load_element(value)));
      block[Block::value(row, channel + 1)] = element_bits<T>(checked(load_element(value + 1)));
    }
  }
  if (bad) atomicOr(errors, bad_element);
  __syncthreads();
  if (threadIdx.x == 0) count_step(state, room, errors);
}

template <int HeadDim, class T, class S>
void launch_append_step(const BatchEntry *batch, int entries, int kv_heads, DeviceTensor<const S> k,
                        DeviceTensor<const S> v, std::uint32_t *errors, cudaStream_t stream) {
  if (entries == 0) return;
  launch_behind("append of a step", append_step<HeadDim, T, S>, static_cast<unsigned>(entries), 512, 0,
                stream, launches_overlap(), batch, kv_heads, k, v, errors);
}

/// Counts what the packing kernels of the same call packed: the last to read the counts. One thread an
/// entry.
template <int Group>
__global__ void finish_call(PackCall call) {
  wait_for_launches();
  const int entry = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (entry >= call.entries) return;
  LayerState &state = *call.batch[entry].state;
  int pages = 0;
  while (due_page(state, call, pages, Group) != nullptr) ++pages;
  if (pages == 0) return;
  state.page_count += pages;
  state.paged_tokens += pages * Group;
  state.tail -= pages * Group;
  state.tail_first = (state.tail_first + pages * Group) % (state.tail_blocks * 16);
}

template <int Group>
void launch_finish_call(const PackCall &call, cudaStream_t stream) {
  if (call.entries == 0) return;
  launch_behind("end of a call", finish_call<Group>, static_cast<unsigned>((call.entries + 127) / 128),
                128, 0, stream, launches_overlap(), call);
}

}  // namespace squat::cuda
