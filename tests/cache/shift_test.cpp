// After a shift, attention is that over the keys re-rotated exactly: in double precision, from what the
// cache held before. And a context that goes on after it stays as good as one that was never shifted.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::shift_test {
namespace {

struct Case {
  Coding coding;
  RotaryPairs pairs;
  int frame;
};

Options options_of(const Case &c) {
  Options options{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32, .coding = c.coding};
  options.sinks = 4;
  options.residual = 16;
  options.page_tokens = 16;
  options.statistics_tokens = 64;
  options.rotary = {rotary_table(1e3, 24, c.pairs)};
  options.tile_tokens = c.frame;
  return options;
}

/// The rows [0, first) and [last, end), the latter turned by `by` positions.
Tensor<float> shifted(const Tensor<float> &rows, Index first, Index last, Index by,
                      const RotaryTable *rotary) {
  Tensor<float> result(rows.tokens - (last - first), rows.heads, rows.head_dim);
  for (Index token = 0; token < result.tokens; ++token) {
    const bool moved = token >= first;
    for (Index head = 0; head < rows.heads; ++head) {
      const float *from = rows.view().row(moved ? token + last - first : token, head);
      float *to = result.view().row(token, head);
      std::copy(from, from + rows.head_dim, to);
      if (!moved || rotary == nullptr) continue;
      for (Index pair = 0; pair < rotary->pair_count(); ++pair) {
        const auto [a, b] = rotary->channels(pair);
        const double angle =
            static_cast<double>(by) *
            static_cast<double>(rotary->inverse_frequencies[static_cast<std::size_t>(pair)]);
        const double x = static_cast<double>(from[a]), y = static_cast<double>(from[b]);
        to[a] = static_cast<float>(x * std::cos(angle) - y * std::sin(angle));
        to[b] = static_cast<float>(x * std::sin(angle) + y * std::cos(angle));
      }
    }
  }
  return result;
}

class Shift : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Codings, Shift,
                         testing::Values(Case{Coding::plain, RotaryPairs::interleaved, 0},
                                         Case{Coding::orthogonal, RotaryPairs::halves, 32},
                                         Case{Coding::subspace, RotaryPairs::interleaved, 0},
                                         Case{Coding::subspace, RotaryPairs::interleaved, 48},
                                         Case{Coding::subspace, RotaryPairs::halves, 64}));

template <int Bits>
void check(const Case &c, TailCoding tail, Index first, Index last, Index by) {
  Options options = options_of(c);
  options.tail = tail;
  KVCache<float, Bits> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 203, 7);
  for (int layer = 0; layer < 2; ++layer) {
    cache.attend(sequence, layer, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  }
  const Contents before = contents(cache, sequence, 1);
  cache.shift(sequence, first, last, by);
  ASSERT_EQ(cache.length(sequence), 203 - (last - first));
  const Tensor<float> k = shifted(before.k, first, last, by, options.rotary.data());
  const Tensor<float> v = shifted(before.v, first, last, by, nullptr);
  const Contents after = contents(cache, sequence, 1);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < k.elements.size(); ++i) {
    difference += std::pow(static_cast<double>(k.elements[i] - after.k.elements[i]), 2);
    norm += std::pow(static_cast<double>(k.elements[i]), 2);
  }
  // Keys in 8 bits are rounded once more.
  EXPECT_LT(std::sqrt(difference / norm), tail == TailCoding::int8 ? 8e-3 : 1e-3);
  EXPECT_EQ(v.elements, after.v.elements);
  Inputs<> next(options, 3, 9);
  cache.attend(sequence, 1, next.q.view(), next.out.view());
  EXPECT_LT(attention_distance<float>(next.q.view(), k.view(), v.view(), next.out.view(), k.tokens - 3),
            rounding_tolerance(Bits));
}

TEST_P(Shift, IsAttentionOverKeysTurnedExactly) {
  for (const auto &[first, last] : {std::pair<Index, Index>{4, 20},
                                    {4, 36},
                                    {10, 11},
                                    {25, 60},
                                    {30, 33},
                                    {0, 30},
                                    {2, 70},
                                    {60, 195},
                                    {190, 203},
                                    {0, 203 - 3},
                                    {50, 50}}) {
    SCOPED_TRACE(testing::Message() << "tokens " << first << " to " << last);
    check<2>(GetParam(), TailCoding::exact, first, last, first - last);
    check<2>(GetParam(), TailCoding::int8, first, last, first - last);
    check<4>(GetParam(), TailCoding::int8, first, last, -7);
    check<16>(GetParam(), TailCoding::exact, first, last, 1000);
  }
}

TEST_P(Shift, GoesOnAsBeforeAndStandsAnyNumberOfTimes) {
  const Options options = options_of(GetParam());
  KVCache<half, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  for (unsigned round = 0; round < 6; ++round) {
    Inputs<> in(options, 90, 20 + round);
    for (int layer = 0; layer < 2; ++layer) {
      cache.attend(sequence, layer, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    }
    if (cache.length(sequence) > 150) cache.shift(sequence, 4, 64, -60);
    const Contents rows = contents(cache, sequence);
    Inputs<> next(options, 1, 50 + round);
    cache.attend(sequence, 0, next.q.view(), next.out.view());
    EXPECT_LT(attention_distance<float>(next.q.view(), rows.k.view(), rows.v.view(), next.out.view(),
                                        rows.k.tokens - 1),
              rounding_tolerance(2));
  }
  const MemoryReport report = cache.memory_report();
  cache.remove_sequence(sequence);
  EXPECT_GT(report.pages_used, 0u);
  EXPECT_EQ(cache.memory_report().pages_used, 0u) << "a page cut in two is released once for each part";
}

TEST(ShiftErrors, NameTheArgumentAndLeaveTheCache) {
  Options options = options_of({Coding::plain, RotaryPairs::interleaved, 0});
  options.rotary.clear();
  KVCache<float, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 100, 1);
  for (int layer = 0; layer < 2; ++layer) cache.append(sequence, layer, in.k.view(), in.v.view());
  const auto expect = [&](Index first, Index last, Index by, const char *name) {
    expect_error([&] { cache.shift(sequence, first, last, by); }, {name});
    EXPECT_EQ(cache.length(sequence), 100);
  };
  expect(0, 101, 0, "last");
  expect(5, 4, 0, "first");
  expect(-1, 4, 0, "first");
  expect(4, 20, -16, "by");
  cache.shift(sequence, 4, 20, 0);
  EXPECT_EQ(cache.length(sequence), 84);
}

}  // namespace
}  // namespace squat::test::shift_test
