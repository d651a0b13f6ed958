#pragma once

// Cached tokens as rows again, for KVCache::dequantize: packed ones as their codes say, exact ones as
// they are.
//
// A block takes 32 tokens of a head's page: codes become coordinates in shared memory, then channels,
// out of the basis by A^-1 (2 HeadDim^2 operations a token), out of the mean and out of the frame; then
// the same of values. Shared memory: 2 HeadDim 33 floats, 67 KiB for HeadDim = 256.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/coding/coding.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/hadamard_signs.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/trellis_levels.cuh"
#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// What is unpacked, and where to.
template <class S>
struct DequantizeCall {
  const LayerState *state;
  const CodingTables *codings;  // by LayerState::coding
  const float *from_bases;  // A^-1 of every head, [kv_heads, HeadDim, HeadDim], [channel, coordinate]
  ValueCoding values;
  DeviceTensor<S> k, v;  // [tokens, kv_heads, HeadDim], of the whole sequence
};

/// 32 tokens of a head's page as floats in shared memory, by all threads of a block.
template <class Layout, class T>
class PageSlice {
 public:
  static constexpr int HeadDim = Layout::HeadDim;
  static constexpr int tokens = 32, stride = tokens + 1;  // no two channels' tokens in one bank
  static constexpr int floats = 2 * HeadDim * stride;

  /// page: its bytes; first: of the tokens, in the page; memory: `floats` of them.
  __device__ PageSlice(const std::uint8_t *page, const CodingTables &coding, int head, int kv_heads,
                       ValueCoding values, int first, float *memory)
      : first_(first), rows_(memory), other_(memory + HeadDim * stride) {
    if constexpr (Layout::shares_bits) {
      page_ = page + Layout::parameters(head, kv_heads);
      const bool basis = signbit(scale(Layout::key_scales, key_element(0)));
      const SharedPlace &place = coding.heads[head].places[basis ? 1 : 0];
      keys_ = page + place.codes - page_;
      values_ = keys_ + place.key_bytes;
      value_scales_ = values_ + Layout::value_bytes(place.value_bits);
      plain_key_bits_ = coding.plain_key_bits;
      value_bits_ = place.value_bits;
    } else {
      page_ = page + static_cast<long long>(head) * Layout::head_bytes(values);
    }
  }

  __device__ float at(int channel, int token) const { return rows_[channel * stride + token]; }

  /// Keys as they were before they were coded. from_basis: A^-1.
  __device__ void load_keys(const CodingTables &coding, const HeadTables &head, const float *from_basis,
                            const PageEntry &entry) {
    const bool basis = Layout::KeyBits < 16 && signbit(scale(Layout::key_scales, key_element(0)));
    fill([&](int channel, int token) { return key(head, basis, channel, token); });
    if constexpr (Layout::KeyBits < 16) {
      if (basis) {
        fill([&](int channel, int token) {
          float sum = 0;
          for (int i = 0; i < HeadDim; ++i) sum += from_basis[channel * HeadDim + i] * at(i, token);
          return sum;
        });
      }
    }
    leave_frame(coding.tiles, head.mean, entry);
  }

  __device__ void load_values(ValueCoding coding, const HeadTables &head) {
    const float *mean = Layout::values_about_mean(page_) ? head.value_mean : nullptr;
    fill([&](int channel, int token) {
      return value(coding, channel, token) + (mean != nullptr ? mean[channel] : 0.0f);
    });
    if (Layout::ValueBits < 16 && coding == ValueCoding::symmetric) rotate_back();
  }

 private:
  /// Sets every number to make(channel, token), which may read the old ones.
  template <class Make>
  __device__ void fill(Make &&make) {
    for (int i = static_cast<int>(threadIdx.x); i < HeadDim * tokens;
         i += static_cast<int>(blockDim.x)) {
      other_[i / tokens * stride + i % tokens] = make(i / tokens, i % tokens);
    }
    float *made = other_;
    other_ = rows_;
    rows_ = made;
    __syncthreads();
  }

  __device__ float scale(int offset, int element) const {
    return __half2float(reinterpret_cast<const __half *>(page_ + offset)[element]);
  }

