#pragma once

// Exact keys into pages, as coding/key_quantizer.hpp codes them.
//
// A block packs the keys of one head and page: HeadDim / 16 warps, of which warp w owns the channels (or
// coordinates) 16 w to 16 w + 15; above 256 channels half as many warps, each with twice as many. Of 16,
// lane (g, t) owns 2t, 2t+1, 2t+8, 2t+9 and the tokens g + 8 j, which is what its bytes of the page's
// units take (store_codes.cuh): rounding and packing stay in registers, sums over a channel's tokens go
// over the eight lanes of equal t.
//
//   y = A k in float32: 4 x Group / 8 sums a lane; of each channel k it reads 4 numbers of A and Group /
//   8 keys, 5 pieces of 16 bytes for 64 multiply-adds (Group = 128). A passes through shared memory 8
//   channels at a time, doubly buffered. 2 HeadDim^2 Group operations.
//
// Trellis codes (pack_trellis.cuh): a warp codes its channels two at a time, in shared memory.
//
// Shared memory: the keys as floats, HeadDim (Group + 4) 4 bytes, and 64 (HeadDim + 4) bytes of A, or
// what orthogonal rounding needs (round_orthogonal.cuh): 75 KiB for HeadDim = Group = 128, two blocks at
// a time; of trellis codes as much again for the rows of each warp, so one block. A head and page reads
// 2 Group HeadDim bytes, and writes KeyBits / 16 of that and the scales.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/launch_behind.cuh"
#include "squat/cuda/kernels/pack_call.cuh"
#include "squat/cuda/kernels/pack_trellis.cuh"
#include "squat/cuda/kernels/page_keys.cuh"
#include "squat/cuda/kernels/quantize_affine.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/round_orthogonal.cuh"
#include "squat/cuda/kernels/store_codes.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"
#include "squat/cuda/state/exact_slots.cuh"

namespace squat::cuda {

/// A passed through shared memory in pieces of `depth` channels.
template <int HeadDim>
struct BasisPieces {
  static constexpr int depth = 8 / tiles_of_warp(HeadDim), parts = depth / 4;
  static constexpr int stride = HeadDim + 4;
  static constexpr int floats = 2 * depth * stride;

  float *data;

  __device__ float *piece(int index) const { return data + index % 2 * (depth * stride); }

  /// Where a coordinate's numbers stand: a lane's four follow each other.
  __device__ static int place(int coordinate) {
    return coordinate / 16 * 16 + coordinate % 8 / 2 * 4 + coordinate % 16 / 8 * 2 + coordinate % 2;
  }

  /// The thread's part of piece `index`: four channels of one coordinate.
  __device__ static float4 fetch(const float *A, int index) {
    const int thread = static_cast<int>(threadIdx.x);
    return *reinterpret_cast<const float4 *>(A + thread / parts * HeadDim + index * depth +
                                             thread % parts * 4);
  }
  __device__ void put(int index, float4 part) const {
    const int thread = static_cast<int>(threadIdx.x);
    float *to = piece(index) + thread % parts * 4 * stride + place(thread / parts);
    to[0] = part.x;
    to[stride] = part.y;
    to[2 * stride] = part.z;
    to[3 * stride] = part.w;
  }
};

template <class Layout>
class PageCoder {
 public:
  static constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group, Bits = Layout::KeyBits;
  static constexpr int tiles = tiles_of_warp(HeadDim);  // of 16 channels, of a warp
  static constexpr int warps = channel_warps(HeadDim), threads = warps * warp_lanes;
  using Keys = PageKeys<HeadDim, Group, Layout::trellis>;
  using Pieces = BasisPieces<HeadDim>;
  using Rows = OrthogonalRows<Keys, HeadDim, Group, Bits>;
  using Channels = TrellisChannels<Layout>;                     // of a warp, behind the pieces
  static constexpr int rows = Keys::rows, columns = 4 * tiles;  // tokens and channels a lane owns

  /// plain_bits: of channels out of the basis.
  __device__ PageCoder(const HeadTables &head, Keys keys, void *memory, int plain_bits = Bits)
      : head_(head), keys_(keys), memory_(memory), plain_bits_(plain_bits) {}

