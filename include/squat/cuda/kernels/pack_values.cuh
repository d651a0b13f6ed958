#pragma once

// Exact values into pages.
//
// A warp packs 16 tokens of a head. A tile of exact values (rows = channels, columns = tokens) gives
// lane (g, t) the channels g, g + 8 of tokens 2t, 2t+1, 2t+8, 2t+9; all tiles together give it HeadDim /
// 8 channels of four tokens, and the eight lanes of equal t hold these tokens whole:
//
//   Hadamard rotation: butterflies over g between lanes, over the rest of a channel's number in
//   registers; sums over a token: in registers, then over the lanes of equal t; codes: their words are
//   the lane's own (store_codes.cuh).
//
// Numbers do not go through shared memory, but for those of layouts with trellis codes
// (pack_trellis.cuh): there a warp codes one token after another. A head and page reads 2 Group HeadDim
// bytes, and writes ValueBits / 16 of that and the scales.

#include <cuda_runtime.h>

#include <cstdint>

#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/hadamard_signs.cuh"
#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/pack_call.cuh"
#include "squat/cuda/kernels/pack_trellis.cuh"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/store_codes.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/byte_block.cuh"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// A lane's part of the values of 16 tokens: [channel tile, half of a tile, token].
template <int HeadDim>
struct ValueTile {
  static constexpr int tiles = HeadDim / 16, tokens = 4;

  float x[tiles][2][tokens];

  /// The column of the lane's token i.
  __device__ static int column(int i) { return lane_index() % 4 * 2 + i / 2 * 8 + i % 2; }

  template <class T>
  __device__ void load(const std::uint16_t *values) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      const uint4 words = reinterpret_cast<const uint4 *>(values)[tile * warp_lanes + lane_index()];
      const Word parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float2 pair = word_values<T>(parts[part]);
        x[tile][part % 2][part / 2 * 2] = pair.x;
        x[tile][part % 2][part / 2 * 2 + 1] = pair.y;
      }
    }
  }

  /// Of a block of a tail of bytes: rotated.
  __device__ void load_bytes(const std::uint8_t *block) {
    using Block = ByteBlock<HeadDim>;
    float steps[tokens];
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      steps[i] = __half2float(*reinterpret_cast<const __half *>(block + Block::value_step(column(i))));
    }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      const uint4 words = byte_halves(
          reinterpret_cast<const uint2 *>(block + Block::part_bytes)[tile * warp_lanes + lane_index()]);
      const Word parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float2 pair = __half22float2(as_halves(parts[part]));
        const int i = part / 2 * 2;
        x[tile][part % 2][i] = pair.x * steps[i];
        x[tile][part % 2][i + 1] = pair.y * steps[i + 1];
      }
    }
  }

  /// See rotate_hadamard().
  __device__ void rotate() {
    turn_signs();
    multiply_hadamard();
  }
  __device__ void rotate_back() {
    multiply_hadamard();
    turn_signs();
  }

  /// The squares of token i, and of its distance from `mean`.
  __device__ float2 squares(int i, const float *mean) {
    float own = 0, about_mean = 0;
    for_each_row([&](float(&row)[tokens], int channel) {
      const float distance = row[i] - mean[channel];
      own += row[i] * row[i];
      about_mean += distance * distance;
    });
    return {sum_lanes<4>(own), sum_lanes<4>(about_mean)};
  }
  __device__ void subtract(const float *mean) {
    for_each_row([&](float(&row)[tokens], int channel) {
#pragma unroll
      for (int i = 0; i < tokens; ++i) row[i] -= mean[channel];
    });
  }

  /// Codes token i in place, as quantize_symmetric() does, and returns its scale.
  template <int Bits>
  __device__ __half quantize_symmetric(int i) {
    constexpr float factors[6] = {.8f, .9f, 1.0f, 1.1f, 1.25f, 1.4f};
    constexpr float step = Bits == 1   ? 1.5958f
                           : Bits == 2 ? .9957f
                           : Bits == 3 ? .586f
                           : Bits == 4 ? .3352f
                                       : .0308f;
    constexpr float offset = static_cast<float>((1 << Bits) - 1) / 2;
    const auto code = [&](float y, float inverse) {
      return rintf(fminf(fmaxf(y * inverse + offset, 0.0f), 2 * offset));
    };
    const float squares = sum_token(i, [](float y) { return y * y; });
    const float rms = sqrtf(squares / HeadDim) + 1e-12f;
    float best = rms, least = __int_as_float(0x7f800000);
#pragma unroll
    for (int n = 0; n < 6; ++n) {
      const float scale = rms * step * factors[n], inverse = 1 / scale;
      const float error = sum_token(i, [&](float y) {
        const float difference = scale * (code(y, inverse) - offset) - y;
        return difference * difference;
      });
      if (error >= least) continue;
      least = error;
      best = scale;
    }
    const float inverse = 1 / best;
    const float products = best * sum_token(i, [&](float &y) {
                             const float old = y;
                             y = code(y, inverse);
                             return old * (y - offset);
                           });
    const float gain = fminf(fmaxf(squares / fmaxf(products, 1e-12f), .5f), 2.0f);
    return saturated_half(best * gain);
  }

  /// Codes group `group` of 32 channels of token i in place.
  __device__ HalfScale quantize_plain(int group, int i, int bits, AffineFit fit) {
    float y[4], error = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) y[n] = x[2 * group + n / 2][n % 2][i];
    const HalfScale scale = quantize_affine<4>(y, bits, fit, error);
