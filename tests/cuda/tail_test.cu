// Tails in 8 bits an element on the device: what a cache gives back of them, and what attention over
// them is, a step's, a few tokens' and many's.

#include <algorithm>
#include <cmath>
#include <vector>

#include "caches.cuh"
#include "reference/inputs.hpp"

namespace squat::test {
namespace {

Options options_of(int head_dim, int page_tokens) {
  return {.layers = 1,
          .query_heads = 6,
          .kv_heads = 2,
          .head_dim = head_dim,
          .tail = TailCoding::int8,
          .residual = 70,
          .page_tokens = page_tokens,
          .rotary = {rotary_table(1e4, head_dim)},
          .statistics_tokens = 100};
}

template <int HeadDimension, int GroupTokens, int KeyBits, int ValueBits, class Rows>
struct Shape {
  static constexpr int HeadDim = HeadDimension, Group = GroupTokens;
  using T = Rows;
  using Cache = DeviceCache<HeadDim, Group, KeyBits, ValueBits, T>;
  static Options options() { return options_of(HeadDim, Group); }
};

template <class Shape>
class CudaTail : public OnDevice {};
using Shapes = testing::Types<Shape<64, 32, 2, 2, half>, Shape<64, 32, 3, 4, half>,
                              Shape<128, 128, 4, 4, half>, Shape<96, 32, 3, 3, bfloat16>>;
TYPED_TEST_SUITE(CudaTail, Shapes);

/// Tokens whose magnitudes are far apart.
void spread(Inputs<> &in) {
  for (Index token = 0; token < in.k.tokens; ++token) {
    const float factor = std::pow(10.0f, static_cast<float>(token % 7 - 3));
    for (Index head = 0; head < in.k.heads; ++head) {
      float *value = in.v.view().row(token, head);
      for (Index i = 0; i < in.v.head_dim; ++i) value[i] *= factor;
    }
  }
}

TYPED_TEST(CudaTail, HoldsWhatTheCpuHolds) {
  const Options options = TypeParam::options();
  typename TypeParam::Cache cache(options);
  KVCache<typename TypeParam::T, 2> on_cpu(options);
  DeviceInputs in(options, 90, 1, nearest<typename TypeParam::T>);
  const SequenceId sequence = cache.add_sequence(), same = on_cpu.add_sequence();
  Index first = 0;
  for (const Index count : {3, 40, 1, 1, 45}) {  // rows of calls, and of steps
    cache.append(sequence, 0, in.k.view(first, count), in.v.view(first, count));
    on_cpu.append(same, 0, in.host.k.view().slice(first, count), in.host.v.view().slice(first, count));
    first += count;
  }
  const Contents is = device_contents(cache, sequence), expected = contents(on_cpu, same);
  for (const auto &[a, b] : {std::pair{&is.k, &expected.k}, {&is.v, &expected.v}}) {
    EXPECT_LT(relative_distance(*a, *b), 5e-4);  // a number between two steps may go either way
  }
}

/// Steps, few and many queries over a sequence of `length` tokens.
template <class Cache>
void expect_attention_to_contents(const Options &options, Index length) {
  Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs in(options, length, 2);
  spread(in.host);
  in.v.write(in.host.v);
  cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  const Contents held = device_contents(cache, sequence);
  for (const Index queries : {1, 3, 150}) {
    if (queries > length) continue;
    DeviceInputs next(options, queries, 3);
    cache.attend(sequence, 0, next.q.view(), next.out.view());
    const Tensor<float> out = next.out.read();
    EXPECT_LT(attention_distance<float>(next.host.q.view(), held.k.view(), held.v.view(), out.view(),
                                        length - queries),
              device_tolerance)
        << queries << " queries, " << length << " tokens";
  }
}

TYPED_TEST(CudaTail, IsAttendedToAsItIsGivenBack) {
  Options options = TypeParam::options();
  for (const ValueCoding values : {ValueCoding::plain, ValueCoding::symmetric}) {
    options.values = values;
    for (const Index length : {5, 20, 69, 143, 300}) {
      expect_attention_to_contents<typename TypeParam::Cache>(options, length);
    }
  }
}

TYPED_TEST(CudaTail, OfACallIsExactWhileItLasts) {
  const Options options = TypeParam::options();
  for (const Index tokens : {2, 9, 200}) {
    typename TypeParam::Cache cache(options);
    DeviceInputs in(options, tokens, 4, nearest<typename TypeParam::T>);
    cache.attend(cache.add_sequence(), 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    const Tensor<float> out = in.out.read();
    EXPECT_LT(
        attention_distance<float>(in.host.q.view(), in.host.k.view(), in.host.v.view(), out.view(), 0),
        device_tolerance)
        << tokens;
  }
}

TYPED_TEST(CudaTail, BecomesThePagesThatACallAtOnceWouldMake) {
  const Options options = TypeParam::options();
  constexpr Index tokens = 4 + 100 + 70 + 2 * TypeParam::Group;
  DeviceInputs in(options, tokens, 5);
  std::vector<Contents> held;
  for (const Index piece : {tokens, Index{1}, Index{13}}) {
    typename TypeParam::Cache cache(options);
    const SequenceId sequence = cache.add_sequence();
    for (Index first = 0; first < tokens; first += piece) {
      const Index count = std::min(piece, tokens - first);
      cache.attend(sequence, 0, in.q.view(first, count), in.k.view(first, count),
                   in.v.view(first, count), in.out.view(first, count));
    }
    held.push_back(device_contents(cache, sequence));
  }
  for (const Contents &other : held) {
    // Statistics are summed in another order, and may lead to codes that differ here and there.
    EXPECT_LT(relative_distance(other.k, held[0].k), .05);
    EXPECT_EQ(other.v.elements, held[0].v.elements);
  }
}

/// The rows that a shift put aside, where those of a later call that have no slot are taken next: of a
/// block of 16 tokens all is copied, and attended to where tokens are.
TYPED_TEST(CudaTail, OfFewTokensInABlockThatWasUsedForOtherThings) {
  const Options options = TypeParam::options();
  for (Index tokens = 1; tokens < TypeParam::Group; tokens += 3) {
    SCOPED_TRACE(testing::Message() << 100 + tokens);
    typename TypeParam::Cache cache(options);
    const SequenceId sequence = cache.add_sequence();
    DeviceInputs in(options, 100, 7), more(options, tokens, 8), step(options, 1, 9);
    cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
    cache.shift(sequence, 0, 0, 0);
    cache.append(sequence, 0, more.k.view(), more.v.view());
    cache.append(sequence, 0, step.k.view(), step.v.view());
    const Contents held = device_contents(cache, sequence);
    cache.attend(sequence, 0, step.q.view(), step.out.view());
    const Tensor<float> out = step.out.read();
    EXPECT_LT(attention_distance<float>(step.host.q.view(), held.k.view(), held.v.view(), out.view(),
                                        100 + tokens),
              device_tolerance);
  }
}

TEST(CudaTailMemory, IsAByteAnElementAndTwoARow) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  std::size_t bytes[2];
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    Options options = options_of(64, 32);
    options.sinks = 0;
    options.tail = tail;
    DeviceCache<64, 32, 2, 2> cache(options);
    DeviceInputs in(options, 64, 6);
    cache.append(cache.add_sequence(), 0, in.k.view(), in.v.view());
    bytes[tail == TailCoding::int8] = cache.memory_report().exact;
  }
  EXPECT_EQ(bytes[0] - bytes[1], 64 * 2 * 2 * (2 * 64 - 66));  // tokens, heads, keys and values
}

}  // namespace
}  // namespace squat::test
