// Sequences on the device are truncated, shifted and removed as on the CPU, and errors are the same.

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "caches.cuh"
#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"

namespace squat::test {
namespace {

using Cache = DeviceCache<64, 32, 2, 2>;

Options small(Coding coding = Coding::subspace, TailCoding tail = TailCoding::int8) {
  return {.layers = 2,
          .query_heads = 4,
          .kv_heads = 2,
          .head_dim = 64,
          .coding = coding,
          .tail = tail,
          .sinks = 3,
          .residual = 10,
          .page_tokens = 32,
          .rotary = {rotary_table(1e3, 46)},  // an odd number of pairs
          .statistics_tokens = 60};
}

void fill(Cache &cache, SequenceId sequence, DeviceInputs &in, Index first, Index count) {
  for (int layer : {0, 1}) {
    cache.attend(sequence, layer, in.q.view(first, count), in.k.view(first, count),
                 in.v.view(first, count), in.out.view(first, count));
  }
}

/// Attention of the last token over what the cache holds.
void expect_attention(Cache &cache, SequenceId sequence, DeviceInputs &in) {
  const Contents held = device_contents(cache, sequence, 1);
  cache.attend(sequence, 1, in.q.view(0, 2), in.out.view(0, 2));
  const Tensor<float> out = in.out.read();
  EXPECT_LT(attention_distance<float>(in.host.q.view(0, 2), held.k.view(), held.v.view(),
                                      out.view().slice(0, 2), held.k.tokens - 2),
            device_tolerance);
}

class CudaSequences : public OnDevice {};

TEST_F(CudaSequences, OfACallMayBeNone) {
  Cache cache(small());
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs in(small(), 100, 4);
  fill(cache, sequence, in, 0, 100);
  const SequenceTokens none{sequence, 0};
  for (const std::span<const SequenceTokens> batch : {std::span<const SequenceTokens>(), {&none, 1}}) {
    cache.attend(batch, 0, in.q.view(0, 0), in.k.view(0, 0), in.v.view(0, 0), in.out.view(0, 0));
    cache.append(batch, 0, in.q.view(0, 0), in.k.view(0, 0), in.v.view(0, 0));
    cache.attend(batch, 0, in.q.view(0, 0), in.out.view(0, 0));
  }
  cache.check();
  EXPECT_EQ(cache.length(sequence), 100);
}

TEST_F(CudaSequences, TruncateKeepsWhatStays) {
  for (Index keep : {0, 1, 3, 4, 20, 34, 35, 36, 70, 99, 110, 159, 160}) {
    Cache cache(small());
    const SequenceId sequence = cache.add_sequence();
    DeviceInputs in(small(), 200, 4);
    fill(cache, sequence, in, 0, 160);
    const Contents before = device_contents(cache, sequence, 1);
    cache.truncate(sequence, keep);
    ASSERT_EQ(cache.length(sequence), keep);
    const Contents after = device_contents(cache, sequence, 1);
    EXPECT_TRUE(std::equal(after.k.elements.begin(), after.k.elements.end(), before.k.elements.begin()));
    EXPECT_TRUE(std::equal(after.v.elements.begin(), after.v.elements.end(), before.v.elements.begin()));
    // and goes on from there, in pieces and token by token
    fill(cache, sequence, in, 160, 20);
    for (Index token = 180; token < 200; ++token) fill(cache, sequence, in, token, 1);
    ASSERT_EQ(cache.length(sequence), keep + 40);
    expect_attention(cache, sequence, in);
  }
}

void check_shifts(TailCoding tail) {
  struct Case {
    Index first, last, by;
  };
  for (const Case &c :
       {Case{3, 20, -17}, {10, 90, -80}, {40, 45, 1000}, {0, 50, -7}, {100, 158, -58}, {60, 60, 5}}) {
    SCOPED_TRACE(testing::Message() << "tokens " << c.first << " to " << c.last);
    Cache cache(small(Coding::subspace, tail));
    const SequenceId sequence = cache.add_sequence();
    DeviceInputs in(small(), 220, 4);
    fill(cache, sequence, in, 0, 160);
    const Contents before = device_contents(cache, sequence, 1);
    cache.shift(sequence, c.first, c.last, c.by);
    const Contents after = device_contents(cache, sequence, 1);
    ASSERT_EQ(after.k.tokens, 160 - (c.last - c.first));
    const RotaryTable table = small().rotary.front();
    double difference = 0, norm = 0;
    for (Index token = 0; token < after.k.tokens; ++token) {
      const bool moved = token >= c.first;
      for (Index head = 0; head < 2; ++head) {
        const Index from = moved ? token + c.last - c.first : token;
        std::vector<float> key(before.k.view().row(from, head), before.k.view().row(from, head) + 64);
        if (moved) Turn(table, c.by).apply(key.data());
        for (std::size_t i = 0; i < key.size(); ++i) {
          const double x = static_cast<double>(after.k.view().row(token, head)[i]),
                       y = static_cast<double>(key[i]);
          difference += (x - y) * (x - y);
          norm += y * y;
          EXPECT_EQ(after.v.view().row(token, head)[i], before.v.view().row(from, head)[i]);
        }
      }
    }
    // Keys in 8 bits are rounded once more.
    EXPECT_LT(std::sqrt(difference / norm), tail == TailCoding::int8 ? 8e-3 : 1e-3);
    fill(cache, sequence, in, 160, 20);
    for (Index token = 180; token < 220; ++token) fill(cache, sequence, in, token, 1);
    expect_attention(cache, sequence, in);
  }
}

TEST_F(CudaSequences, ShiftTurnsKeysAndKeepsValues) {
  check_shifts(TailCoding::exact);
  check_shifts(TailCoding::int8);
}

TEST_F(CudaSequences, LargeValuesStayFinite) {
  Options options = small(Coding::plain);
  options.layers = 1;
  Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs in(options, 400, 7);
  for (float &x : in.host.v.elements) x = x < 0 ? -40000.0f : 40000.0f;
  in.v.write(in.host.v);
  for (const Index first : {0, 200}) {
    cache.attend(sequence, 0, in.q.view(first, 200), in.k.view(first, 200), in.v.view(first, 200),
                 in.out.view(first, 200));
  }
  for (const float x : in.out.read().elements) ASSERT_TRUE(std::abs(x) <= 65504.0f) << x;
}

TEST_F(CudaSequences, KeepTheirTokensWhenOthersGo) {
  Cache cache(small());
  DeviceInputs one(small(), 150, 2), other(small(), 150, 5);
  const SequenceId a = cache.add_sequence(), b = cache.add_sequence();
  fill(cache, a, one, 0, 150);
  fill(cache, b, other, 0, 150);
  const Contents held = device_contents(cache, b);
  cache.remove_sequence(a);
  EXPECT_THROW(cache.length(a), Error);
  const SequenceId c = cache.add_sequence();
  fill(cache, c, one, 0, 150);
  EXPECT_EQ(device_contents(cache, b), held);
  cache.remove_sequence(b);
  cache.remove_sequence(c);
  const MemoryReport report = cache.memory_report();
  EXPECT_EQ(report.pages_used, 0u);
  EXPECT_EQ(report.exact, 0u);
}

TEST_F(CudaSequences, EachLearnsForItselfWhereAsked) {
  Options options = small();
  options.learning = LearningMode::per_sequence;
  Cache cache(options);
  DeviceInputs one(options, 150, 2), other(options, 150, 5);
  const SequenceId a = cache.add_sequence(), b = cache.add_sequence();
  fill(cache, a, one, 0, 150);
  fill(cache, b, other, 0, 150);
  expect_attention(cache, a, one);
  expect_attention(cache, b, other);
  cache.remove_sequence(a);
  const SequenceId c = cache.add_sequence();
  fill(cache, c, one, 0, 150);
  expect_attention(cache, b, other);
  expect_attention(cache, c, one);
}

// ---- errors

class CudaErrors : public OnDevice {};

TEST_F(CudaErrors, ShapesThatNoKernelIsCompiledFor) {
  Options options = small();
  options.head_dim = 96;
  expect_error([&] { Cache cache(options); }, {"head_dim", "96", "64"});
  options = small();
  options.page_tokens = 64;
  expect_error([&] { Cache cache(options); }, {"page_tokens", "64", "32"});
  options = small();
  options.head_dim = 512;
  options.page_tokens = 128;
  using Large = KVCache<half, 2, 2, CudaOf<cuda::OneOf<512>, cuda::OneOf<128>>>;
  expect_error([&] { Large cache(options); }, {"page_tokens", "128", "512 channels", "64"});
}

TEST_F(CudaErrors, AFullPoolLeavesTheCacheAsItWas) {
  Options options = small(Coding::plain);
  options.max_pages = 5;
  Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs in(options, 200, 1);
  fill(cache, sequence, in, 0, 80);  // two pages a layer: the fifth is laid ready in one
  EXPECT_EQ(cache.memory_report().packed_tokens, 2 * 64);
  const Contents held = device_contents(cache, sequence, 1);
  expect_error([&] { cache.append(sequence, 1, in.k.view(80, 100), in.v.view(80, 100)); },
               {"max_pages", "5"});
  EXPECT_EQ(device_contents(cache, sequence, 1), held);
  // One page is left, whoever it was laid ready for.
  cache.append(sequence, 1, in.k.view(80, 30), in.v.view(80, 30));
  EXPECT_EQ(cache.memory_report().packed_tokens, 2 * 64 + 32);
  for (Index token = 0; token < 20; ++token) {
    cache.attend(sequence, 1, in.q.view(token, 1), in.k.view(token, 1), in.v.view(token, 1),
                 in.out.view(token, 1));
  }
  EXPECT_EQ(cache.length(sequence, 1), 130);
  expect_attention(cache, sequence, in);
  cache.truncate(sequence, 0);
  cache.append(sequence, 1, in.k.view(0, 180), in.v.view(0, 180));
  EXPECT_EQ(cache.length(sequence, 1), 180);
}

TEST_F(CudaErrors, ElementsOutOfRangeAreNamed) {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e5f}) {
    for (char which : {'q', 'k', 'v'}) {
      Cache cache(small());
      const SequenceId sequence = cache.add_sequence();
      DeviceInputs good(small(), 100, 3);
      fill(cache, sequence, good, 0, 100);
      const Contents held = device_contents(cache, sequence, 0);
      Inputs<> inputs = good.host;
      (which == 'q' ? inputs.q : which == 'k' ? inputs.k : inputs.v).view().row(3, 1)[7] = bad;
      DeviceTensorCopy<> q(inputs.q), k(inputs.k), v(inputs.v), out(inputs.out);
      expect_error([&] { cache.attend(sequence, 0, q.view(), k.view(), v.view(), out.view()); },
                   {std::string(1, which) + "[3,1,7]", "65504"});
      EXPECT_EQ(device_contents(cache, sequence, 0), held);
    }
  }
}

TEST_F(CudaErrors, ADecodeStepThatMetThemTellsLater) {
  Cache cache(small(Coding::subspace, TailCoding::exact));
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs good(small(), 101, 3);
  fill(cache, sequence, good, 0, 100);
  Tensor<float> bad = good.host.k;
  bad.view().row(100, 1)[7] = std::numeric_limits<float>::quiet_NaN();
  DeviceTensorCopy<> k(bad);
  cache.attend(sequence, 0, good.q.view(100, 1), k.view(100, 1), good.v.view(100, 1),
               good.out.view(100, 1));
  expect_error([&] { cache.check(); }, {"k or v", "finite"});
  cache.check();  // told once
  const Contents held = device_contents(cache, sequence, 0);
  EXPECT_EQ(held.k.view().row(100, 1)[7], 0.0f);
  EXPECT_EQ(held.k.view().row(100, 1)[8], good.host.k.view().row(100, 1)[8]);
}

}  // namespace
}  // namespace squat::test