#pragma unroll
    for (int n = 0; n < 4; ++n) x[2 * group + n / 2][n % 2][i] = y[n];
    return scale;
  }

 private:
  template <class Visit>
  __device__ void for_each_row(Visit &&visit) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
      for (int half_tile = 0; half_tile < 2; ++half_tile) {
        visit(x[tile][half_tile], tile * 16 + half_tile * 8 + lane_index() / 4);
      }
    }
  }

  __device__ void turn_signs() {
    for_each_row([&](float(&row)[tokens], int channel) {
      const float sign = hadamard_sign<HeadDim>(channel);
#pragma unroll
      for (float &number : row) number *= sign;
    });
  }

  /// Channel bits 0 to 2 are g's, bit 3 the half, the others the tile.
  __device__ void multiply_hadamard() {
    constexpr int block = HeadDim & -HeadDim;
    const float unit = 1.0f / sqrtf(static_cast<float>(block));
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < tokens; ++i) {
#pragma unroll
        for (int half_tile = 0; half_tile < 2; ++half_tile) {
          float &y = x[tile][half_tile][i];
          y *= unit;
#pragma unroll
          for (int step = 4; step < warp_lanes; step *= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, y, step);
            y = (lane_index() & step) != 0 ? other - y : y + other;
          }
        }
        butterfly(x[tile][0][i], x[tile][1][i]);
      }
    }
#pragma unroll
    for (int span = 1; span < block / 16; span *= 2) {
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        if ((tile & span) != 0) continue;
#pragma unroll
        for (int i = 0; i < 2 * tokens; ++i) {
          butterfly(x[tile][i / tokens][i % tokens], x[tile + span][i / tokens][i % tokens]);
        }
      }
    }
  }

  __device__ static void butterfly(float &low, float &high) {
    const float a = low, b = high;
    low = a + b;
    high = a - b;
  }

  template <class Term>
  __device__ float sum_token(int i, Term &&term) {
    float sum = 0;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) sum += term(x[tile][0][i]) + term(x[tile][1][i]);
    return sum_lanes<4>(sum);
  }
};

/// Whether a page's values are to be coded about the mean, as take_mean_off() says of the CPU's pages.
/// By a block of a warp for every 16 tokens, all of which get the same answer.
template <class Layout>
__device__ inline bool mean_is_near(ValueTile<Layout::HeadDim> &tile, const float *mean) {
  __shared__ float2 of_warps[Layout::token_tiles];
  constexpr float most_growth = 1.25f;
  float2 all = {0, 0};
  bool far = false;
#pragma unroll
  for (int i = 0; i < tile.tokens; ++i) {
    const float2 of_token = tile.squares(i, mean);
    far = far || of_token.y > most_growth * of_token.x;
    all = {all.x + of_token.x, all.y + of_token.y};
  }
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {  // lanes of equal t have the same tokens
    all.x += __shfl_xor_sync(0xffffffffu, all.x, step);
    all.y += __shfl_xor_sync(0xffffffffu, all.y, step);
  }
  if (lane_index() == 0) of_warps[warp_index()] = all;
  if (__syncthreads_or(far ? 1 : 0) != 0) return false;
  all = {0, 0};
  for (const float2 of_warp : of_warps) all = {all.x + of_warp.x, all.y + of_warp.y};
  return all.y < all.x;
}