  __device__ float exact(int offset, int channel_tile, int element, int token) const {
    const int tile = (first_ + token) / 16 * Layout::channel_tiles + channel_tile;
    return element_value<T>(
        reinterpret_cast<const std::uint16_t *>(page_ + offset)[tile * 256 + element]);
  }

  __device__ float key(const HeadTables &head, bool basis, int channel, int token) const {
    if constexpr (Layout::KeyBits == 16) {
      return exact(0, channel / 16, tile_element(token % 16, channel % 16), token);
    } else {
      const int unit = channel / Layout::unit, bits = basis ? head.widths[unit] : plain_key_bits_;
      const std::uint8_t *codes = page_ + keys_;
      for (int before = 0; before < unit; ++before) {
        codes += Layout::key_unit_bytes(basis ? head.widths[before] : plain_key_bits_);
      }
      const int at = key_element(channel);
      const auto code = [&](Codes kind, int of_token) {
        return read_code(codes, Layout::key_places(kind, bits, of_token, channel % Layout::unit));
      };
      float number = 0;
      if (bits > 0 && Layout::key_codes_of(page_, bits) == Codes::trellis) {
        number = trellis_number(bits, [&](int before) {
          return code(Codes::trellis, (first_ + token - before) & (Layout::Group - 1));
        });
      } else if (bits > 0) {
        number = static_cast<float>(code(Codes::scalar, first_ + token));
      }
      // A scale's sign may say something else.
      return scale(Layout::key_zeros, at) + fabsf(scale(Layout::key_scales, at)) * number;
    }
  }

  __device__ float value(ValueCoding coding, int channel, int token) const {
    if constexpr (Layout::ValueBits == 16) {
      return exact(Layout::value_codes, channel / 16, tile_element(channel % 16, token % 16), token);
    } else {
      const auto code_of = [&](Codes kind, int of_channel) {
        return read_code(page_ + values_,
                         Layout::value_places(kind, value_bits_, of_channel, first_ + token));
      };
      const int place = value_element(Layout::token_row(first_ + token));
      if (Layout::value_codes_of(value_bits_) == Codes::trellis) {
        const float number = trellis_number(value_bits_, [&](int before) {
          return code_of(Codes::trellis, (channel + HeadDim - before) % HeadDim);
        });
        return scale(value_scales_, place) * (number - trellis_middle);
      }
      const auto code = static_cast<float>(code_of(Codes::scalar, channel));
      if (coding == ValueCoding::symmetric) {
        const float middle = static_cast<float>((1 << value_bits_) - 1) / 2;
        return scale(value_scales_, place) * (code - middle);
      }
      const int at = channel / Layout::value_group * Layout::Group + place;
      return scale(Layout::value_zeros(coding), at) + scale(Layout::value_scales, at) * code;
    }
  }

  /// Adds the mean, turned by each token's row of the tile, and turns all by the page's base.
  __device__ void leave_frame(const TileTables &tables, const float *mean, const PageEntry &entry) {
    __shared__ float2 turn[HeadDim / 2];
    if (entry.base != 0) make_turn(tables, entry.base, turn);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tables.pairs * tokens;
         i += static_cast<int>(blockDim.x)) {
      const int pair = i / tokens, token = i % tokens;
      const int2 channels = pair_channels(tables, pair);
      float2 x = {at(channels.x, token), at(channels.y, token)};
      if (mean != nullptr) {
        const float2 centre = turn_pair(frame_angle(tables, pair, entry.row + first_ + token),
                                        {mean[channels.x], mean[channels.y]});
        x = {x.x + centre.x, x.y + centre.y};
      }
      if (entry.base != 0) x = turn_pair(turn[pair], x);
      rows_[channels.x * stride + token] = x.x;
      rows_[channels.y * stride + token] = x.y;
    }
    for (int i = static_cast<int>(threadIdx.x);
         mean != nullptr && i < (HeadDim - 2 * tables.pairs) * tokens;
         i += static_cast<int>(blockDim.x)) {
      const int channel = 2 * tables.pairs + i / tokens;
      rows_[channel * stride + i % tokens] += mean[channel];
    }
    __syncthreads();
  }

  /// See rotate_hadamard_back().
  __device__ void rotate_back() {
    constexpr int block = HeadDim & -HeadDim;
    for (int span = 1; span < block; span *= 2) {
      fill([&](int channel, int token) {
        const float own = at(channel, token), other = at(channel ^ span, token);
        return (channel & span) != 0 ? other - own : own + other;
      });
    }
    const float unit = 1.0f / sqrtf(static_cast<float>(block));
    fill([&](int channel, int token) {
      return at(channel, token) * (unit * hadamard_sign<HeadDim>(channel));
    });
  }

  const std::uint8_t *page_;  // the head's part, where its keys' scales and zeros are
  int first_;
  float *rows_, *other_;
  // Offsets from there, and widths.
  std::ptrdiff_t keys_ = Layout::key_codes, values_ = Layout::value_codes,
                 value_scales_ = Layout::value_scales;
  int plain_key_bits_ = Layout::KeyBits, value_bits_ = Layout::ValueBits;
};

