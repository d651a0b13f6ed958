#pragma once

// A cache of the device beside the CPU's, learnt from the same prior and fed the same tokens.

#include <algorithm>
#include <memory>
#include <utility>

#include "caches.cuh"
#include "reference/inputs.hpp"
#include "reference/saved.hpp"

namespace squat::test {

/// Caches of either backend, of one head_dim, widths and kind of codes.
template <class Backend, int HeadDimension, int KeyBitCount, int ValueBitCount, Codes Kind>
struct CachePair {
  static constexpr int HeadDim = HeadDimension;
  static constexpr Codes codes = Kind;
  using Cache = KVCache<half, KeyBitCount, ValueBitCount, Backend>;
  using CpuCache = KVCache<half, KeyBitCount, ValueBitCount>;
  /// Of keys and values: codes near a tie differ, as do pages of which plain codes err as much.
  static constexpr double code_tolerance = .03;
  static constexpr double attention_tolerance = device_tolerance;  ///< of outputs
};

/// Of trellis codes of bits that heads may share. A tie is between paths of many codes there, of 1 to 3
/// bits; and beside codes of 8 bits, for whose steps queries are rounded to 16 bits, levels are up to 63
/// steps.
template <int HeadDim, int KeyBits, int ValueBits>
struct SharedTrellis
    : CachePair<CudaSharingTrellis<HeadDim>, HeadDim, KeyBits, ValueBits, Codes::trellis> {
  static constexpr double code_tolerance = .07;
  static constexpr double attention_tolerance = 3 * device_tolerance;
};

inline DeviceInputs uneven(const Options &options, Index tokens, unsigned seed) {
  Inputs<> in(options, tokens, seed);
  make_uneven(in);
  return DeviceInputs(rounded(std::move(in)));
}

/// Keys that vary where the prior's did not.
inline void turn_over(Tensor<float> &rows) {
  for (Index token = 0; token < rows.tokens; ++token) {
    for (Index head = 0; head < rows.heads; ++head) {
      float *row = rows.view().row(token, head);
      std::reverse(row, row + rows.head_dim);
      for (Index i = 0; i < rows.head_dim; i += 2) row[i] = -row[i];
    }
  }
}

template <class CpuCache>
std::shared_ptr<const Prior> prior_of(Options options) {
  options.keep_statistics = true;
  CpuCache cache(options);
  DeviceInputs in = uneven(options, 700, 11);
  const SequenceId sequence = cache.add_sequence();
  for (int layer = 0; layer < options.layers; ++layer)
    cache.append(sequence, layer, in.host.q.view(), in.host.k.view(), in.host.v.view());
  return std::make_shared<Prior>(cache.statistics());
}

/// Widths: CachePair.
template <class Widths>
Options learnt_options(Allocation allocation, int layers = 1) {
  Options options{.layers = layers, .query_heads = 8, .kv_heads = 2, .head_dim = Widths::HeadDim};
  options.residual = 32;
  options.allocation = allocation;
  options.codes = Widths::codes;
  options.rotary = {rotary_table(1e4, Widths::HeadDim)};
  options.tile_tokens = 256;
  options.prior = prior_of<typename Widths::CpuCache>(options);
  return options;
}

/// The device and the CPU, fed the same pieces of tokens: outputs are attention over what the device
/// holds, which is what the CPU does.
template <class Widths>
struct Both {
  explicit Both(const Options &options) : device(options), host(options) {
    on_device = device.add_sequence();
    on_host = host.add_sequence();
  }

  void feed(DeviceInputs &&in, int layer = 0) {
    device.append(on_device, layer, in.q.view(), in.k.view(), in.v.view());
    host.append(on_host, layer, in.host.q.view(), in.host.k.view(), in.host.v.view());
  }

  /// Tokens whose keys the prior's basis does not suit.
  void feed_turned_over(Index tokens, unsigned seed) {
    DeviceInputs in = uneven(device.options(), tokens, seed);
    turn_over(in.host.k);
    in.k.write(in.host.k);
    feed(std::move(in));
  }

  /// What either has saved, the other loads, holds and saves again.
  void check_snapshots() {
    const Bytes of_host = saved(host, on_host), of_device = saved(device, on_device);
    typename Widths::Cache other_device(device.options());
    typename Widths::CpuCache other_host(device.options());
    const SequenceId there = other_device.load(of_host), here = other_host.load(of_device);
    EXPECT_TRUE(saved(other_device, there) == of_host);
    EXPECT_TRUE(saved(other_host, here) == of_device);
    EXPECT_LT(relative_distance(device_contents(other_device, there).k, contents(host, on_host).k),
              device_tolerance);
    EXPECT_LT(relative_distance(contents(other_host, here).v, device_contents(device, on_device).v),
              device_tolerance);
  }

  void check(int layer = 0) {
    const Contents held = device_contents(device, on_device, layer);
    const Contents of_host = contents(host, on_host, layer);
    EXPECT_LT(relative_distance(held.k, of_host.k), Widths::code_tolerance);
    EXPECT_LT(relative_distance(held.v, of_host.v), Widths::code_tolerance);
    const Index length = device.length(on_device, layer);
    for (const Index rows : {Index{1}, Index{3}, Index{20}, Index{200}}) {
      DeviceInputs in = uneven(device.options(), rows, 31);
      device.attend(on_device, layer, in.q.view(), in.out.view());
      const Tensor<float> out = in.out.read();
      EXPECT_LT(attention_distance<float>(in.host.q.view(), held.k.view(), held.v.view(), out.view(),
                                          length - rows),
                Widths::attention_tolerance)
          << rows << " rows of layer " << layer;
    }
  }

  typename Widths::Cache device;
  typename Widths::CpuCache host;
  SequenceId on_device, on_host;
};

}  // namespace squat::test