/// Codes a warp's 16 tokens of symmetric values. codes: of them; scales: of the page.
template <class Layout, int Bits>
__device__ inline void code_symmetric(ValueTile<Layout::HeadDim> &tile, int step, std::uint8_t *codes,
                                      __half *scales) {
#pragma unroll
  for (int i = 0; i < tile.tokens; ++i) {
    const __half scale = tile.template quantize_symmetric<Bits>(i);
    if (lane_index() < 4) scales[value_element(step * 16 + tile.column(i))] = scale;
  }
  store_value_step<Bits, Layout::channel_tiles>(
      codes, [&](int j, int i) { return code_bits(tile.x[j / 2][j % 2][i]); });
}

/// The same of layouts with trellis codes. values: of the page.
template <class Layout, int Bits>
__device__ inline void code_in_rows(ValueTile<Layout::HeadDim> &tile, int step, std::uint8_t *values,
                                    __half *scales) {
  extern __shared__ float4 value_memory[];
  auto &coded = *reinterpret_cast<CodedValues<Layout> *>(value_memory);
  auto &rows = coded.rows();
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  coded.clear(Bits);
#pragma unroll
  for (int i = 0; i < tile.tokens; ++i) {
    constexpr bool trellis = Layout::value_codes_of(Bits) == Codes::trellis;
    __half scale;
    if constexpr (!trellis) scale = tile.template quantize_symmetric<Bits>(i);
#pragma unroll 1
    for (int of_t = 0; of_t < 4; of_t += 2) {
      const bool own = t / 2 * 2 == of_t;
      if (own) {
#pragma unroll
        for (int j = 0; j < 2 * tile.tiles; ++j) {
          const float x = tile.x[j / 2][j % 2][i];
          if constexpr (trellis) {
            rows.x[t % 2][8 * j + g] = x;
          } else {
            rows.codes[t % 2][8 * j + g] = static_cast<std::uint8_t>(code_bits(x));
          }
        }
      }
      if constexpr (trellis) {
        const TrellisFit fit = rows.template code<Bits, false>();
        scale = from_lane(fit, t % 2 * half_warp).scale.scale;
      } else {
        __syncwarp();
      }
      const int first = step * 16 + i / 2 * 8 + i % 2;
      if (own && g == 0) scales[value_element(Layout::token_row(first + t * 2))] = scale;
      coded.template add<Bits>(first + of_t * 2);
    }
  }
  coded.store(Bits, values);
}

/// The same of a page whose heads share bits, into its bytes.
template <class Layout>
__device__ inline void code_shared(ValueTile<Layout::HeadDim> &tile, int step, const SharedPlace &place,
                                   std::uint8_t *page) {
  const auto code = [&]<int Bits>() {
    if (place.value_bits != Bits) return;
    std::uint8_t *values = page + place.codes + place.key_bytes;
    auto *scales = reinterpret_cast<__half *>(values + Layout::value_bytes(Bits));
    if constexpr (Layout::trellis) {
      code_in_rows<Layout, Bits>(tile, step, values, scales);
    } else {
      code_symmetric<Layout, Bits>(
          tile, step, values + step * value_step_bytes(Bits, Layout::channel_tiles), scales);
    }
  };
  code.template operator()<1>();
  code.template operator()<2>();
  code.template operator()<3>();
  code.template operator()<4>();
}