  /// Codes the keys, in the frame they are coded in, into the head's bytes.
  __device__ void code(AffineFit fit, std::uint8_t *bytes) {
    if (head_.order != nullptr) {
      Rows orthogonal(keys_, memory_);
      orthogonal.round(head_, fit,
                       [&](int channel, HalfScale scale) { put_scale(bytes, channel, scale); });
#pragma unroll
      for (int i = 0; i < columns; ++i) orthogonal.read_codes(channel(i), x_[i]);
      basis_ = false;
    } else {
      HalfScale found[columns];
      quantize(fit, found);
      put_scales(bytes, found);
    }
    store(bytes + Layout::key_codes);
  }

  /// The same in a page whose heads share bits, of the first pass: in the basis, where all heads are
  /// coded in one space, to `gain` by how much that errs less than plain codes. page: all of its bytes,
  /// parameters: the head's.
  __device__ void code_shared(AffineFit fit, bool one_space, float *gain, std::uint8_t *page,
                              std::uint8_t *parameters) {
    HalfScale found[columns];
    if (one_space) {
      basis_ = true;
      multiply();
      const float2 errors = quantize_coordinates(fit, found);
      if (threadIdx.x == 0) *gain = head_.key_weight * (errors.y - errors.x);
    } else {
      quantize(fit, found);
    }
    put_scales(parameters, found);
    store(page + head_.places[basis_ ? 1 : 0].codes);
  }
  /// Of the second: not in the basis.
  __device__ void recode(std::uint8_t *page, std::uint8_t *parameters) {
    HalfScale found[columns];
    Errors error;
    basis_ = trellis_ = false;
    read_keys();
    quantize_columns(AffineFit::minmax, found, error);
    put_scales(parameters, found);
    store(page + head_.places[0].codes);
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / warp_lanes; }
  /// The lane's channel or coordinate i.
  __device__ static int channel(int i) {
    return tile(i) * 16 + lane_index() % 4 * 2 + i % 4 / 2 * 8 + i % 2;
  }
  __device__ static int tile(int i) { return warp() * tiles + i / 4; }
  __device__ int width(int unit) const { return basis_ ? head_.widths[unit] : plain_bits_; }
  __device__ static int unit_of(int i) {
    return tile(i) * (16 / Layout::unit) + (Layout::unit == 16 ? 0 : i % 4 / 2);
  }

  /// In the basis, or, where that errs more in the queries' metric than channels from their extremes
  /// would, in channels.
  __device__ void quantize(AffineFit fit, HalfScale (&found)[columns]) {
    basis_ = head_.to_basis != nullptr;
    if (basis_)
      multiply();
    else
      read_keys();
    if (basis_) {
      const float2 errors = quantize_coordinates(fit, found);
      if (errors.x <= errors.y) return;
      basis_ = trellis_ = false;
      fit = AffineFit::minmax;
      read_keys();
    }
    Errors error;
    quantize_columns(fit, found, error);
  }

  /// Squared errors of codes of up to 3 bits, and of all else.
  struct Errors {
    float narrow = 0, wide = 0;
  };

  /// Codes coordinates: those of up to 3 bits as trellis codes where these err less. Returns the squared
  /// error, and that of channels from their extremes.
  __device__ float2 quantize_coordinates(AffineFit fit, HalfScale (&found)[columns]) {
    Errors error;
    HalfScale of_trellis[columns];
    float narrow = 0;
    if constexpr (Layout::trellis) narrow = code_narrow(of_trellis);
    quantize_columns(fit, found, error);
    float2 errors = sum_of_block(error.narrow + error.wide, channel_error());
    if constexpr (Layout::trellis) {
      const float2 narrows = sum_of_block(narrow, error.narrow);
      trellis_ = narrows.x < narrows.y;
      if (trellis_) {
        errors.x += narrows.x - narrows.y;
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          if (is_narrow(i)) found[i] = of_trellis[i];
        }
      }
    }
    return errors;
  }

