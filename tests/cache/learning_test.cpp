// Learning under control: tokens that are no text teach nothing, callers say what may be learnt from,
// and learning can begin anew.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"

namespace squat::test::learning_test {
namespace {

constexpr Index learnt_from = 192;

Options small(Coding coding = Coding::subspace) {
  Options options{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 64, .coding = coding};
  options.residual = 16;
  options.page_tokens = 32;
  options.statistics_tokens = learnt_from;
  options.rotary = {rotary_table(1e4, 64)};
  options.tile_tokens = 256;
  return options;
}

/// What a text is like: channels that vary together, about a mean.
Inputs<> text(const Options &options, Index tokens, unsigned seed) {
  Inputs<> in(options, tokens, seed);
  for (std::size_t i = 0; i < in.k.elements.size(); ++i) in.k.elements[i] += i % 64 == 7 ? 6.0f : 0.0f;
  embed(in, options.rotary.front());
  return in;
}

/// The first `period` tokens of a text again and again.
Inputs<> loop(const Options &options, Index tokens, Index period) {
  Inputs<> in(options, tokens, 91);
  repeat(in, period);
  embed(in, options.rotary.front());
  return in;
}

/// A text, or a loop, whose keys vary most in one direction.
Inputs<> narrow(const Options &options, Index tokens, Index period) {
  Inputs<> in(options, tokens, 92);
  const Tensor<float> along = random_tensor(tokens, options.kv_heads, 1, 93);
  for (Index token = 0; token < tokens; ++token) {
    for (Index head = 0; head < options.kv_heads; ++head) {
      float *key = in.k.view().row(token, head);
      for (int i = 0; i < options.head_dim; ++i) {
        key[i] += (i % 3 == 0 ? -2.0f : 2.0f) * along.view().row(token, head)[0];
      }
    }
  }
  repeat(in, period);
  embed(in, options.rotary.front());
  return in;
}

Inputs<> zeros(const Options &options, Index tokens) {
  Inputs<> in(options, tokens, 1);
  for (auto *x : {&in.q, &in.k, &in.v}) std::fill(x->elements.begin(), x->elements.end(), 0.0f);
  return in;
}

Inputs<> noise(const Options &options, Index tokens) {
  Inputs<> in(options, tokens, 1);
  in.q = random_tensor(tokens, options.query_heads, options.head_dim, 2);
  in.k = random_tensor(tokens, options.kv_heads, options.head_dim, 3);
  return in;
}

/// Hands a batch of one sequence to every layer.
template <class Cache>
void fill(Cache &cache, SequenceTokens entry, Inputs<> &in) {
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    cache.attend(std::span(&entry, 1), layer, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  }
}

/// A sequence of a text in a cache.
template <class Cache>
SequenceId sequence_of(Cache &cache, Inputs<> in) {
  const SequenceId sequence = cache.add_sequence();
  fill(cache, {sequence, in.q.tokens}, in);
  return sequence;
}

struct Junk {
  std::string name;
  std::function<Inputs<>(const Options &, Index)> make;
};
const std::vector<Junk> junk = {
    {"zeros", zeros},
    {"a token", [](const Options &options, Index tokens) { return loop(options, tokens, 1); }},
    {"five tokens", [](const Options &options, Index tokens) { return loop(options, tokens, 5); }},
    {"noise", noise},
};

TEST(Learning, OfTokensThatAreNoTextChangesNothing) {
  for (const Coding coding : {Coding::subspace, Coding::orthogonal}) {
    for (const Junk &kind : junk) {
      SCOPED_TRACE(kind.name);
      KVCache<half, 2> cache(small(coding)), untouched(cache.options());
      cache.remove_sequence(sequence_of(cache, kind.make(cache.options(), learnt_from + 60)));
      const Inputs<> in = text(cache.options(), 300, 5);
      const SequenceId a = sequence_of(cache, in), b = sequence_of(untouched, in);
      ASSERT_GT(untouched.memory_report().bases, 0u);
      EXPECT_EQ(saved(cache, a), saved(untouched, b));
    }
  }
}

TEST(Learning, OfAFirstLayerWithBiasesSeesManyTokensInFewDirections) {
  for (const bool biases : {false, true}) {
    for (const Index period : {300, 9}) {
      Options options = small();
      options.keys_have_biases = biases;
      KVCache<half, 2> cache(options);
      sequence_of(cache, narrow(options, 300, period));
      EXPECT_EQ(cache.learnt(0), biases && period == 300);
      EXPECT_FALSE(cache.learnt(1));  // it may be their context that differs
    }
  }
}

TEST(Learning, PacksWhatItCannotLearnFrom) {
  for (const Junk &kind : junk) {
    SCOPED_TRACE(kind.name);
    KVCache<half, 4> cache(small());
    Inputs<> in = kind.make(cache.options(), 400);
    const SequenceId sequence = cache.add_sequence();
    for (Index first = 0; first < 400; first += 50) {
      for (int layer = 0; layer < 2; ++layer) {
        cache.attend(sequence, layer, in.q.view(first, 50), in.k.view(first, 50), in.v.view(first, 50),
                     in.out.view(first, 50));
        const Contents rows = contents(cache, sequence, layer);
        if (kind.name == "zeros") continue;
        EXPECT_LT(attention_distance<float>(in.q.view(first, 50), rows.k.view(), rows.v.view(),
                                            in.out.view(first, 50), first),
                  .15);
      }
    }
    EXPECT_GE(cache.memory_report().packed_tokens, 2 * (400 - 4 - 16 - 32 + 1));
    // In pieces or at once, it is packed alike.
    KVCache<half, 4> at_once(small());
    EXPECT_EQ(contents(at_once, sequence_of(at_once, in)), contents(cache, sequence));
  }
}

TEST(Learning, OfATextBesideJunkServesThoseThatCome) {
  KVCache<half, 2> cache(small()), untouched(small());
  const SequenceId warm = sequence_of(cache, zeros(cache.options(), 300));
  const Inputs<> in = text(cache.options(), 300, 5);
  const SequenceId a = sequence_of(cache, in), b = sequence_of(untouched, in);
  EXPECT_EQ(saved(cache, a), saved(untouched, b));
  // Both decode in one batch, each by its own coding.
  Inputs<> step(cache.options(), 2, 8), alone(cache.options(), 1, 8);
  const std::vector<SequenceTokens> batch = {{warm, 1}, {a, 1}};
  for (int layer = 0; layer < 2; ++layer) {
    cache.attend(batch, layer, step.q.view(), step.k.view(), step.v.view(), step.out.view());
    untouched.attend(b, layer, step.q.view(1, 1), step.k.view(1, 1), step.v.view(1, 1),
                     alone.out.view());
  }
  EXPECT_TRUE(
      std::equal(alone.out.elements.begin(), alone.out.elements.end(), step.out.view().row(1, 0)));
  const SequenceId child = cache.fork(warm);
  EXPECT_EQ(contents(cache, child), contents(cache, warm));
}

TEST(Learning, UnderModelAllocationWaitsForText) {
  Options options = small();
  options.allocation = Allocation::model;
  KVCache<half, 2> cache(options), untouched(options);
  SequenceId warm = sequence_of(cache, zeros(options, 2 * learnt_from));
  EXPECT_EQ(cache.memory_report().packed_tokens, 0);
  Inputs<> step = zeros(options, 40);
  fill(cache, {warm, 40}, step);
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  EXPECT_EQ(cache.page_bytes(0), untouched.page_bytes(0));
  const Inputs<> in = text(options, 300, 5);
  const SequenceId a = sequence_of(cache, in), b = sequence_of(untouched, in);
  Inputs<> more = text(options, 40, 6);
  fill(cache, {a, 40}, more);
  fill(untouched, {b, 40}, more);
  EXPECT_EQ(saved(cache, a), saved(untouched, b));
  fill(cache, {warm, 40}, step);  // pages of the size that layers had before
  EXPECT_GT(cache.freed_if_removed(warm).pages, 0u);
  cache.remove_sequence(warm);
  cache.remove_sequence(a);
  EXPECT_EQ(cache.memory_report().pages_used, 0u);
}

TEST(Learning, IsTheCallersToForbid) {
  KVCache<half, 2> cache(small()), untouched(small());
  const SequenceId dummy = cache.add_sequence();
  Inputs<> other = text(cache.options(), 600, 44);
  fill(cache, {.sequence = dummy, .tokens = 600, .learn = false}, other);
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  const Inputs<> in = text(cache.options(), 300, 5);
  const SequenceId a = sequence_of(cache, in), b = sequence_of(untouched, in);
  EXPECT_EQ(saved(cache, a), saved(untouched, b));
}

TEST(Learning, OfFrozenCachesIsThePriorsAlone) {
  Options options = small();
  KVCache<half, 16> collecting({.layers = 2,
                                .query_heads = 4,
                                .kv_heads = 2,
                                .head_dim = 64,
                                .rotary = options.rotary,
                                .tile_tokens = 256,
                                .keep_statistics = true});
  sequence_of(collecting, text(options, 500, 3));
  options.prior = std::make_shared<const Prior>(collecting.statistics());
  options.learning = LearningMode::frozen;
  KVCache<half, 2> cache(options), replica(options);
  const Inputs<> in = text(options, 300, 5);
  sequence_of(replica, text(options, 300, 25));  // which came first there
  const SequenceId a = sequence_of(cache, in), b = sequence_of(replica, in);
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  EXPECT_EQ(saved(cache, a), saved(replica, b));
  EXPECT_EQ(cache.memory_report().statistics, 0u);

  KVCache<half, 16> of_zeros(collecting.options());
  sequence_of(of_zeros, zeros(options, 500));
  options.prior = std::make_shared<const Prior>(of_zeros.statistics());
  using Cache = KVCache<half, 2>;
  EXPECT_THROW(Cache{options}, Error);
  options.keep_statistics = true;
  EXPECT_THROW(Cache{options}, Error);
}

TEST(Learning, OfFrozenCachesMayComeFromElsewhere) {
  KVCache<half, 2> learnt(small());
  sequence_of(learnt, text(learnt.options(), 300, 5));
  Bytes codings;
  learnt.save_codings(codings);
  Options options = small();
  options.learning = LearningMode::frozen;
  KVCache<half, 2> cache(options);
  const SequenceId early = sequence_of(cache, text(options, 500, 6));  // coded without any
  const Contents before = contents(cache, early);
  cache.load_codings(codings);
  const Inputs<> in = text(options, 300, 7);
  const SequenceId a = sequence_of(cache, in), b = sequence_of(learnt, in);
  EXPECT_EQ(saved(cache, a), saved(learnt, b));
  EXPECT_EQ(contents(cache, early), before);
}

TEST(Learning, BeginsAnewBeforeAnythingIsPacked) {
  for (const Allocation allocation : {Allocation::head, Allocation::model}) {
    Options options = small();
    options.allocation = allocation;
    KVCache<half, 2> cache(options), untouched(options);
    const SequenceId first = sequence_of(cache, text(options, learnt_from - 20, 44));
    EXPECT_GT(cache.memory_report().statistics, 0u);
    cache.reset_learning();
    EXPECT_EQ(cache.memory_report().statistics, 0u);
    cache.remove_sequence(first);
    const Inputs<> in = text(options, 300, 5);
    const SequenceId a = sequence_of(cache, in), b = sequence_of(untouched, in);
    EXPECT_EQ(saved(cache, a), saved(untouched, b));
  }
}

TEST(Learning, BeginsAnewBesideWhatIsPacked) {
  KVCache<half, 2> cache(small()), untouched(small());
  const SequenceId old = sequence_of(cache, text(cache.options(), 300, 44));
  const SequenceId waiting = cache.add_sequence();  // empty, so that it is coded anew
  const Contents before = contents(cache, old);
  cache.reset_learning();
  const Inputs<> in = text(cache.options(), 300, 5);
  Inputs<> same = in;
  fill(cache, {waiting, 300}, same);
  const SequenceId b = sequence_of(untouched, in);
  EXPECT_EQ(saved(cache, waiting), saved(untouched, b));
  EXPECT_EQ(contents(cache, old), before);
  const std::size_t bases = cache.memory_report().bases;
  EXPECT_GT(bases, untouched.memory_report().bases);
  Inputs<> more = text(cache.options(), 100, 9);
  fill(cache, {old, 100}, more);  // goes on with its own coding
  cache.remove_sequence(old);
  EXPECT_LT(cache.memory_report().bases, bases);
}

TEST(Learning, BeginsAnewThreeTimesWhileAllAreHeld) {
  KVCache<half, 2> cache(small());
  std::vector<SequenceId> held;
  for (unsigned generation = 0; generation < 4; ++generation) {
    if (generation > 0) cache.reset_learning();
    held.push_back(sequence_of(cache, text(cache.options(), 300, 10 * generation)));
  }
  const MemoryReport report = cache.memory_report();
  EXPECT_THROW(cache.reset_learning(), Error);
  EXPECT_EQ(cache.memory_report().total(), report.total());
  cache.remove_sequence(held.front());
  cache.reset_learning();

  Options options = small();
  options.allocation = Allocation::model;
  KVCache<half, 2> sized(options);
  const SequenceId sequence = sequence_of(sized, text(options, 300, 5));
  Inputs<> more = text(options, 40, 6);
  fill(sized, {sequence, 40}, more);
  EXPECT_THROW(sized.reset_learning(), Error);
  options = small();
  options.learning = LearningMode::per_sequence;
  KVCache<half, 2> own(options);
  EXPECT_THROW(own.reset_learning(), Error);
}

TEST(Learning, OfASequenceForItselfLeavesJunkToo) {
  Options options = small();
  options.learning = LearningMode::per_sequence;
  KVCache<half, 2> cache(options), untouched(options);
  const SequenceId warm = sequence_of(cache, loop(options, 300, 1));
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  const Inputs<> in = text(options, 300, 5);
  const SequenceId a = sequence_of(cache, in), b = sequence_of(untouched, in);
  EXPECT_EQ(saved(cache, a), saved(untouched, b));
  cache.remove_sequence(warm);
}

TEST(Learning, IsNotEndedByASavedSequenceWithoutIt) {
  KVCache<half, 2> cache(small()), other(small()), untouched(small());
  const SequenceId warm = sequence_of(cache, zeros(cache.options(), 300));
  const SequenceId loaded = other.load(saved(cache, warm));
  EXPECT_EQ(contents(other, loaded), contents(cache, warm));
  EXPECT_EQ(saved(other, loaded), saved(cache, warm));
  const Inputs<> in = text(cache.options(), 300, 5);
  const SequenceId a = sequence_of(other, in), b = sequence_of(untouched, in);
  EXPECT_EQ(saved(other, a), saved(untouched, b));
}

}  // namespace
}  // namespace squat::test::learning_test
