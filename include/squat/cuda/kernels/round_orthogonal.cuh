#pragma once

// Rounding with feedback, see coding/orthogonal_rounding.hpp:
//
//   target_i = k_i - sum_{j < first} F_ij e_j,   e_i = what target_i's codes stand for - k_i,
//
// `first` the first channel of i's block. Errors take the place of the keys that are rounded. A lane
// holds Group / 32 tokens of a row, a warp a whole row. Where blocks are smaller than the block has
// warps, all of them share the sum over j and one rounds the row, with two barriers a row; else each
// warp takes rows of its own, with one barrier a block. HeadDim^2 / 2 * Group multiply-adds; F is read
// once, from the second-level cache.

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "squat/cuda/kernels/page_keys.cuh"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/store_codes.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Keys: a PageKeys.
template <class Keys, int HeadDim, int Group, int Bits>
class OrthogonalRows {
 public:
  static constexpr int warps = channel_warps(HeadDim);
  static constexpr int in_lane = Group / warp_lanes;
  /// Bits of a code in shared memory, and the word of a lane's codes.
  static constexpr int code_width = Bits <= 4 && in_lane == 4 ? 4 : 8;
  using CodeWord =
      std::conditional_t<in_lane * code_width == 32, std::uint32_t,
                         std::conditional_t<in_lane * code_width == 16, std::uint16_t, std::uint8_t>>;

  static constexpr int order_bytes = HeadDim * 4, partial_bytes = warps * Group * 4;
  static constexpr int bytes =
      order_bytes + partial_bytes + HeadDim * warp_lanes * static_cast<int>(sizeof(CodeWord));

  __device__ OrthogonalRows(Keys keys, void *memory)
      : keys_(keys),
        order_(static_cast<std::int32_t *>(memory)),
        partials_(reinterpret_cast<float *>(order_ + HeadDim)),
        codes_(reinterpret_cast<CodeWord *>(partials_ + warps * Group)) {}

  /// Rounds all rows. scale(channel, fit) is called by one lane.
  template <class Scale>
  __device__ void round(const HeadTables &head, AffineFit fit, Scale &&scale) {
    for (int i = static_cast<int>(threadIdx.x); i < HeadDim; i += warps * warp_lanes)
      order_[i] = head.order[i];
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    for (int first = 0; first < HeadDim; first += head.block) {
      const int last = first + head.block;
      if (head.block >= warps) {
        for (int i = first + warp; i < last; i += warps) {
          float feedback[in_lane] = {};
          add_feedback(head.feedback + i * HeadDim, 0, 1, first, feedback);
          round_row(order_[i], feedback, fit, scale);
        }
      } else {
        for (int i = first; i < last; ++i) {
          float feedback[in_lane] = {};
          add_feedback(head.feedback + i * HeadDim, warp, warps, first, feedback);
          for (int n = 0; n < in_lane; ++n) partial(warp)[n] = feedback[n];
          __syncthreads();
          if (warp == i % warps) {
            for (int n = 0; n < in_lane; ++n) feedback[n] = 0;
#pragma unroll
            for (int other = 0; other < warps; ++other) {
              for (int n = 0; n < in_lane; ++n) feedback[n] += partial(other)[n];
            }
            round_row(order_[i], feedback, fit, scale);
          }
          __syncthreads();
        }
      }
      __syncthreads();
    }
  }

  /// The lane's codes of a channel: of rows g + 8 j.
  __device__ void read_codes(int channel, float (&codes)[Keys::rows]) const {
    const auto *row = reinterpret_cast<const std::uint8_t *>(codes_ + channel * warp_lanes);
#pragma unroll
    for (int j = 0; j < Keys::rows; ++j) {
      const int bit = Keys::place(lane_index() / 4, j) * code_width;
      codes[j] = static_cast<float>(row[bit / 8] >> bit % 8 & ((1 << code_width) - 1));
    }
  }

 private:
  __device__ float *partial(int warp) const { return partials_ + warp * Group + lane_index() * in_lane; }
  __device__ float *row(int channel) const { return keys_.channel(channel) + lane_index() * in_lane; }

  /// feedback += sum F_j e_j over j = begin, begin + step, ... < end.
  __device__ void add_feedback(const float *F, int begin, int step, int end,
                               float (&feedback)[in_lane]) const {
    for (; begin < end; begin += step * warp_lanes) {
      const int mine = begin + step * lane_index();
      const float factor = mine < end ? F[mine] : 0.0f;
      const int channel = mine < end ? order_[mine] : 0;
      const int count = min(warp_lanes, (end - begin + step - 1) / step);
#pragma unroll 4
      for (int j = 0; j < count; ++j) {
        const float f = __shfl_sync(0xffffffffu, factor, j);
        const float *errors = row(__shfl_sync(0xffffffffu, channel, j));
#pragma unroll
        for (int n = 0; n < in_lane; ++n) feedback[n] += f * errors[n];
      }
    }
  }

  template <class Scale>
  __device__ void round_row(int channel, const float (&feedback)[in_lane], AffineFit fit,
                            Scale &&scale) {
    float *key = row(channel);
    float x[in_lane], unused = 0;
#pragma unroll
    for (int n = 0; n < in_lane; ++n) x[n] = key[n] - feedback[n];
    const HalfScale found = quantize_affine<1>(x, Bits, fit, unused);
    if (lane_index() == 0) scale(channel, found);
    const AffineRange range(found, 0);
    Word codes = 0;
#pragma unroll
    for (int n = 0; n < in_lane; ++n) {
      codes |= code_bits(x[n]) << (n * code_width);
      key[n] = range.error(key[n], x[n]);
    }
    codes_[channel * warp_lanes + lane_index()] = static_cast<CodeWord>(codes);
  }

  Keys keys_;
  std::int32_t *order_;
  float *partials_;  // [warps, Group]
  CodeWord *codes_;  // [HeadDim, 32]
};

}  // namespace squat::cuda