  __device__ void quantize_columns(AffineFit fit, HalfScale (&found)[columns], Errors &error) {
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      float own = 0;
      found[i] = quantize_column(x_[i], width(unit_of(i)), fit, own);
      (is_narrow(i) ? error.narrow : error.wide) += own;
    }
  }

  /// Whether column i has codes that may be trellis codes.
  __device__ bool is_narrow(int i) const {
    const int bits = width(unit_of(i));
    return bits > 0 && bits <= most_trellis_bits;
  }

  /// Makes trellis codes of the warp's coordinates of up to 3 bits, which stay. Returns this lane's part
  /// of the squared error.
  __device__ float code_narrow(HalfScale (&found)[columns]) {
    static_assert(tiles == 1);
    Channels &channels = this->channels();
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    float error = 0;
    channels.clear();
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      if (!is_narrow(i)) continue;
#pragma unroll 1
      for (int of_t = 0; of_t < 4; of_t += 2) {
        const bool own = t / 2 * 2 == of_t;
        if (own) {
#pragma unroll
          for (int j = 0; j < rows; j += 4) {
            *reinterpret_cast<float4 *>(channels.rows.x[t % 2] + Keys::place(g, j)) = {
                x_[i][j], x_[i][j + 1], x_[i][j + 2], x_[i][j + 3]};
          }
        }
        const TrellisFit fit = channels.code(width(unit_of(i)), of_t * 2 + i / 2 * 8 + i % 2);
        const TrellisFit of_row = from_lane(fit, t % 2 * half_warp);
        if (own) found[i] = of_row.scale;
        if (lane % half_warp == 0) error += fit.error;
      }
    }
    return error;
  }
  __device__ Channels &channels() const {
    auto *behind = reinterpret_cast<Channels *>(static_cast<float *>(memory_) + Pieces::floats);
    return behind[warp()];
  }

  __device__ static void put_scale(std::uint8_t *bytes, int channel, HalfScale scale) {
    reinterpret_cast<__half *>(bytes + Layout::key_scales)[key_element(channel)] = scale.scale;
    reinterpret_cast<__half *>(bytes + Layout::key_zeros)[key_element(channel)] = scale.zero;
  }
  __device__ void put_scales(std::uint8_t *bytes, HalfScale (&found)[columns]) const {
    if (threadIdx.x == 0) {  // the KeySpace and the kind of codes, see PageLayout
      if (basis_) found[0].scale = __hneg(found[0].scale);
      if (trellis_) found[1].scale = __hneg(found[1].scale);
    }
    if (lane_index() >= 4) return;
#pragma unroll
    for (int i = 0; i < columns; ++i) put_scale(bytes, channel(i), found[i]);
  }

  __device__ static HalfScale quantize_column(float (&x)[rows], int bits, AffineFit fit, float &error) {
    if (bits != 0) return quantize_affine<4>(x, bits, fit, error);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < rows; ++j) sum += x[j];
    const HalfScale mean = {saturated_half(sum_lanes<4>(sum) / Group), smallest_half()};
#pragma unroll
    for (int j = 0; j < rows; ++j) {
      const float difference = x[j] - __half2float(mean.zero);
      error += difference * difference;
    }
    return mean;
  }

  __device__ void read_keys() {
#pragma unroll
    for (int i = 0; i < columns; ++i) keys_.read(channel(i), x_[i]);
  }

  /// y = A k.
  __device__ void multiply() {
    const Pieces pieces{static_cast<float *>(memory_)};
    constexpr int count = HeadDim / Pieces::depth;
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < columns; ++i) {
#pragma unroll
      for (int j = 0; j < rows; ++j) x_[i][j] = 0;
    }
    pieces.put(0, Pieces::fetch(head_.to_basis, 0));
    __syncthreads();
