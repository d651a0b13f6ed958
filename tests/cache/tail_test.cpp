// A tail in 8 bits an element: what a cache gives back of it, what attention over it is, and what it
// takes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "squat/squat.hpp"

namespace squat::test::tail_test {
namespace {

Options options_of(int head_dim, TailCoding tail) {
  Options options{.layers = 1, .query_heads = 6, .kv_heads = 2, .head_dim = head_dim};
  options.rotary = {rotary_table(1e4, head_dim)};
  options.tail = tail;
  return options;
}

/// A row of the tail in double precision: [head_dim] rotated, rounded, rotated back.
std::vector<double> rounded_row(const float *row, Index d) {
  const Index block = d & -d;
  const auto rotate = [&](const std::vector<double> &x) {
    std::vector<double> y(x.size());
    for (Index i = 0; i < d; ++i) {
      for (Index j = i / block * block; j < i / block * block + block; ++j) {
        const bool odd = __builtin_popcountll(static_cast<unsigned long long>(i & j & (block - 1))) % 2;
        y[static_cast<std::size_t>(i)] +=
            (odd ? -1 : 1) * x[static_cast<std::size_t>(j)] / std::sqrt(static_cast<double>(block));
      }
    }
    return y;
  };
  const auto turn_signs = [&](std::vector<double> x) {
    for (Index i = 0; i < d; ++i) {
      if (turns_sign(static_cast<unsigned>(i % block), static_cast<unsigned>(block))) {
        x[static_cast<std::size_t>(i)] *= -1;
      }
    }
    return x;
  };
  std::vector<double> y = rotate(turn_signs({row, row + d}));
  double largest = 0;
  for (const double x : y) largest = std::max(largest, std::abs(x));
  const auto step = static_cast<double>(static_cast<float>(half(static_cast<float>(largest / 127))));
  for (double &x : y) x = std::clamp(std::round(x / step), -127.0, 127.0) * step;
  return turn_signs(rotate(y));
}

class Tail : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(HeadDims, Tail, testing::Values(16, 48, 64, 96, 128, 256, 512));

TEST_P(Tail, InEightBitsHoldsRoundedRows) {
  const Options options = options_of(GetParam(), TailCoding::int8);
  KVCache<float, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 37, 1);
  std::fill_n(in.k.view().row(9, 1), options.head_dim, 0.0f);
  std::fill_n(in.v.view().row(11, 0), options.head_dim, 60000.0f);
  cache.append(sequence, 0, in.k.view(), in.v.view());
  const Contents rows = contents(cache, sequence);
  for (const auto &[given, kept] : {std::pair{&in.k, &rows.k}, {&in.v, &rows.v}}) {
    for (Index token = 0; token < 37; ++token) {
      for (Index head = 0; head < 2; ++head) {
        const float *row = given->view().row(token, head), *is = kept->view().row(token, head);
        const std::vector<double> expected = rounded_row(row, options.head_dim);
        double error = 0, norm = 1e-30;
        for (Index i = 0; i < options.head_dim; ++i) {
          const auto x = static_cast<double>(row[i]);
          const double of_row = token < 4                 ? x
                                : std::isnan(expected[0]) ? 0.0
                                                          : expected[static_cast<std::size_t>(i)];
          error += std::pow(static_cast<double>(is[i]) - of_row, 2);
          norm += x * x;
        }
        // A number between two steps may go either way.
        EXPECT_LT(std::sqrt(error / norm), token < 4 ? 1e-7 : 1.5e-3)
            << "token " << token << " of head " << head;
      }
    }
  }
}

TEST_P(Tail, InEightBitsIsAttendedToAsItIsGivenBack) {
  for (const bool packs : {false, true}) {
    Options options = options_of(GetParam(), TailCoding::int8);
    options.residual = 70;
    options.page_tokens = 32;
    options.statistics_tokens = packs ? 64 : 4096;
    KVCache<half, 2> cache(options);
    const SequenceId sequence = cache.add_sequence();
    Inputs<half> in(options, 143, 2);
    cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
    const Contents rows = contents(cache, sequence);
    for (const Index queries : {1, 3, 40}) {  // from the rows as they are, and by matrices
      Inputs<half> next(options, queries, 3);
      cache.attend(sequence, 0, next.q.view(), next.out.view());
      EXPECT_LT(attention_distance<half>(next.q.view(), rows.k.view(), rows.v.view(), next.out.view(),
                                         143 - queries),
                packs ? rounding_tolerance(2) : 2e-3)
          << queries << " queries";
    }
  }
}

TEST(TailOfACall, IsExactWhileTheCallLasts) {
  const Options options = options_of(64, TailCoding::int8);
  KVCache<float, 2> cache(options);
  Inputs<> in(options, 100, 4);
  cache.attend(cache.add_sequence(), 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  EXPECT_LT(attention_distance<float>(in.q.view(), in.k.view(), in.v.view(), in.out.view(), 0), 1e-5);
}

TEST(TailMemory, IsAByteAnElementAndTwoARow) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    Options options = options_of(64, tail);
    options.sinks = 0;
    KVCache<half, 2> cache(options);
    Inputs<half> in(options, 100, 5);
    cache.append(cache.add_sequence(), 0, in.k.view(), in.v.view());
    const std::size_t rows = 100 * 2 * 2;  // tokens, heads, keys and values
    EXPECT_EQ(cache.memory_report().exact, rows * (tail == TailCoding::int8 ? 64 + 2 : 2 * 64));
  }
}

TEST(TailOptions, DefaultToEightBitsWherePagesHaveFew) {
  const auto tail_of = [](auto cache) { return *cache.options().tail; };
  Options options{.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16};
  EXPECT_EQ(tail_of(KVCache<half, 2>(options)), TailCoding::int8);
  EXPECT_EQ((tail_of(KVCache<half, 2, 3>(options))), TailCoding::int8);
  EXPECT_EQ(tail_of(KVCache<half, 4>(options)), TailCoding::exact);
  EXPECT_EQ((tail_of(KVCache<half, 4, 8>(options))), TailCoding::exact);
  EXPECT_EQ(tail_of(KVCache<half, 16>(options)), TailCoding::exact);
  options.keys_have_biases = true;
  EXPECT_EQ(tail_of(KVCache<half, 2>(options)), TailCoding::exact);
  options.keys_have_biases = false;
  options.coding = Coding::plain;
  EXPECT_EQ(tail_of(KVCache<half, 2>(options)), TailCoding::exact);
  EXPECT_EQ(tail_of(KVCache<half, 2>(published_squat(options))), TailCoding::exact);
  options.tail = TailCoding::int8;
  EXPECT_EQ(tail_of(KVCache<half, 8>(options)), TailCoding::int8);
  expect_error([&] { KVCache<half, 2, 16> cache(options); }, {"tail"});
}

}  // namespace
}  // namespace squat::test::tail_test
