#pragma once

// Attention of entries with many query rows on Hopper (compiled for sm_90a), as FlashAttention-3 does it
// (Shah et al. 2024): two warpgroups have 64 query rows each in registers (warpgroup_consumer.cuh), a
// third brings keys and values of 128 tokens after the other (warpgroup_producer.cuh).
//
//   scores [64 rows, 128 tokens] = queries keys^T      sums [64 rows, HeadDim] += weights values
//
// Keys and values are B in shared memory; weights are A as they come out of scores and move nowhere.
// Products of the next scores and of the last weights are on their way while the softmax is at work, and
// of two warpgroups the one multiplies while the other does not.
//
// Weights are powers of two of scores less a reference, as in row_softmax.cuh; their sum is a product
// with ones.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/row_call.cuh"
#include "squat/cuda/kernels/row_segments.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/kernels/warpgroup_consumer.cuh"
#include "squat/cuda/kernels/warpgroup_memory.cuh"
#include "squat/cuda/kernels/warpgroup_producer.cuh"

namespace squat::cuda {

/// A block of such warpgroups. Ruled: something becomes of scores. T: of exact rows.
template <int HeadDimension, int Group, bool Ruled, class T, class S>
struct Warpgroups {
  using Memory = GroupMemory<HeadDimension>;
  using Producer = GroupProducer<Memory, Group, Ruled, T, S>;
  using Consumer = GroupConsumer<Memory, Group, Ruled, S>;
  static constexpr int HeadDim = HeadDimension, rows = Memory::rows, threads = 3 * group_threads;
  static constexpr int step_tiles = Memory::tokens / 16, page_steps = 1;
  __host__ __device__ static constexpr int shared_bytes() { return (Memory::bytes + 127) / 128 * 128; }
};

/// Groups: Warpgroups.
template <class Groups, class S>
__global__ void __launch_bounds__(Groups::threads, 1) attend_warpgroups(const RowCall<S> rows) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Memory = typename Groups::Memory;
  extern __shared__ __align__(128) std::uint8_t row_memory[];
  const Memory memory{row_memory};
  auto *starts = reinterpret_cast<RowStart *>(row_memory + Groups::shared_bytes());
  allow_next_launch();
  if (threadIdx.x == 0) memory.init();
  memory.write_ones();
  find_row_starts(rows, Groups::rows, Groups::step_tiles, Groups::page_steps, starts);
  int met = 0;
  const auto visit = [&]<class Work>() {
    visit_row_segments<Work>(
        rows, starts, [&](const auto &...segment) { return Work(rows, memory, met, segment...); });
  };
  // Registers, of 168 a thread: most are with those who have sums.
  if (threadIdx.x >= 2 * group_threads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 104;");
    visit.template operator()<typename Groups::Producer>();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    visit.template operator()<typename Groups::Consumer>();
  }
#else
  __trap();  // nobody launches it, see DeviceLimits::by_warpgroup
#endif
}

}  // namespace squat::cuda
