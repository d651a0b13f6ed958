// Layers that share one budget: each has pages of its own size, all of them learn before any packs, and
// nothing else of a cache changes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::model_allocation_test {
namespace {

constexpr Index tokens = 300, page_tokens = 32, learnt_tokens = 200;

Options model_options(int layers) {
  Options options{.layers = layers, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  options.residual = 32;
  options.page_tokens = page_tokens;
  options.statistics_tokens = learnt_tokens;
  options.rotary = {rotary_table(1e4, 64)};
  options.tile_tokens = 64;
  options.allocation = Allocation::model;
  return options;
}

/// Inputs of every layer. Errors matter less from layer to layer: more of each output is the mean of its
/// values, which averages them away.
std::vector<Inputs<>> layered(const Options &options, Index count = tokens, unsigned seed = 3) {
  std::vector<Inputs<>> layers;
  for (int layer = 0; layer < options.layers; ++layer) {
    Inputs<> &in = layers.emplace_back(options, count, seed + static_cast<unsigned>(layer));
    for (Tensor<float> *rows : {&in.q, &in.k, &in.v}) {
      for (Index token = 0; token < count; ++token) {
        for (Index head = 0; head < rows->heads; ++head) {
          float *row = rows->view().row(token, head);
          for (Index i = 0; i < rows->head_dim; ++i) {
            row[i] *= 1.5f * std::exp(-.03f * static_cast<float>(i));
            if (rows == &in.v) row[i] += static_cast<float>(layer);
          }
        }
      }
    }
  }
  return layers;
}

template <class Cache>
void append(Cache &cache, SequenceId sequence, int layer, Inputs<> &in, Index first, Index count) {
  cache.append(sequence, layer, in.q.view(first, count), in.k.view(first, count),
               in.v.view(first, count));
}

/// All but the last token, with which every layer learns, and that one, with which it packs.
template <class Cache>
SequenceId feed(Cache &cache, std::vector<Inputs<>> &in, Index count = tokens) {
  const SequenceId sequence = cache.add_sequence();
  for (const auto &[first, part] : {std::pair{Index{0}, count - 1}, {count - 1, Index{1}}}) {
    for (int layer = 0; layer < cache.options().layers; ++layer)
      append(cache, sequence, layer, in[static_cast<std::size_t>(layer)], first, part);
  }
  return sequence;
}

template <class Cache>
std::vector<std::size_t> page_sizes(const Cache &cache) {
  std::vector<std::size_t> sizes;
  for (int layer = 0; layer < cache.options().layers; ++layer) sizes.push_back(cache.page_bytes(layer));
  return sizes;
}

/// Where all layers have as many bytes.
std::vector<std::size_t> equal_sizes(Options options) {
  options.allocation = Allocation::head;
  options.prior = nullptr;
  return page_sizes(KVCache<float, 2>(options));
}

std::size_t sum(const std::vector<std::size_t> &sizes) {
  std::size_t total = 0;
  for (const std::size_t size : sizes) total += size;
  return total;
}

TEST(ModelAllocation, GivesLayersSizesThatAddUpToTheBudget) {
  for (const Codes codes : {Codes::scalar, Codes::trellis}) {
    Options options = model_options(3);
    options.codes = codes;
    std::vector<Inputs<>> in = layered(options);
    KVCache<float, 2> cache(options);
    const std::vector<std::size_t> equal = equal_sizes(options);
    EXPECT_EQ(page_sizes(cache), equal) << "before anything is learnt";
    const SequenceId sequence = feed(cache, in);
    const std::vector<std::size_t> sizes = page_sizes(cache);
    EXPECT_GT(sizes[0], equal[0]);
    EXPECT_LT(sizes[2], equal[2]);
    EXPECT_LE(sum(sizes), sum(equal));
    EXPECT_GT(sum(sizes), sum(equal) - equal[0] / 8) << "but for what fits no layer";

    const MemoryReport report = cache.memory_report();
    const Index pages = (tokens - options.sinks - options.residual) / page_tokens;
    EXPECT_EQ(report.packed_tokens, 3 * pages * page_tokens);
    EXPECT_EQ(report.pages_used, static_cast<std::size_t>(pages) * sum(sizes));
    const double elements = 3.0 * 2 * page_tokens * options.kv_heads * options.head_dim;
    EXPECT_DOUBLE_EQ(report.packed_bits_per_element, 8.0 * static_cast<double>(sum(sizes)) / elements);
    cache.remove_sequence(sequence);
    EXPECT_EQ(cache.memory_report().pages_used, 0u);
  }
}

template <int KeyBits, int ValueBits>
void expect_attention_over_what_is_stored(const Options &options) {
  const int layers = options.layers;
  std::vector<Inputs<>> in = layered(options);
  KVCache<float, KeyBits, ValueBits> cache(options);
  const SequenceId first = feed(cache, in), second = feed(cache, in, 250);
  for (int layer = 0; layer < layers; ++layer) {
    SCOPED_TRACE(std::to_string(layer) + " of " + std::to_string(layers));
    Inputs<> &own = in[static_cast<std::size_t>(layer)];
    const Contents held = contents(cache, first, layer);
    const Contents exact{own.k, own.v};
    EXPECT_NE(held, exact) << "it is packed";
    // Of few query rows (codes) and of many (unpacked).
    for (const Index rows : {Index{1}, Index{40}}) {
      Tensor<float> out(rows, options.query_heads, options.head_dim);
      const auto q = own.q.view(tokens - rows, rows);
      cache.attend(first, layer, q, out.view());
      EXPECT_LT(attention_distance<float>(q, held.k.view(), held.v.view(), std::as_const(out).view(),
                                          tokens - rows),
                rounding_tolerance(KeyBits));
    }
    // A second sequence's pages are coded alike.
    const Contents again = contents(cache, second, layer);
    const auto packed = static_cast<std::size_t>((4 + 6 * page_tokens) * 2 * options.head_dim);
    EXPECT_TRUE(std::equal(again.k.elements.begin(),
                           again.k.elements.begin() + static_cast<std::ptrdiff_t>(packed),
                           held.k.elements.begin()));
  }
}

TEST(ModelAllocation, KeepsAttentionRight) {
  for (const int layers : {2, 3}) {
    for (const Codes codes : {Codes::scalar, Codes::trellis}) {
      Options options = model_options(layers);
      options.codes = codes;
      expect_attention_over_what_is_stored<2, 2>(options);
      expect_attention_over_what_is_stored<3, 3>(options);
    }
    expect_attention_over_what_is_stored<4, 2>(model_options(layers));
    expect_attention_over_what_is_stored<2, 16>(model_options(layers));
  }
}

TEST(ModelAllocation, HoldsPlainPagesWhereEveryWidthTakesAWholeBlock) {
  Options options = model_options(3);
  options.head_dim = options.page_tokens = 16;
  options.rotary = {rotary_table(1e4, 16)};
  // Keys unlike those that are learnt from are coded plainly.
  std::vector<Inputs<>> in = layered(options);
  for (Inputs<> &own : in) {
    for (Index token = learnt_tokens; token < tokens; ++token) {
      for (Index head = 0; head < 2; ++head)
        std::reverse(own.k.view().row(token, head), own.k.view().row(token, head) + 16);
    }
  }
  KVCache<float, 2> cache(options);
  const SequenceId sequence = feed(cache, in);
  for (int layer = 0; layer < 3; ++layer) {
    Inputs<> &own = in[static_cast<std::size_t>(layer)];
    const Contents held = contents(cache, sequence, layer);
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < held.v.elements.size(); ++i) {
      difference += std::pow(static_cast<double>(held.v.elements[i] - own.v.elements[i]), 2);
      norm += std::pow(static_cast<double>(own.v.elements[i]), 2);
    }
    EXPECT_LT(difference, norm) << "no page runs into the next";
  }
}

TEST(ModelAllocation, WaitsForTheLastLayer) {
  Options options = model_options(3);
  options.tail = TailCoding::exact;
  std::vector<Inputs<>> in = layered(options);
  KVCache<float, 2> together(options), one_ahead(options);
  const SequenceId expected = feed(together, in), sequence = one_ahead.add_sequence();
  append(one_ahead, sequence, 1, in[1], 0, 250);
  append(one_ahead, sequence, 1, in[1], 250, 49);
  append(one_ahead, sequence, 0, in[0], 0, 299);
  append(one_ahead, sequence, 2, in[2], 0, learnt_tokens - 1);
  EXPECT_EQ(one_ahead.memory_report().packed_tokens, 0);
  EXPECT_EQ(page_sizes(one_ahead), equal_sizes(options));
  const Contents waiting = contents(one_ahead, sequence, 1);
  EXPECT_TRUE(
      std::equal(waiting.k.elements.begin(), waiting.k.elements.end(), in[1].k.elements.begin()));
  append(one_ahead, sequence, 2, in[2], learnt_tokens - 1, 100);
  EXPECT_EQ(page_sizes(one_ahead), page_sizes(together));
  EXPECT_EQ(one_ahead.memory_report().packed_tokens, 0) << "every layer packs in its next call";
  for (const int layer : {2, 0, 1})
    append(one_ahead, sequence, layer, in[static_cast<std::size_t>(layer)], 299, 1);
  EXPECT_EQ(one_ahead.memory_report().packed_tokens, together.memory_report().packed_tokens);
  for (const int layer : {0, 2})
    EXPECT_EQ(contents(one_ahead, sequence, layer).v.elements,
              contents(together, expected, layer).v.elements);
}

TEST(ModelAllocation, GivesPagesBackToTheirPools) {
  Options options = model_options(3);
  std::vector<Inputs<>> in = layered(options);
  KVCache<float, 2> cache(options);
  const SequenceId first = feed(cache, in);
  feed(cache, in);
  const std::size_t held = cache.memory_report().pages, used = cache.memory_report().pages_used;
  for (int round = 0; round < 20; ++round) {
    cache.truncate(first, 4 + page_tokens + 5);  // in the middle of the second page
    EXPECT_EQ(cache.memory_report().pages_used, used / 2 + 2 * sum(page_sizes(cache)));
    cache.truncate(first, 0);
    EXPECT_EQ(cache.memory_report().pages_used, used / 2);
    for (int layer = 0; layer < 3; ++layer)
      append(cache, first, layer, in[static_cast<std::size_t>(layer)], 0, tokens);
    EXPECT_EQ(cache.memory_report().pages_used, used);
  }
  EXPECT_EQ(cache.memory_report().pages, held);
}

TEST(ModelAllocation, CountsThePagesOfAllSizesAgainstTheirLimit) {
  Options options = model_options(3);
  constexpr Index pages = 8;  // of a layer
  options.max_pages = 3 * pages - 1;
  std::vector<Inputs<>> in = layered(options);
  KVCache<float, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  for (int layer = 0; layer < 3; ++layer)
    append(cache, sequence, layer, in[static_cast<std::size_t>(layer)], 0, tokens - 1);
  for (int layer = 0; layer < 2; ++layer)
    append(cache, sequence, layer, in[static_cast<std::size_t>(layer)], tokens - 1, 1);
  EXPECT_EQ(cache.memory_report().packed_tokens, 2 * pages * page_tokens);
  const Contents before = contents(cache, sequence, 2);
  const std::size_t used = cache.memory_report().pages_used;
  // Which says what it takes.
  expect_error([&] { append(cache, sequence, 2, in[2], tokens - 1, 1); }, {"max_pages", "24"});
  EXPECT_EQ(contents(cache, sequence, 2), before);
  EXPECT_EQ(cache.memory_report().pages_used, used);
  cache.truncate(sequence, 4 + (pages - 1) * page_tokens + 20);  // no page less
  cache.truncate(sequence, 4 + (pages - 1) * page_tokens);       // one less in two layers
  append(cache, sequence, 2, in[2], 4 + (pages - 1) * page_tokens, 1);
  EXPECT_EQ(cache.memory_report().packed_tokens, 3 * (pages - 1) * page_tokens - page_tokens);
}

std::shared_ptr<Prior> prior_of(Options options, std::vector<Inputs<>> &in) {
  options.keep_statistics = true;
  KVCache<float, 2> teacher(options);
  feed(teacher, in);
  return std::make_shared<Prior>(teacher.statistics());
}

TEST(ModelAllocation, IsFixedByAPriorWhenTheCacheIsMade) {
  Options options = model_options(3);
  std::vector<Inputs<>> in = layered(options), other = layered(options, tokens, 11);
  options.prior = prior_of(options, in);
  KVCache<float, 2> cache(options);
  const std::vector<std::size_t> sizes = page_sizes(cache);
  EXPECT_GT(sizes[0], sizes[2]);
  const SequenceId sequence = cache.add_sequence();
  append(cache, sequence, 2, other[2], 0, 4 + 32 + page_tokens);
  EXPECT_EQ(cache.memory_report().packed_tokens, page_tokens) << "before other layers have begun";
  EXPECT_EQ(cache.memory_report().pages_used, sizes[2]);
  EXPECT_EQ(page_sizes(cache), sizes);
  EXPECT_EQ(cache.memory_report().statistics, 0u);
}

TEST(ModelAllocation, IsEqualWhereALayerKnowsNothingOfAttention) {
  Options options = model_options(2);
  std::vector<Inputs<>> in = layered(options);
  const std::vector<std::size_t> equal = equal_sizes(options);
  KVCache<float, 2> half_known(options);
  const SequenceId sequence = half_known.add_sequence();
  for (const auto &[first, count] : {std::pair{Index{0}, tokens - 1}, {tokens - 1, Index{1}}}) {
    append(half_known, sequence, 0, in[0], first, count);
    half_known.append(sequence, 1, in[1].k.view(first, count), in[1].v.view(first, count));
  }
  EXPECT_EQ(page_sizes(half_known), equal);
  EXPECT_EQ(half_known.memory_report().packed_tokens, 2 * 8 * page_tokens);

  // The layer that knows shares bits among its heads, the other codes each by itself.
  for (const auto &[layer, allocation] :
       {std::pair{0, Allocation::layer}, std::pair{1, Allocation::head}}) {
    Options alone = options;
    alone.allocation = allocation;
    KVCache<float, 2> cache(alone);
    const SequenceId other = cache.add_sequence();
    Inputs<> &own = in[static_cast<std::size_t>(layer)];
    if (layer == 0) append(cache, other, 0, own, 0, tokens);
    if (layer == 1) cache.append(other, 1, own.k.view(), own.v.view());
    const Contents a = contents(half_known, sequence, layer), b = contents(cache, other, layer);
    EXPECT_EQ(a.k.elements, b.k.elements) << layer;
  }
}

TEST(ModelAllocation, IsNotForCodingsOfSequences) {
  Options options = model_options(2);
  options.learning = LearningMode::per_sequence;
  expect_error([&] { KVCache<float, 2> cache(options); }, {"model", "per_sequence"});
  options.learning = LearningMode::first_tokens;
  options.coding = Coding::plain;
  expect_error([&] { KVCache<float, 2> cache(options); }, {"allocation"});
}

}  // namespace
}  // namespace squat::test::model_allocation_test
