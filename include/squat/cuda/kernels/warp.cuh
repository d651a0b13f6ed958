#pragma once

// What the lanes of a warp do together, and powers of two.

#include <cstdint>

#include "squat/cuda/page/fragments.cuh"

namespace squat::cuda {

/// Over the lanes whose numbers differ in the bits from FirstStep on: 4 for those of equal t (lane % 4),
/// 1 for all. Every lane gets the same bits.
template <int FirstStep, class Value, class Operation>
__device__ inline Value reduce_lanes(Value x, Operation operation) {
#pragma unroll
  for (int step = FirstStep; step < warp_lanes; step *= 2) {
    x = operation(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  return x;
}
template <int FirstStep, class Value>
__device__ inline Value sum_lanes(Value x) {
  return reduce_lanes<FirstStep>(x, [](Value a, Value b) { return a + b; });
}
template <int FirstStep>
__device__ inline float largest_lane(float x) {
  return reduce_lanes<FirstStep>(x, [](float a, float b) { return fmaxf(a, b); });
}

/// The largest over the lanes of equal t: rows of a C fragment.
__device__ inline float largest_row(float x) { return largest_lane<4>(x); }

/// The least power of two above x, 1 for 0: what x / unit < 1 needs. It stays so far inside float's
/// range that its inverse is one too.
__device__ inline float unit_above(float x) {
  const std::uint32_t exponent = __float_as_uint(x) >> 23;  // of x >= 0
  if (exponent == 0) return 1.0f;
  return __uint_as_float(min(exponent + 1, 252u) << 23);
}

/// 1 / unit, exactly.
__device__ inline float inverse_of_power(float unit) {
  return __uint_as_float((254u << 23) - __float_as_uint(unit));
}

__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / x but for the last bit.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// x of this lane and of all before it, added up.
__device__ inline std::int32_t sum_of_lanes_before(std::int32_t x) {
  for (int step = 1; step < warp_lanes; step *= 2) {
    const std::int32_t before = __shfl_up_sync(0xffffffffu, x, step);
    if (lane_index() >= step) x += before;
  }
  return x;
}

/// Reads what nothing writes meanwhile and one lane reads once, past the first-level cache.
__device__ inline uint4 read_once(const uint4 *from) {
  uint4 x;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(from));
  return x;
}

__device__ inline uint2 read_once(const uint2 *from) {
  uint2 x;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from));
  return x;
}

/// The same of what a kernel before may still have been writing when this one began.
__device__ inline uint4 read_written_once(const uint4 *from) {
  uint4 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}

/// Asks for `bytes` bytes, a multiple of 16 at such an address, to come to the second-level cache.
__device__ inline void prefetch(const void *from, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
#else
  for (int i = 0; i < bytes; i += 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const std::uint8_t *>(from) + i));
  }
#endif
}

/// Copies 16 bytes to shared memory, past the first-level cache.
__device__ inline void copy_async(void *to, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
/// Copies 8 bytes to shared memory.
__device__ inline void copy_async_8(void *to, const void *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
/// Copies `bytes` to shared memory, a multiple of 16, all lanes of a warp together.
__device__ inline void copy_async(void *to, const void *from, int bytes) {
#pragma unroll 2
  for (int i = lane_index() * 16; i < bytes; i += warp_lanes * 16) {
    copy_async(static_cast<std::uint8_t *>(to) + i, static_cast<const std::uint8_t *>(from) + i);
  }
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits for all but the `Pending` newest groups of the lane's copies, and for the other lanes.
template <int Pending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
  __syncwarp();
}

/// Programmatic dependent launch: a kernel launched so may begin before the one before it has ended.
/// That one lets it, and it waits before it reads what the other writes. Elsewhere these do nothing.
__device__ inline void allow_next_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace squat::cuda