#pragma unroll 1
    for (int index = 0; index < count; ++index) {
      const float4 next = Pieces::fetch(head_.to_basis, min(index + 1, count - 1));
      const float *piece = pieces.piece(index) + tile(0) * 16 + lane % 4 * 4;
#pragma unroll
      for (int k = 0; k < Pieces::depth; ++k) {
        float key[rows];
        keys_.read(index * Pieces::depth + k, key);
#pragma unroll
        for (int i = 0; i < columns; i += 4) {
          const float4 a = *reinterpret_cast<const float4 *>(piece + k * Pieces::stride + i * 4);
#pragma unroll
          for (int j = 0; j < rows; ++j) {
            x_[i][j] += a.x * key[j];
            x_[i + 1][j] += a.y * key[j];
            x_[i + 2][j] += a.z * key[j];
            x_[i + 3][j] += a.w * key[j];
          }
        }
      }
      pieces.put(index + 1, next);  // the last one is not read
      __syncthreads();
    }
  }

  /// This lane's part of the squared error in channels from their extremes, in the queries' metric. A
  /// warp takes a channel at a time.
  __device__ float channel_error() const {
    constexpr int in_lane = Group / warp_lanes;
    const auto top = static_cast<float>((1 << plain_bits_) - 1);
    float error = 0;
#pragma unroll 4
    for (int i = 0; i < 16 * tiles; ++i) {
      const int index = tile(0) * 16 + i;
      float x[in_lane];
#pragma unroll
      for (int n = 0; n < in_lane; ++n) x[n] = keys_.channel(index)[lane_index() * in_lane + n];
      error +=
          head_.metric[index] * range_error(x, AffineRange(fraction_range(extremes<1>(x), 1, top), top));
    }
    return error;
  }

  /// The sums of `a` and of `b` over the block.
  __device__ static float2 sum_of_block(float a, float b) {
    __shared__ float2 sums[warps];
    __syncthreads();  // nobody reads those before
    a = sum_lanes<1>(a);
    b = sum_lanes<1>(b);
    if (lane_index() == 0) sums[warp()] = {a, b};
    __syncthreads();
    float2 all = {0, 0};
#pragma unroll
    for (int i = 0; i < warps; ++i) all = {all.x + sums[i].x, all.y + sums[i].y};
    return all;
  }

  /// The codes of the lane's columns, units of 16 channels or of 8.
  __device__ void store(std::uint8_t *codes) const {
    std::uint8_t *unit = codes;
    for (int before = 0; before < unit_of(0); ++before) unit += Layout::key_unit_bytes(width(before));
#pragma unroll
    for (int first = 0; first < columns; first += Layout::unit / 4) {
      const int bits = width(unit_of(first));
      if (Layout::trellis && trellis_ && is_narrow(first)) {
        channels().store(unit_of(first) % (16 / Layout::unit), bits, unit);
        unit += Layout::key_unit_bytes(bits);
        continue;
      }
      const auto code = [&](int j, int i) { return code_bits(x_[first + i][j]); };
      if (Layout::shares_bits && bits == 1) store_key_unit<1, Layout::unit, Group>(unit, code);
      if ((Layout::shares_bits || Bits == 3) && bits == 3)
        store_key_unit<3, Layout::unit, Group>(unit, code);
      if (bits == 2) store_key_unit<2, Layout::unit, Group>(unit, code);
      if (bits == 4) store_key_unit<4, Layout::unit, Group>(unit, code);
      if (bits == 8) store_key_unit<8, Layout::unit, Group>(unit, code);
      unit += Layout::key_unit_bytes(bits);
    }
  }

  const HeadTables &head_;
  Keys keys_;
  void *memory_;
  int plain_bits_;
  bool basis_ = false, trellis_ = false;
  float x_[columns][rows];  // keys, coordinates, then codes
};

/// Dynamic shared memory of pack_keys.
template <class Layout>
constexpr int pack_keys_bytes(Coding coding) {
  if constexpr (Layout::KeyBits == 16) {
    return 0;
  } else {
    using Coder = PageCoder<Layout>;
    const int keys = Coder::Keys::floats * 4;
    if (coding == Coding::orthogonal) return keys + Coder::Rows::bytes;
    if (coding != Coding::subspace) return keys;
    const int pieces = keys + Coder::Pieces::floats * 4;
    if constexpr (Layout::trellis)
      return pieces + Coder::warps * static_cast<int>(sizeof(typename Coder::Channels));
    return pieces;
  }
}