/// Grid: slices of the pages' tokens, KV heads.
template <class Layout, class T, class S>
__global__ void dequantize_pages(DequantizeCall<S> call) {
  using Slice = PageSlice<Layout, T>;
  extern __shared__ float slice_memory[];
  constexpr int slices = Layout::Group / Slice::tokens, HeadDim = Layout::HeadDim;
  const int head = static_cast<int>(blockIdx.y),
            first = static_cast<int>(blockIdx.x) % slices * Slice::tokens;
  const LayerState &state = *call.state;
  const PageEntry entry = state.pages[blockIdx.x / slices];
  const CodingTables &coding = call.codings[state.coding];
  Slice slice(entry.data, coding, head, static_cast<int>(gridDim.y), call.values, first, slice_memory);
  const auto write = [&](DeviceTensor<S> to) {
    for (int i = static_cast<int>(threadIdx.x); i < HeadDim * Slice::tokens;
         i += static_cast<int>(blockDim.x)) {
      const int token = i / HeadDim, counted = first + token - entry.first;
      if (counted < 0 || counted >= entry.tokens) continue;
      store_element(to.row(entry.before + counted, head) + i % HeadDim, slice.at(i % HeadDim, token));
    }
    __syncthreads();
  };
  slice.load_keys(coding, coding.heads[head],
                  call.from_bases + static_cast<long long>(head) * HeadDim * HeadDim, entry);
  write(call.k);
  slice.load_values(call.values, coding.heads[head]);
  write(call.v);
}

/// Writes all packed tokens of a sequence and layer. pages: as many as the state counts.
template <class Layout, class T, class S>
void launch_dequantize_pages(const DequantizeCall<S> &call, int pages, int kv_heads,
                             cudaStream_t stream) {
  if (pages == 0) return;
  using Slice = PageSlice<Layout, T>;
  constexpr int bytes = Slice::floats * static_cast<int>(sizeof(float));
  const auto kernel = dequantize_pages<Layout, T, S>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "dequantize");
  const dim3 grid(static_cast<unsigned>(pages * (Layout::Group / Slice::tokens)),
                  static_cast<unsigned>(kv_heads));
  kernel<<<grid, 256, bytes, stream>>>(call);
  check(cudaGetLastError(), "dequantize");
}

/// Grid: tokens, KV heads; a thread a channel.
template <int HeadDim, class T, class S>
__global__ void dequantize_rows(ExactSlots slots, DeviceTensor<S> k, DeviceTensor<S> v, int first) {
  using Block = BlockLayout<HeadDim>;
  const int token = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int channel = static_cast<int>(threadIdx.x);
  const std::uint16_t *block = slots.block<HeadDim>(head, token);
  store_element(k.row(first + token, head) + channel,
                element_value<T>(block[Block::key(token % 16, channel)]));
  store_element(v.row(first + token, head) + channel,
                element_value<T>(block[Block::value(token % 16, channel)]));
}

/// Writes the first `count` exact tokens to those from `first` on.
template <int HeadDim, class T, class S>
void launch_dequantize_rows(ExactSlots slots, int count, int kv_heads, DeviceTensor<S> k,
                            DeviceTensor<S> v, int first, cudaStream_t stream) {
  if (count == 0) return;
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(kv_heads));
  dequantize_rows<HeadDim, T, S><<<grid, HeadDim, 0, stream>>>(slots, k, v, first);
  check(cudaGetLastError(), "dequantize");
}

}  // namespace squat::cuda
