// Attention on the device is attention over what dequantize() says the cache holds, for widths, codings
// and shapes; and a cache on the device holds what one on the CPU does.

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "caches.cuh"
#include "reference/inputs.hpp"

namespace squat::test {
namespace {

template <int HeadDimension, int GroupTokens, int KeyBitCount, int ValueBitCount, class Exact = half>
struct Widths : CacheWidths<HeadDimension, GroupTokens, KeyBitCount, ValueBitCount, Exact> {
  static constexpr int HeadDim = HeadDimension, Group = GroupTokens;
  static constexpr int KeyBits = KeyBitCount, ValueBits = ValueBitCount;
  using CpuCache = KVCache<Exact, KeyBits, ValueBits>;
};

template <class W>
class CudaAttend : public OnDevice {};

using AllWidths = testing::Types<Widths<64, 32, 2, 2>, Widths<64, 32, 3, 4>, Widths<64, 32, 16, 16>,
                                 Widths<128, 128, 2, 3>, Widths<128, 128, 4, 4>, Widths<128, 128, 8, 16>,
                                 Widths<96, 32, 3, 3, bfloat16>, Widths<576, 32, 2, 2>,
                                 Widths<512, 64, 4, 4>, Widths<512, 64, 16, 16>>;
TYPED_TEST_SUITE(CudaAttend, AllWidths);

/// The rows `before` and those of a call, one behind the other.
Tensor<float> joined(const Tensor<float> &before, const Tensor<float> &call) {
  Tensor<float> rows(before.tokens + call.tokens, call.heads, call.head_dim);
  std::copy(before.elements.begin(), before.elements.end(), rows.elements.begin());
  std::copy(call.elements.begin(), call.elements.end(), rows.view(before.tokens, call.tokens).data);
  return rows;
}

/// Feeds `pieces` of tokens to the device and to the CPU. Each piece's outputs are attention over the
/// rows that the device held before and the new ones.
template <class W>
void check_pieces(const Options &options, const std::vector<Index> &pieces, unsigned seed) {
  typename W::Cache cache(options);
  typename W::CpuCache cpu_cache(options);
  const SequenceId sequence = cache.add_sequence(), cpu_sequence = cpu_cache.add_sequence();
  Contents fed{{0, options.kv_heads, options.head_dim}, {0, options.kv_heads, options.head_dim}};
  Index past = 0;
  for (Index piece : pieces) {
    DeviceInputs in(options, piece, seed++, nearest<typename W::T>);
    fed = {joined(fed.k, in.host.k), joined(fed.v, in.host.v)};
    const Contents before = device_contents(cache, sequence);
    const Tensor<float> k = joined(before.k, in.host.k), v = joined(before.v, in.host.v);
    cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    const Tensor<float> out = in.out.read();
    EXPECT_LT(attention_distance<float>(in.host.q.view(), k.view(), v.view(), out.view(), past),
              device_tolerance)
        << options.query_heads << "/" << options.kv_heads << " at " << past << " + " << piece;
    cpu_cache.attend(cpu_sequence, 0, in.host.q.view(), in.host.k.view(), in.host.v.view(),
                     in.host.out.view());
    past += piece;
    ASSERT_EQ(cache.length(sequence), past);
    EXPECT_EQ(cache.memory_report().packed_tokens, cpu_cache.memory_report().packed_tokens);
  }
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  // Numbers near a tie are coded otherwise, a few in a thousand; more where they come from 8 bits. What
  // is learnt from statistics that differ in the last digits turns bases within a flat spectrum: then
  // the keys err as much, but not alike.
  const Contents on_device = device_contents(cache, sequence),
                 on_cpu = contents(cpu_cache, cpu_sequence);
  EXPECT_LT(relative_distance(on_device.v, on_cpu.v), .03);
  if (options.coding == Coding::plain) {
    EXPECT_LT(relative_distance(on_device.k, on_cpu.k), .02);
  }
  EXPECT_LT(relative_distance(on_device.k, fed.k), 1.1 * relative_distance(on_cpu.k, fed.k) + 1e-3);
}

/// Neighbours stand in the same rows of different tiles.
TYPED_TEST(CudaAttend, TilesOfOnePage) {
  Options options = TypeParam::options(4, 2);
  options.rotary = {rotary_table(1e4, TypeParam::HeadDim)};
  options.tile_tokens = TypeParam::Group;
  check_pieces<TypeParam>(options, {500, 1, 1, 3, 1}, 77);
}

TYPED_TEST(CudaAttend, EqualsAttentionOverDequantizedRowsAndThoseAreTheCpus) {
  std::mt19937 random(5);
  const std::array<int, 5> shared = {1, 3, 4, 8, 16};
  std::size_t shape = 0;
  for (Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    for (int rotary = 0; rotary < 3; ++rotary) {
      Options options = TypeParam::options(2 * shared[shape % shared.size()], 2);
      ++shape;
      options.coding = coding;
      options.sinks = static_cast<int>(random() % 6);
      options.residual = static_cast<int>(random() % 40);
      if (rotary > 0) {
        // All channels turn, or an odd number of pairs and some channels behind them do not.
        options.rotary = {rotary_table(1e4, TypeParam::HeadDim - 18 * (rotary - 1),
                                       rotary == 1 ? RotaryPairs::interleaved : RotaryPairs::halves)};
        if (rotary == 2) options.tile_tokens = 2 * options.page_tokens;
      }
      const Index group = options.page_tokens;
      std::vector<Index> pieces = {1, group + 50, 1, 1, 2, 37, group - 5};
      for (int i = 0; i < 5; ++i) pieces.push_back(1);
      pieces.push_back(2 * group + 3);
      check_pieces<TypeParam>(options, pieces, static_cast<unsigned>(random()));
    }
  }
}

TYPED_TEST(CudaAttend, TakesTokensOneByOneAcrossPages) {
  Options options = TypeParam::options(8, 2);
  options.rotary = {rotary_table(1e4, TypeParam::HeadDim)};
  std::vector<Index> pieces = {options.sinks + options.residual + options.page_tokens + 20};
  for (int i = 0; i < options.page_tokens + 10; ++i) pieces.push_back(1);
  typename TypeParam::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs in(options, 1000, 3);
  Index past = 0;
  for (Index piece : pieces) {
    cache.attend(sequence, 0, in.q.view(past, piece), in.k.view(past, piece), in.v.view(past, piece),
                 in.out.view(past, piece));
    past += piece;
  }
  EXPECT_EQ(cache.length(sequence), past);
  EXPECT_EQ(cache.memory_report().packed_tokens, 2 * options.page_tokens);
  const Contents held = device_contents(cache, sequence);
  cache.attend(sequence, 0, in.q.view(past - 1, 1), in.out.view(past - 1, 1));
  const Tensor<float> out = in.out.read();
  EXPECT_LT(attention_distance<float>(in.host.q.view(past - 1, 1), held.k.view(), held.v.view(),
                                      out.view().slice(past - 1, 1), past - 1),
            device_tolerance);
}

TYPED_TEST(CudaAttend, ReadOnlyAttendSeesWhatAppendLeft) {
  const Options options = TypeParam::options(6, 2);
  typename TypeParam::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  const Index tokens = 3 * options.page_tokens + 101;
  DeviceInputs in(options, tokens, 3);
  cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
  const Contents held = device_contents(cache, sequence);
  for (Index queries : {Index{1}, Index{2}, Index{7}, tokens - 10}) {
    const Index first = tokens - queries;
    cache.attend(sequence, 0, in.q.view(first, queries), in.out.view(first, queries));
    const Tensor<float> out = in.out.read();
    EXPECT_LT(attention_distance<float>(in.host.q.view(first, queries), held.k.view(), held.v.view(),
                                        out.view().slice(first, queries), first),
              device_tolerance);
  }
  EXPECT_EQ(cache.length(sequence), tokens);
}

TYPED_TEST(CudaAttend, ABatchIsEachSequenceAlone) {
  Options options = TypeParam::options(8, 2);
  options.coding = Coding::plain;
  options.layers = 2;
  typename TypeParam::Cache together(options), alone(options);
  const std::array ids = {together.add_sequence(), together.add_sequence(), together.add_sequence()};
  const std::array alone_ids = {alone.add_sequence(), alone.add_sequence(), alone.add_sequence()};
  unsigned seed = 0;
  const Index group = options.page_tokens;
  for (const std::array<Index, 3> counts :
       {std::array<Index, 3>{group + 50, 3, 31}, {1, 1, 1}, {1, 2 * group, 2}, {1, 1, 1}, {1, 1, 1}}) {
    const Index total = counts[0] + counts[1] + counts[2];
    DeviceInputs in(options, total, seed += 3);
    const std::array batch = {SequenceTokens{ids[0], counts[0]}, SequenceTokens{ids[1], counts[1]},
                              SequenceTokens{ids[2], counts[2]}};
    together.attend(batch, 1, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    DeviceTensorCopy<> out(in.host.out);
    Index row = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      alone.attend(alone_ids[i], 1, in.q.view(row, counts[i]), in.k.view(row, counts[i]),
                   in.v.view(row, counts[i]), out.view(row, counts[i]));
      row += counts[i];
      EXPECT_EQ(device_contents(together, ids[i], 1), device_contents(alone, alone_ids[i], 1));
    }
    EXPECT_LT(relative_distance(out.read().elements, in.out.read().elements), 1e-3);
  }
}

}  // namespace
}  // namespace squat::test