/// Packs the keys of one head and page, into the bytes of the page; by a block. A function of its own,
/// so that what finds pages takes none of its registers.
template <class Layout, class T>
__device__ __noinline__ void pack_page_keys(const PackCall &call, const LayerState &state, int page,
                                            int head, std::uint8_t *page_bytes) {
  constexpr int HeadDim = Layout::HeadDim, Group = Layout::Group;
  std::uint8_t *bytes = page_bytes;
  if constexpr (Layout::shares_bits) {
    bytes += Layout::parameters(head, call.kv_heads);
  } else {
    bytes += static_cast<long long>(head) * Layout::head_bytes(call.values);
  }
  if constexpr (Layout::KeyBits == 16) {
    const ExactSlots tail = tail_slots<HeadDim>(state, call.kv_heads);
    constexpr int threads = channel_warps(HeadDim) * warp_lanes;
    for (int tile = 0; tile < Layout::token_tiles; ++tile) {
      const std::uint16_t *block = tail.block<HeadDim>(head, page * Group + tile * 16);
      for (int piece = static_cast<int>(threadIdx.x); piece < HeadDim * 2; piece += threads) {
        reinterpret_cast<uint4 *>(bytes)[tile * HeadDim * 2 + piece] =
            reinterpret_cast<const uint4 *>(block)[piece];
      }
    }
  } else {
    using Coder = PageCoder<Layout>;
    extern __shared__ float4 page_memory[];
    __shared__ float2 turn[HeadDim / 2];
    const CodingTables &coding = call.codings[state.coding];
    const HeadTables &tables = coding.heads[head];
    if constexpr (Layout::shares_bits) {
      if (call.recodes && (coding.shared == 0 || suits_basis(coding, page_bytes, call.kv_heads))) return;
    }
    const PageEntry &entry = state.pages[state.page_count + page];
    const typename Coder::Keys keys{reinterpret_cast<float *>(page_memory)};
    const bool turns = entry.base != 0;
    if (turns) make_turn(coding.tiles, -entry.base, turn);
    if (state.byte_tail != 0) {
      keys.load(tail_slots<HeadDim, ByteSlots>(state, call.kv_heads), head, page * Group);
    } else {
      keys.template load<T>(tail_slots<HeadDim>(state, call.kv_heads), head, page * Group);
      __syncthreads();
    }
    if (turns || tables.mean != nullptr) {
      keys.enter_frame(coding.tiles, turns ? turn : nullptr, tables.mean, entry.row);
      __syncthreads();
    }
    void *memory = keys.data + Coder::Keys::floats;
    if constexpr (Layout::shares_bits) {
      Coder coder(tables, keys, memory, coding.plain_key_bits);
      if (call.recodes) {
        coder.recode(page_bytes, bytes);
      } else {
        coder.code_shared(call.fit, coding.shared != 0, reinterpret_cast<float *>(page_bytes) + head,
                          page_bytes, bytes);
      }
    } else {
      Coder(tables, keys, memory).code(call.fit, bytes);
    }
  }
}

/// See pack_grid().
template <class Layout, class T>
__global__ void __launch_bounds__(channel_warps(Layout::HeadDim) * warp_lanes,
                                  Layout::HeadDim > 256 ? 1 : 256 / Layout::HeadDim)
    pack_keys(PackCall call) {
  const int page = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  for_each_due_page<Layout::Group>(call, [&](const LayerState &state, std::uint8_t *bytes) {
    pack_page_keys<Layout, T>(call, state, page, head, bytes);
  });
}

/// Throws Error where it asks for more shared memory than the device has.
template <class Layout, class T>
void launch_pack_keys(const PackCall &call, cudaStream_t stream) {
  if (call.entries == 0 || call.most_pages == 0) return;
  const auto kernel = pack_keys<Layout, T>;
  const int bytes = pack_keys_bytes<Layout>(call.coding);
  if (bytes > 0) allow_shared_bytes<pack_keys<Layout, T>>(static_cast<std::size_t>(bytes));
  const auto launch = [&](const PackCall &pass) {
    launch_behind("packing of keys", kernel, pack_grid(pass),
                  channel_warps(Layout::HeadDim) * warp_lanes, static_cast<std::size_t>(bytes), stream,
                  launches_overlap(), pass);
  };
  launch(call);
  if constexpr (Layout::shares_bits) {
    PackCall again = call;
    again.recodes = true;
    launch(again);
  }
}

}  // namespace squat::cuda
