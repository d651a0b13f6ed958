#pragma once

// Copies into shared memory that barriers count: in bulk from compute capability 9.0 on, else 16 bytes a
// lane. Who waits for the barrier finds the bytes there.

#include <cstdint>

#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Where a piece of a copy goes to, and where it comes from.
struct CopyPlace {
  void *to;
  const void *from;
};

/// A barrier in shared memory. Its phases follow each other, and a phase ends when the copy that was
/// begun in it has arrived; their parities are 0, 1, 0, ...
using CopyBarrier = std::uint64_t;

/// How often a phase's BarrierCopy arrives.
#if __CUDA_ARCH__ >= 900
inline constexpr int copy_arrivals = 1;
#else
inline constexpr int copy_arrivals = warp_lanes;
#endif

/// By one thread, before fence_barriers() and a barrier of the block. arrivals: that end a phase.
__device__ inline void init_barrier(CopyBarrier *barrier, int arrivals = copy_arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

/// By the thread that initialised barriers.
__device__ inline void fence_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

/// Arrives once for a warp, behind what it has done.
__device__ inline void arrive_at(CopyBarrier *barrier) {
  __syncwarp();
  if (lane_index() == 0) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
  }
}

/// Waits for the end of the phase of that parity.
__device__ inline void wait_for(const CopyBarrier *barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nwait_%=:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@p bra "
      "done_%=;\nbra wait_%=;\ndone_%=:\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n.reg .pred p;\nwait_%=:\nmbarrier.test_wait.parity.shared.b64 p, [%0], %1;\n@p bra "
      "done_%=;\nbra wait_%=;\ndone_%=:\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

/// Whether a lane alone copies a piece.
#if __CUDA_ARCH__ >= 900
inline constexpr bool bulk_copies = true;
#else
inline constexpr bool bulk_copies = false;
#endif

/// A phase's copies, of `bytes` bytes together, by all lanes of a warp: add() each, then end(). Pieces
/// are multiples of 16 bytes, at such addresses.
class BarrierCopy {
 public:
  __device__ BarrierCopy(CopyBarrier *barrier, int bytes) : barrier_(shared_address(barrier)) {
#if __CUDA_ARCH__ >= 900
    if (lane_index() == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier_), "r"(bytes)
                   : "memory");
    }
#else
    (void)bytes;
#endif
  }

  __device__ void add(void *to, const void *from, int bytes) const {
#if __CUDA_ARCH__ >= 900
    if (lane_index() == 0) copy_bulk(to, from, bytes);
#else
    copy_async(to, from, bytes);
#endif
  }

  /// `count` pieces, of a lane each: place(i) is where the i-th goes to and comes from.
  template <class Place>
  __device__ void add_each(int count, int bytes, Place &&place) const {
#if __CUDA_ARCH__ >= 900
    const int lane = lane_index();
    if (lane >= count) return;
    const auto [to, from] = place(lane);
    copy_bulk(to, from, bytes);
#else
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const auto [to, from] = place(i);
      copy_async(to, from, bytes);
    }
#endif
  }

  __device__ void end() const {
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier_) : "memory");
#endif
  }

 private:
#if __CUDA_ARCH__ >= 900
  __device__ void copy_bulk(void *to, const void *from, int bytes) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(from), "r"(bytes), "r"(barrier_)
        : "memory");
  }
#endif

  Word barrier_;
};

/// Waits for the others of `threads` threads; `barrier` is their name among the block's, from 1.
__device__ inline void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// Waits for all threads of the block. Twice, for tools: behind sync_threads(), compute-sanitizer's
/// racecheck takes one barrier for none for the last warp that comes to it. It costs some 30 cycles.
__device__ inline void sync_block() {
  __syncthreads();
  __syncthreads();
}

}  // namespace squat::cuda
