// The pieces in which tokens arrive do not show: pages are the same, and attention the same up to what
// packing between the pieces changes.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "reference/reference_attention.hpp"

namespace squat::test::pieces_test {
namespace {

std::vector<Index> random_pieces(Index tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Index> pieces;
  while (tokens > 0) {
    pieces.push_back(
        std::min<Index>(tokens, 1 + static_cast<Index>(random() % (random() % 2 ? 4 : 150))));
    tokens -= pieces.back();
  }
  return pieces;
}

template <class Cache>
void feed(Cache &cache, SequenceId sequence, Inputs<> &in, const std::vector<Index> &pieces) {
  Index first = 0;
  for (Index piece : pieces) {
    cache.attend(sequence, 0, in.q.view(first, piece), in.k.view(first, piece), in.v.view(first, piece),
                 in.out.view(first, piece));
    first += piece;
  }
}

double distance(const std::vector<float> &a, const std::vector<float> &b, std::size_t first,
                std::size_t last) {
  double difference = 0, norm = 0;
  for (std::size_t i = first; i < last; ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

Options small(Coding coding) {
  return {.layers = 1,
          .query_heads = 6,
          .kv_heads = 2,
          .head_dim = 64,
          .coding = coding,
          .residual = 24,
          .page_tokens = 32,
          .statistics_tokens = 150};
}

/// Queries and keys whose channels are independent and ever narrower: there is something to learn from,
/// and what one code errs is fed on to others less than where neighbours are alike.
Inputs<> of_falling_width(const Options &options, Index tokens, unsigned seed) {
  Inputs<> in(options, tokens, seed);
  in.q = random_tensor(tokens, options.query_heads, options.head_dim, seed);
  in.k = random_tensor(tokens, options.kv_heads, options.head_dim, seed + 1);
  for (auto *x : {&in.q, &in.k}) {
    for (std::size_t i = 0; i < x->elements.size(); ++i) {
      const auto channel = static_cast<Index>(i) % options.head_dim;
      x->elements[i] *=
          std::pow(.3f, static_cast<float>(channel) / static_cast<float>(options.head_dim - 1));
    }
  }
  return in;
}

TEST(Pieces, PlainPagesAreTheSameBitForBit) {
  for (unsigned seed = 0; seed < 8; ++seed) {
    Inputs<> in(small(Coding::plain), 400, seed);
    KVCache<half, 2> whole(small(Coding::plain)), cut(small(Coding::plain));
    const SequenceId a = whole.add_sequence(), b = cut.add_sequence();
    feed(whole, a, in, {400});
    feed(cut, b, in, random_pieces(400, seed));
    EXPECT_EQ(contents(whole, a), contents(cut, b));
  }
}

// The moments of the queries are summed over other runs of tokens, so their last digits differ, and a
// rounding tie may fall the other way. One code in a thousand is allowed to; all others are the same to
// the last bit.
TEST(Pieces, OrthogonalPagesAreTheSameButForRoundingTies) {
  for (unsigned seed = 0; seed < 8; ++seed) {
    Inputs<> in = of_falling_width(small(Coding::orthogonal), 400, seed);
    KVCache<half, 2> whole(small(Coding::orthogonal)), cut(small(Coding::orthogonal));
    const SequenceId a = whole.add_sequence(), b = cut.add_sequence();
    feed(whole, a, in, {400});
    feed(cut, b, in, random_pieces(400, seed));
    ASSERT_GT(whole.memory_report().bases, 0u);  // it has learnt
    const Contents one = contents(whole, a), other = contents(cut, b);
    EXPECT_EQ(one.v.elements, other.v.elements);
    std::size_t different = 0;
    for (std::size_t i = 0; i < one.k.elements.size(); ++i)
      different += one.k.elements[i] != other.k.elements[i];
    EXPECT_LE(different, one.k.elements.size() / 1000);
  }
}

// While nothing is packed, attention is exact and pieces agree to float rounding (and that of the rows,
// kept as float).
TEST(Pieces, ExactAttentionAgreesToRounding) {
  Inputs<> in(small(Coding::plain), 55, 1);
  KVCache<float, 2> whole(small(Coding::plain)), cut(small(Coding::plain));
  const SequenceId a = whole.add_sequence(), b = cut.add_sequence();
  feed(whole, a, in, {55});
  const std::vector<float> expected = in.out.elements;
  feed(cut, b, in, std::vector<Index>(55, 1));
  EXPECT_LT(distance(in.out.elements, expected, 0, expected.size()), 1e-6);
}

// Sequences with codings of their own, and a page or many of each in a call.
TEST(Pieces, PagesInASubspaceAreTheSameOneAtATimeOrTogether) {
  Options options = small(Coding::subspace);
  options.learning = LearningMode::per_sequence;
  options.tail = TailCoding::exact;
  Inputs<> learnt(options, 2 * 200, 1), in(options, 2 * 160, 2);
  KVCache<float, 2> whole(options), cut(options);
  std::array<SequenceId, 2> together{}, alone{};
  for (Index i : {0, 1}) {
    for (auto [cache, ids] : {std::pair{&whole, &together}, std::pair{&cut, &alone}}) {
      const SequenceId id = (*ids)[static_cast<std::size_t>(i)] = cache->add_sequence();
      cache->attend(id, 0, learnt.q.view(200 * i, 200), learnt.k.view(200 * i, 200),
                    learnt.v.view(200 * i, 200), learnt.out.view(200 * i, 200));
    }
  }
  const std::array batch = {SequenceTokens{together[0], 160}, SequenceTokens{together[1], 160}};
  whole.append(batch, 0, in.k.view(), in.v.view());
  for (Index i : {0, 1}) {
    for (Index token = 160 * i; token < 160 * (i + 1); ++token) {
      cut.append(alone[static_cast<std::size_t>(i)], 0, in.k.view(token, 1), in.v.view(token, 1));
    }
  }
  for (std::size_t i : {0u, 1u}) {
    const Contents one = contents(whole, together[i]), other = contents(cut, alone[i]);
    EXPECT_EQ(one.v.elements, other.v.elements);
    EXPECT_EQ(one.k.elements, other.k.elements);
  }
}

// Behind the first page, a token of one large piece meets its neighbours exact, one that comes alone
// meets them packed: the difference is the coding's error. At 8 bits it is below a percent, at 16 bits
// that of float16 rows.
TEST(Pieces, PackedAttentionAgreesToTheCodingsError) {
  Inputs<> in(small(Coding::orthogonal), 400, 2);
  KVCache<float, 8> whole8(small(Coding::orthogonal)), cut8(small(Coding::orthogonal));
  KVCache<float, 16> whole16(small(Coding::orthogonal)), cut16(small(Coding::orthogonal));
  const auto compare = [&](auto &whole, auto &cut) {
    feed(whole, whole.add_sequence(), in, {400});
    const std::vector<float> expected = in.out.elements;
    feed(cut, cut.add_sequence(), in, std::vector<Index>(400, 1));
    return distance(in.out.elements, expected, 0, expected.size());
  };
  EXPECT_LT(compare(whole8, cut8), 2e-2);
  EXPECT_LT(compare(whole16, cut16), 5e-4);
}

}  // namespace
}  // namespace squat::test::pieces_test