/// Packs the values of one head and page, into the bytes of the page; by a block of a warp for every 16
/// tokens.
template <class Layout, class T>
__device__ inline void pack_page_values(const PackCall &call, const LayerState &state, int page,
                                        int head, std::uint8_t *page_bytes) {
  constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group, Bits = Layout::ValueBits;
  std::uint8_t *bytes = page_bytes;
  if constexpr (Layout::shares_bits) {
    bytes += Layout::parameters(head, call.kv_heads);
  } else {
    bytes += static_cast<long long>(head) * Layout::head_bytes(call.values);
  }
  const int step = static_cast<int>(threadIdx.x) / warp_lanes;
  const int token = page * Group + step * 16;
  const auto exact_values = [&] {
    return tail_slots<HeadDim>(state, call.kv_heads).template block<HeadDim>(head, token) +
           BlockLayout<HeadDim>::part_elements;
  };
  if constexpr (Bits == 16) {
    std::uint8_t *codes = bytes + Layout::value_codes + step * Layout::value_step_bytes;
    const std::uint16_t *values = exact_values();
    for (int i = lane_index(); i < HeadDim * 2; i += warp_lanes) {
      reinterpret_cast<uint4 *>(codes)[i] = reinterpret_cast<const uint4 *>(values)[i];
    }
  } else {
    ValueTile<HeadDim> tile;
    const bool symmetric = call.values == ValueCoding::symmetric, rotated = state.byte_tail != 0;
    if (rotated) {
      tile.load_bytes(
          tail_slots<HeadDim, ByteSlots>(state, call.kv_heads).template block<HeadDim>(head, token));
    } else {
      tile.template load<T>(exact_values());
    }
    if (symmetric && !rotated) tile.rotate();
    if (!symmetric && rotated) tile.rotate_back();
    if constexpr (Layout::KeyBits < 16) {
      const float *mean = call.codings[state.coding].heads[head].value_mean;
      if (symmetric && mean != nullptr && mean_is_near<Layout>(tile, mean)) {
        tile.subtract(mean);
        if (threadIdx.x == 0) bytes[Layout::key_scales + Layout::about_mean_byte] |= 0x80u;
      }
    }
    if constexpr (Layout::shares_bits) {
      const CodingTables &coding = call.codings[state.coding];
      const bool plain = coding.shared != 0 && !suits_basis(coding, page_bytes, call.kv_heads);
      return code_shared<Layout>(tile, step, coding.heads[head].places[plain ? 0 : 1], page_bytes);
    }
    std::uint8_t *codes = bytes + Layout::value_codes + step * Layout::value_step_bytes;
    auto *scales = reinterpret_cast<__half *>(bytes + Layout::value_scales);
    if constexpr (Layout::trellis) {
      code_in_rows<Layout, Bits>(tile, step, bytes + Layout::value_codes, scales);
    } else if (symmetric) {
      code_symmetric<Layout, Bits>(tile, step, codes, scales);
    } else {
      const bool first_lane = lane_index() < 4;
      const auto place = [&](int i) { return value_element(step * 16 + tile.column(i)); };
      auto *zeros = reinterpret_cast<__half *>(bytes + Layout::value_zeros(ValueCoding::plain));
#pragma unroll
      for (int group = 0; group < HeadDim / Layout::value_group; ++group) {
#pragma unroll
        for (int i = 0; i < tile.tokens; ++i) {
          const HalfScale scale = tile.quantize_plain(group, i, Bits, call.fit);
          if (!first_lane) continue;
          scales[group * Group + place(i)] = scale.scale;
          zeros[group * Group + place(i)] = scale.zero;
        }
      }
      store_value_step<Bits, Layout::channel_tiles>(
          codes, [&](int j, int i) { return code_bits(tile.x[j / 2][j % 2][i]); });
    }
  }
}

/// See pack_grid().
template <class Layout, class T>
__global__ void __launch_bounds__(Layout::token_tiles *warp_lanes) pack_values(PackCall call) {
  const int page = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  for_each_due_page<Layout::Group>(call, [&](const LayerState &state, std::uint8_t *bytes) {
    pack_page_values<Layout, T>(call, state, page, head, bytes);
  });
}

template <class Layout, class T>
void launch_pack_values(const PackCall &call, cudaStream_t stream) {
  if (call.entries == 0 || call.most_pages == 0) return;
  constexpr std::size_t bytes = Layout::trellis ? sizeof(CodedValues<Layout>) : 0;
  if constexpr (bytes > 0) allow_shared_bytes<pack_values<Layout, T>>(bytes);
  launch_behind("packing of values", pack_values<Layout, T>, pack_grid(call),
                Layout::token_tiles * warp_lanes, bytes, stream, launches_overlap(), call);
}

}  // namespace squat::cuda
