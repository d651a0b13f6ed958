// Attention over the packed cache is attention over what dequantize() says it holds, for every type,
// width, coding and shape.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "reference/reference_attention.hpp"
#include "reference/sanitized.hpp"
#include "squat/parallel/thread_pool.hpp"

namespace squat::test::attend_test {
namespace {

template <class T, class S, int KeyBits, int ValueBits>
struct Widths {
  using Rows = T;
  using Caller = S;
  using Cache = KVCache<T, KeyBits, ValueBits>;

  /// Outputs are rounded to the caller's type.
  static constexpr double tolerance =
      std::max({std::is_same_v<S, bfloat16> ? 4e-3 : 1e-3, rounding_tolerance(KeyBits),
                rounding_tolerance(ValueBits)});
};

template <class W>
class Attend : public testing::Test {};

using AllWidths =
    testing::Types<Widths<float, float, 2, 2>, Widths<half, float, 4, 4>, Widths<bfloat16, float, 8, 8>,
                   Widths<half, half, 16, 16>, Widths<float, half, 2, 16>,
                   Widths<bfloat16, bfloat16, 16, 2>, Widths<half, bfloat16, 4, 2>,
                   Widths<float, float, 8, 3>, Widths<half, float, 3, 3>>;
TYPED_TEST_SUITE(Attend, AllWidths);

struct Shape {
  int query_heads, kv_heads, head_dim;
};
constexpr std::array shapes = {Shape{1, 1, 32},   Shape{9, 3, 64},  Shape{8, 2, 48},   Shape{64, 1, 16},
                               Shape{4, 4, 80},   Shape{6, 2, 112}, Shape{32, 8, 128}, Shape{2, 1, 256},
                               Shape{16, 16, 96}, Shape{5, 1, 144}};

/// Feeds `pieces` of tokens and checks each piece's outputs against the rows the cache held before and
/// the new ones.
template <class Widths>
void check_pieces(Options options, const std::vector<Index> &pieces, unsigned seed) {
  using S = typename Widths::Caller;
  typename Widths::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  Index past = 0;
  for (Index piece : pieces) {
    Inputs<S> in(options, piece, seed++);
    const Contents before = contents(cache, sequence);
    Tensor<float> k(past + piece, options.kv_heads, options.head_dim), v = k;
    std::copy(before.k.elements.begin(), before.k.elements.end(), k.elements.begin());
    std::copy(before.v.elements.begin(), before.v.elements.end(), v.elements.begin());
    // The call's own rows count as the cache keeps them.
    const auto kept = [](S x) {
      return static_cast<float>(static_cast<typename Widths::Rows>(static_cast<float>(x)));
    };
    std::transform(in.k.elements.begin(), in.k.elements.end(), k.view(past, piece).data, kept);
    std::transform(in.v.elements.begin(), in.v.elements.end(), v.view(past, piece).data, kept);
    cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    EXPECT_LT(attention_distance<S>(in.q.view(), k.view(), v.view(), in.out.view(), past),
              Widths::tolerance)
        << options.query_heads << "/" << options.kv_heads << "/" << options.head_dim << " at " << past
        << " + " << piece;
    past += piece;
    EXPECT_EQ(cache.length(sequence), past);
  }
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
}

TYPED_TEST(Attend, EqualsAttentionOverDequantizedRows) {
  std::mt19937 random(5);
  for (const Shape &shape : shapes) {
    for (Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
      if (sanitized && random() % 3 != 0) continue;
      Options options{.layers = 1,
                      .query_heads = shape.query_heads,
                      .kv_heads = shape.kv_heads,
                      .head_dim = shape.head_dim,
                      .coding = coding};
      options.sinks = static_cast<int>(random() % 6);
      options.residual = static_cast<int>(random() % 40);
      options.page_tokens = 16 * static_cast<int>(1 + random() % 4);
      options.statistics_tokens = 60;
      if (random() % 2 == 0) {
        options.rotary = {{.inverse_frequencies = {1, .5f, .03f, 1e-3f, 1e-5f},
                           .pairs = random() % 2 == 0 ? RotaryPairs::interleaved : RotaryPairs::halves}};
        if (random() % 2 == 0) options.tile_tokens = 100;
      }
      std::vector<Index> pieces;
      for (int i = 0; i < 9; ++i)
        pieces.push_back(1 + static_cast<Index>(i % 3 == 0 ? random() % 90 : random() % 3));
      pieces.push_back(80);
      check_pieces<TypeParam>(options, pieces, static_cast<unsigned>(random()));
    }
  }
}

TYPED_TEST(Attend, EqualsAttentionOverDequantizedTrellisRows) {
  for (const Shape &shape : {Shape{9, 3, 64}, Shape{5, 1, 96}, Shape{8, 2, 128}, Shape{2, 1, 256}}) {
    for (int page_tokens : {64, 96, 128, 256}) {
      Options options{.layers = 1,
                      .query_heads = shape.query_heads,
                      .kv_heads = shape.kv_heads,
                      .head_dim = shape.head_dim,
                      .coding = page_tokens == 96 ? Coding::orthogonal : Coding::subspace,
                      .codes = Codes::trellis};
      options.residual = 8;
      options.page_tokens = page_tokens;
      options.statistics_tokens = 60;
      check_pieces<TypeParam>(options, {70, page_tokens + 30, 1, 2, 50},
                              static_cast<unsigned>(page_tokens));
    }
  }
}

/// Appends `tokens` tokens and checks what the last ones read, so many queries at a time.
template <class Widths>
void check_reading(const Options &options, Index tokens, const std::vector<Index> &counts) {
  using S = typename Widths::Caller;
  typename Widths::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<S> in(options, tokens, 3);
  cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
  const Contents held = contents(cache, sequence);
  for (Index queries : counts) {
    const Index first = tokens - queries;
    cache.attend(sequence, 0, in.q.view(first, queries), in.out.view(first, queries));
    EXPECT_LT(attention_distance<S>(in.q.view(first, queries), held.k.view(), held.v.view(),
                                    in.out.view(first, queries), first),
              Widths::tolerance);
  }
  EXPECT_EQ(cache.length(sequence), tokens);
}

TYPED_TEST(Attend, ReadOnlyAttendSeesWhatAppendLeft) {
  const Options options{.layers = 1,
                        .query_heads = 6,
                        .kv_heads = 2,
                        .head_dim = 64,
                        .residual = 16,
                        .page_tokens = 32,
                        .statistics_tokens = 50};
  // 190 reach back to before the first page's end.
  check_reading<TypeParam>(options, 200, {1, 2, 7, 190});
}

TEST(AttendBatch, IsEachSequenceAlone) {
  const Options options{.layers = 2,
                        .query_heads = 8,
                        .kv_heads = 2,
                        .head_dim = 64,
                        .coding = Coding::plain,
                        .residual = 8,
                        .page_tokens = 16};
  KVCache<half, 4> together(options), alone(options);
  const std::array ids = {together.add_sequence(), together.add_sequence(), together.add_sequence()};
  const std::array alone_ids = {alone.add_sequence(), alone.add_sequence(), alone.add_sequence()};
  unsigned seed = 0;
  for (const std::array<Index, 3> counts :
       {std::array<Index, 3>{50, 3, 31}, {1, 1, 1}, {1, 40, 2}, {1, 1, 1}}) {
    const Index total = counts[0] + counts[1] + counts[2];
    Inputs<> in(options, total, seed += 3);
    const std::array batch = {SequenceTokens{ids[0], counts[0]}, SequenceTokens{ids[1], counts[1]},
                              SequenceTokens{ids[2], counts[2]}};
    together.attend(batch, 1, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    Tensor<float> out = in.out;
    Index row = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      alone.attend(alone_ids[i], 1, in.q.view(row, counts[i]), in.k.view(row, counts[i]),
                   in.v.view(row, counts[i]), out.view(row, counts[i]));
      row += counts[i];
      EXPECT_EQ(contents(together, ids[i], 1), contents(alone, alone_ids[i], 1));
    }
    EXPECT_EQ(out.elements, in.out.elements);
  }
}

// Rows that no entry names are neither read nor written, and an entry may have no tokens.
TEST(AttendBatch, APaddedBatchIsAnUnpaddedOne) {
  const Options options{.layers = 1,
                        .query_heads = 4,
                        .kv_heads = 2,
                        .head_dim = 64,
                        .coding = Coding::plain,
                        .residual = 8,
                        .page_tokens = 16};
  KVCache<half, 4> padded(options), alone(options);
  const std::array ids = {padded.add_sequence(), padded.add_sequence(), padded.add_sequence()};
  const std::array alone_ids = {alone.add_sequence(), alone.add_sequence()};
  constexpr Index width = 40;  // rows of a sequence in the padded tensors
  for (const std::array<Index, 2> counts : {std::array<Index, 2>{40, 17}, {1, 1}, {5, 40}}) {
    Inputs<> in(options, 3 * width, static_cast<unsigned>(counts[1]));
    std::fill(in.out.elements.begin(), in.out.elements.end(), -7.0f);
    Tensor<float> expected = in.out;
    for (std::size_t i = 0; i < 2; ++i) {  // left-padded
      const Index row = (static_cast<Index>(i) + 1) * width - counts[i];
      alone.attend(alone_ids[i], 0, in.q.view(row, counts[i]), in.k.view(row, counts[i]),
                   in.v.view(row, counts[i]), expected.view(row, counts[i]));
    }
    for (Tensor<float> *tensor : {&in.q, &in.k, &in.v}) {
      for (Index row = 0; row < 3 * width; ++row) {
        const Index in_sequence = row % width,
                    count = row < 2 * width ? counts[static_cast<std::size_t>(row / width)] : 0;
        if (in_sequence >= width - count) continue;
        std::fill_n(tensor->view(row, 1).data, tensor->heads * tensor->head_dim,
                    std::numeric_limits<float>::quiet_NaN());
      }
    }
    const std::array batch = {SequenceTokens{ids[0], counts[0], width - counts[0]},
                              SequenceTokens{ids[1], counts[1], 2 * width - counts[1]},
                              SequenceTokens{ids[2], 0}};
    padded.attend(batch, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    EXPECT_EQ(in.out.elements, expected.elements);
    EXPECT_EQ(padded.length(ids[2]), 0);
    for (std::size_t i = 0; i < 2; ++i)
      EXPECT_EQ(contents(padded, ids[i]), contents(alone, alone_ids[i]));
  }
}

/// Pages of 16 tokens, so that contexts of a few hundred are split into runs of pages.
Options many_pages() {
  return {.layers = 1,
          .query_heads = 8,
          .kv_heads = 4,
          .head_dim = 64,
          .residual = 16,
          .page_tokens = 16,
          .statistics_tokens = 100};
}

TYPED_TEST(Attend, LongContextsAreAttendedInRunsAndMerged) {
  check_reading<TypeParam>(many_pages(), 1700, {1, 2, 9, 60});
}

// One token's key points along the last query and outweighs all others: the output is that token's
// value, and would be noise if its page, its run of pages or its end of one were left out.
TEST(AttendNeedle, EveryTokenOfALongContextIsSeen) {
  Options options = many_pages();
  options.coding = Coding::plain;
  constexpr Index tokens = 1700, d = 64;
  for (const Index needle :
       {0, 3, 4, 19, 20, 99, 515, 516, 1027, 1028, 1539, 1540, 1667, 1668, 1698, 1699}) {
    KVCache<float, 8> cache(options);
    const SequenceId sequence = cache.add_sequence();
    Inputs<> in(options, tokens, static_cast<unsigned>(needle));
    for (Index head = 0; head < 4; ++head) {
      const float *a = in.q.view().row(tokens - 1, 2 * head),
                  *b = in.q.view().row(tokens - 1, 2 * head + 1);
      for (Index i = 0; i < d; ++i) in.k.view().row(needle, head)[i] = 4 * (a[i] + b[i]);
    }
    cache.append(sequence, 0, in.k.view(), in.v.view());
    cache.attend(sequence, 0, in.q.view(tokens - 1, 1), in.out.view(0, 1));
    for (Index head = 0; head < 8; ++head) {
      for (Index i = 0; i < d; ++i) {
        EXPECT_NEAR(in.out.view().row(0, head)[i], in.v.view().row(needle, head / 2)[i], .1)
            << "token " << needle << ", head " << head;
      }
    }
  }
}

TEST(AttendParallel, ResultsDoNotDependOnThreads) {
  ThreadPool pool(3);
  const std::array<Parallel, 2> ways = {pool.parallel(), [](int count, Task task) {
                                          std::vector<std::thread> threads;
                                          for (int i = 0; i < count; ++i)
                                            threads.emplace_back([task, i] { task(i); });
                                          for (std::thread &thread : threads) thread.join();
                                        }};
  for (const Parallel &way : ways) {
    Options threaded = many_pages();
    threaded.parallel = way;
    KVCache<half, 2> one(many_pages()), many(threaded);
    const SequenceId a = one.add_sequence(), b = many.add_sequence();
    for (Index piece : {150, 1, 1, 60, 1, 900, 1, 2}) {
      Inputs<> in(many_pages(), piece, static_cast<unsigned>(piece));
      Tensor<float> out = in.out;
      one.attend(a, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
      many.attend(b, 0, in.q.view(), in.k.view(), in.v.view(), out.view());
      EXPECT_EQ(in.out.elements, out.elements);
    }
    EXPECT_EQ(contents(one, a), contents(many, b));
  }
}

TEST(AttendStrided, ReadsAFusedProjection) {
  const Options options{.layers = 1,
                        .query_heads = 4,
                        .kv_heads = 2,
                        .head_dim = 32,
                        .residual = 0,
                        .page_tokens = 16,
                        .statistics_tokens = 0};
  KVCache<float, 4> fused(options), separate(options);
  const SequenceId a = fused.add_sequence(), b = separate.add_sequence();
  Inputs<> in(options, 50, 9);
  const Index row = (4 + 2 + 2) * 32;
  std::vector<float> projection(static_cast<std::size_t>(50 * row));
  const auto part = [&](Index first, Index heads) {
    return TensorView<float>(projection.data() + first * 32, 50, heads, 32, row, 32);
  };
  const auto fill = [](TensorView<float> to, TensorView<float> from) {
    for (Index t = 0; t < to.tokens; ++t) {
      for (Index h = 0; h < to.heads; ++h) std::copy_n(from.row(t, h), 32, to.row(t, h));
    }
  };
  fill(part(0, 4), in.q.view());
  fill(part(4, 2), in.k.view());
  fill(part(6, 2), in.v.view());
  Tensor<float> out = in.out;
  fused.attend(a, 0, part(0, 4), part(4, 2), part(6, 2), out.view());
  separate.attend(b, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  EXPECT_EQ(out.elements, in.out.elements);
  EXPECT_EQ(contents(fused, a), contents(separate, b));
}

}  // namespace
}  // namespace squat::test::attend_test
