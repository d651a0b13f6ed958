// Sharing out the bits of a layer changes neither the size of its pages nor what a cache can do with
// them, and where attention says nothing every head keeps as many.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "squat/coding/moments.hpp"

namespace squat::test::allocation_test {
namespace {

Options shared_options() {
  Options options{.layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  options.residual = 32;
  options.page_tokens = 32;
  options.statistics_tokens = 200;
  options.rotary = {rotary_table(1e4, 64)};
  options.tile_tokens = 64;
  options.allocation = Allocation::layer;
  return options;
}

Inputs<> uneven(const Options &options, Index tokens, unsigned seed) {
  Inputs<> in(options, tokens, seed);
  make_uneven(in);
  return in;
}

template <class Cache>
SequenceId feed(Cache &cache, Inputs<> &in) {
  const SequenceId sequence = cache.add_sequence();
  cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
  return sequence;
}

template <int KeyBits, int ValueBits>
void expect_whole_cache() {
  const Options options = shared_options();
  constexpr Index tokens = 300;
  Inputs<> in = uneven(options, tokens, 3);
  Options by_head = options;
  by_head.allocation = Allocation::head;
  KVCache<float, KeyBits, ValueBits> cache(options), plain_cache(by_head);
  const SequenceId sequence = feed(cache, in), other = feed(plain_cache, in);
  EXPECT_EQ(cache.memory_report().packed_bits_per_element,
            plain_cache.memory_report().packed_bits_per_element);
  const Contents shared = contents(cache, sequence);
  EXPECT_NE(shared, contents(plain_cache, other)) << "bits were shared out";

  // Attention is that over what dequantize() says, of few query rows (codes) and of many (unpacked).
  for (const Index rows : {Index{1}, Index{40}}) {
    Tensor<float> out(rows, options.query_heads, options.head_dim);
    const auto q = in.q.view(tokens - rows, rows);
    cache.attend(sequence, 0, q, out.view());
    EXPECT_LT(attention_distance<float>(q, shared.k.view(), shared.v.view(), std::as_const(out).view(),
                                        tokens - rows),
              rounding_tolerance(KeyBits))
        << rows << " rows, k" << KeyBits << "v" << ValueBits;
  }

  cache.truncate(sequence, 120);  // in the middle of a page
  const Contents cut = contents(cache, sequence);
  EXPECT_TRUE(std::equal(cut.k.elements.begin(), cut.k.elements.end(), shared.k.elements.begin()));
  EXPECT_TRUE(std::equal(cut.v.elements.begin(), cut.v.elements.end(), shared.v.elements.begin()));
}

TEST(Allocation, OfALayerKeepsPagesTheirSizeAndAttentionRight) {
  expect_whole_cache<2, 2>();
  expect_whole_cache<3, 3>();
  expect_whole_cache<4, 4>();
  expect_whole_cache<2, 16>();
  expect_whole_cache<4, 8>();
}

TEST(Allocation, OfALayerDoesNotDependOnThePiecesTokensComeIn) {
  Options options = shared_options();
  options.tail = TailCoding::exact;  // rows that wait in bytes are weighed as they are
  Inputs<> in = uneven(options, 300, 5);
  KVCache<float, 2> whole(options), pieces(options);
  const SequenceId sequence = pieces.add_sequence();
  for (Index first = 0; first < 300; first += 50)
    pieces.append(sequence, 0, in.q.view(first, 50), in.k.view(first, 50), in.v.view(first, 50));
  const Contents a = contents(whole, feed(whole, in)), b = contents(pieces, sequence);
  // Sums in another order may move a scale by a last bit, and a code that lies between two.
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.k.elements.size(); ++i) {
    const auto x = static_cast<double>(a.k.elements[i]), y = static_cast<double>(b.k.elements[i]);
    difference += (x - y) * (x - y);
    norm += x * x;
  }
  EXPECT_LT(difference, 1e-5 * norm);
  EXPECT_EQ(a.v.elements, b.v.elements);
}

TEST(Allocation, IsByHeadWhereStatisticsKnowNothingOfAttention) {
  Options options = shared_options();
  Inputs<> in = uneven(options, 300, 7);
  options.keep_statistics = true;
  KVCache<float, 2> teacher(options);
  feed(teacher, in);
  auto prior = std::make_shared<Prior>(teacher.statistics());
  for (Index head : {0, 1}) {
    QueryStatistics &statistics = prior->head(0, head);
    ASSERT_TRUE(has_attention_weights(statistics));
    for (const auto sums : {&HeadSums::far_queries, &HeadSums::key_weight, &HeadSums::value_weight})
      statistics.sums(sums)[0] = 0;
    std::fill(statistics.sums(&HeadSums::weighted_moment).begin(),
              statistics.sums(&HeadSums::weighted_moment).end(), 0.0f);
  }
  options.keep_statistics = false;
  options.prior = prior;
  Options by_head = options;
  by_head.allocation = Allocation::head;
  // Keys come without queries: nothing is weighed.
  const auto fed = [&](KVCache<float, 2> cache) {
    const SequenceId sequence = cache.add_sequence();
    cache.append(sequence, 0, in.k.view(), in.v.view());
    return contents(cache, sequence);
  };
  EXPECT_EQ(fed(KVCache<float, 2>(options)), fed(KVCache<float, 2>(by_head)));
}

TEST(Allocation, OfALayerIsForSubspaceAlone) {
  Options options = shared_options();
  for (Coding coding : {Coding::plain, Coding::orthogonal}) {
    options.coding = coding;
    expect_error([&] { KVCache<float, 2> cache(options); }, {"allocation"});
  }
}

}  // namespace
}  // namespace squat::test::allocation_test
