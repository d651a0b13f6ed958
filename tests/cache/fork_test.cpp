// A fork is the sequence that was fed the same tokens, bit for bit; neither it nor its parent ever
// notices the other; and what it shares is held once.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test::fork_test {
namespace {

constexpr Index prompt = 160, page_tokens = 16, sinks = 3, residual = 10;
constexpr Index paged_end = sinks + (prompt - sinks - residual) / page_tokens * page_tokens;

Options small(Coding coding = Coding::plain) {
  return {.layers = 2,
          .query_heads = 4,
          .kv_heads = 2,
          .head_dim = 32,
          .coding = coding,
          .sinks = sinks,
          .residual = residual,
          .page_tokens = page_tokens,
          .rotary = {rotary_table(1e4, 32)},
          .statistics_tokens = 40};
}

/// Inputs of the prompt and of what follows it, in two ways.
struct Texts {
  explicit Texts(const Options &options) : one(options, 240, 1), other(options, 240, 7) {}
  Inputs<> one, other;
};

/// Goes on with two sequences alike, in pieces across pages, and expects the same of both.
template <class Cache>
void expect_same_from_here(Cache &a, SequenceId of_a, Cache &b, SequenceId of_b, const Inputs<> &text) {
  Inputs<> in_a = text, in_b = text;
  Index first = prompt;
  for (const Index piece : {1, 7, 1, 31, 1}) {
    fill(a, of_a, in_a, first, piece);
    fill(b, of_b, in_b, first, piece);
    first += piece;
  }
  ASSERT_EQ(in_a.out.elements, in_b.out.elements);
  for (int layer : {0, 1}) ASSERT_EQ(contents(a, of_a, layer), contents(b, of_b, layer));
}

/// Forks to every kind of length, against a cache whose one sequence was cut to it.
template <int Bits>
void expect_forks_are_sequences(const Options &options) {
  SCOPED_TRACE(testing::Message() << Bits << " bits, coding " << static_cast<int>(*options.coding));
  const Index group = options.page_tokens;
  for (const Index kept :
       {Index{0}, Index{1}, sinks, sinks + 1, sinks + group - 1, sinks + group, sinks + group + 1,
        Index{100}, paged_end - 1, paged_end, paged_end + 1, prompt - 1, prompt}) {
    SCOPED_TRACE(kept);
    Texts texts(options);
    KVCache<half, Bits> cache(options), alone(options), parent_alone(options);
    const SequenceId parent = cache.add_sequence(), cut = alone.add_sequence(),
                     whole = parent_alone.add_sequence();
    fill(cache, parent, texts.one, 0, prompt);
    fill(alone, cut, texts.one, 0, prompt);
    fill(parent_alone, whole, texts.one, 0, prompt);
    alone.truncate(cut, kept);
    const SequenceId child = cache.fork(parent, kept);
    ASSERT_EQ(cache.length(child), kept);
    for (int layer : {0, 1}) ASSERT_EQ(contents(cache, child, layer), contents(alone, cut, layer));
    expect_same_from_here(cache, child, alone, cut, texts.other);
    for (int layer : {0, 1})
      ASSERT_EQ(contents(cache, parent, layer), contents(parent_alone, whole, layer));
    if (options.statistics_tokens > prompt) continue;  // what the child brought has taught its parent
    expect_same_from_here(cache, parent, parent_alone, whole, texts.one);
  }
}

TEST(Fork, IsTheSequenceThatWasFedTheSameTokens) {
  for (const Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
      Options options = small(coding);
      options.tail = tail;
      expect_forks_are_sequences<2>(options);
    }
  }
  expect_forks_are_sequences<4>(small(Coding::subspace));
  expect_forks_are_sequences<8>(small(Coding::plain));
  expect_forks_are_sequences<16>(small(Coding::plain));
}

TEST(Fork, IsTheSameWithTrellisCodesAndSharedBits) {
  Options options = small(Coding::subspace);
  options.page_tokens = 32;
  options.codes = Codes::trellis;
  expect_forks_are_sequences<2>(options);
  for (const Allocation allocation : {Allocation::layer, Allocation::model}) {
    options = small(Coding::subspace);
    options.allocation = allocation;
    expect_forks_are_sequences<2>(options);
  }
}

TEST(Fork, IsTheSameBeforeAnythingIsLearnt) {
  for (const bool own : {false, true}) {
    Options options = small(Coding::subspace);
    options.learning = own ? LearningMode::per_sequence : LearningMode::first_tokens;
    options.statistics_tokens = prompt + 20;
    expect_forks_are_sequences<2>(options);
  }
}

TEST(Fork, HasTheTokensThatEveryLayerHas) {
  KVCache<half, 2> cache(small());
  Texts texts(small());
  const SequenceId parent = cache.add_sequence();
  fill(cache, parent, texts.one, 0, 100);
  cache.append(parent, 0, texts.one.k.view(100, 30), texts.one.v.view(100, 30));
  const SequenceId child = cache.fork(parent);
  EXPECT_EQ(cache.length(child, 0), 100);
  EXPECT_EQ(cache.length(child, 1), 100);
  EXPECT_EQ(cache.length(parent, 0), 130);
}

TEST(Fork, OfAForkOutlivesBoth) {
  KVCache<half, 2> cache(small(Coding::subspace)), alone(small(Coding::subspace));
  Texts texts(small());
  const SequenceId first = cache.add_sequence(), expected = alone.add_sequence();
  fill(cache, first, texts.one, 0, prompt);
  fill(alone, expected, texts.one, 0, prompt);
  const SequenceId second = cache.fork(first, 150), third = cache.fork(second, 90);
  cache.remove_sequence(first);
  cache.remove_sequence(second);
  alone.truncate(expected, 90);
  expect_same_from_here(cache, third, alone, expected, texts.other);
}

/// Does to a sequence what changes its tables, rows and positions.
template <class Cache>
void change(Cache &cache, SequenceId sequence, Inputs<> &in) {
  fill(cache, sequence, in, prompt, 50);
  cache.shift(sequence, 20, 60, -40);
  fill(cache, sequence, in, 0, 5);
  cache.truncate(sequence, 70);
  fill(cache, sequence, in, 5, 40);
  cache.shift(sequence, 0, 30, -30);
}

TEST(Fork, AndItsParentNeverNoticeEachOther) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    Options options = small(Coding::subspace);
    options.tail = tail;
    KVCache<half, 2> cache(options), alone(options);
    Texts texts(options);
    const SequenceId parent = cache.add_sequence(), expected = alone.add_sequence();
    fill(cache, parent, texts.one, 0, prompt);
    fill(alone, expected, texts.one, 0, prompt);
    const SequenceId changed = cache.fork(parent), kept = cache.fork(parent);
    change(cache, changed, texts.other);
    EXPECT_EQ(contents(cache, parent, 1), contents(alone, expected, 1));
    EXPECT_EQ(contents(cache, kept, 1), contents(alone, expected, 1));
    change(cache, parent, texts.other);
    EXPECT_EQ(contents(cache, parent, 1), contents(cache, changed, 1));
    EXPECT_EQ(contents(cache, kept, 1), contents(alone, expected, 1));
    const SequenceId again = alone.fork(expected);
    change(alone, again, texts.other);  // as a child of a cache of its own
    EXPECT_EQ(contents(cache, parent, 1), contents(alone, again, 1));
    cache.remove_sequence(parent);
    cache.remove_sequence(changed);
    expect_same_from_here(cache, kept, alone, expected, texts.other);
  }
}

// ---- what is shared

TEST(SharedPages, OfManyChildrenAreThoseOfOne) {
  constexpr int children = 64;
  constexpr Index prefix = 4096;
  Options options = small(Coding::subspace);
  KVCache<half, 2> cache(options);
  Inputs<> in(options, prefix, 3);
  const SequenceId parent = cache.add_sequence();
  fill(cache, parent, in, 0, prefix);
  const MemoryReport one = cache.memory_report();
  EXPECT_EQ(one.shared_pages, 0u);
  EXPECT_EQ(one.saved_by_sharing, 0u);
  std::vector<SequenceId> sequences;
  for (int i = 0; i < children; ++i) sequences.push_back(cache.fork(parent));
  const MemoryReport forked = cache.memory_report();
  EXPECT_EQ(forked.pages_used, one.pages_used);
  EXPECT_LE(forked.exact, (children + 1) * one.exact);
  EXPECT_EQ(forked.saved_by_sharing, children * one.pages_used);
  EXPECT_EQ(forked.shared_pages * cache.page_bytes(0), one.pages_used);
  EXPECT_EQ(forked.packed_tokens, (children + 1) * one.packed_tokens);
  EXPECT_DOUBLE_EQ(forked.packed_bits_per_element, one.packed_bits_per_element);
  EXPECT_LE(forked.total_bits_per_element, one.total_bits_per_element) << "bases are shared too";
  EXPECT_GT(forked.total_bits_per_element, one.packed_bits_per_element) << "sharing is no coding";
  // Their own tokens go to their own pages.
  for (const SequenceId child : sequences) fill(cache, child, in, 0, page_tokens);
  const MemoryReport grown = cache.memory_report();
  EXPECT_LE(grown.pages_used, one.pages_used * 105 / 100 + 2 * children * cache.page_bytes(0));
  EXPECT_EQ(grown.shared_pages, forked.shared_pages);
  EXPECT_EQ(grown.saved_by_sharing, forked.saved_by_sharing);
}

TEST(SharedPages, ThatAShiftHasCutCountOnceForASequence) {
  KVCache<half, 2> cache(small());
  Texts texts(small());
  const SequenceId parent = cache.add_sequence();
  fill(cache, parent, texts.one, 0, prompt);
  const std::size_t used = cache.memory_report().pages_used, free = cache.free_pages();
  cache.shift(parent, sinks + 20, sinks + 24, -4);  // within the second page, whose two parts stay
  EXPECT_EQ(cache.memory_report().pages_used, used);
  EXPECT_EQ(cache.memory_report().shared_pages, 0u);
  EXPECT_EQ(cache.memory_report().saved_by_sharing, 0u);
  EXPECT_EQ(cache.freed_if_removed(parent).bytes, used);
  const SequenceId child = cache.fork(parent, sinks + 18);  // the page before, and one of the two parts
  EXPECT_EQ(cache.memory_report().shared_pages, 2u * 2);
  EXPECT_EQ(cache.memory_report().saved_by_sharing, 2 * 2 * cache.page_bytes(0));
  EXPECT_EQ(cache.freed_if_removed(child).pages, 0u);
  EXPECT_EQ(cache.freed_if_removed(parent).pages, used / cache.page_bytes(0) - 4);
  cache.remove_sequence(parent);
  EXPECT_EQ(cache.memory_report().pages_used, 4 * cache.page_bytes(0));
  cache.remove_sequence(child);
  EXPECT_EQ(cache.free_pages(), free + used / cache.page_bytes(0));
}

/// A family that grows, changes and dies at random: what a removal was said to free is what it frees.
TEST(SharedPages, AreFreeWhenTheLastSequenceGoes) {
  Options options = small(Coding::subspace);
  options.max_pages = 4000;
  for (unsigned seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    KVCache<half, 2> cache(options);
    Texts texts(options);
    std::mt19937 random(seed);
    const auto below = [&](Index count) { return static_cast<Index>(random()) % count; };
    std::vector<SequenceId> family = {cache.add_sequence()};
    fill(cache, family[0], texts.one, 0, prompt);
    const auto remove_one = [&] {
      const auto which = family.begin() + below(static_cast<Index>(family.size()));
      const FreedPages freed = cache.freed_if_removed(*which);
      const std::size_t free = cache.free_pages(), used = cache.memory_report().pages_used;
      cache.remove_sequence(*which);
      ASSERT_EQ(cache.free_pages(), free + freed.pages);
      ASSERT_EQ(cache.memory_report().pages_used, used - freed.bytes);
      family.erase(which);
    };
    for (int round = 0; round < 60; ++round) {
      const SequenceId one = family[static_cast<std::size_t>(below(static_cast<Index>(family.size())))];
      const Index length = cache.length(one);
      switch (below(5)) {
        case 0:
        case 1:
          family.push_back(cache.fork(one, below(length + 1)));
          break;
        case 2:
          fill(cache, one, texts.other, 0, 1 + below(60));
          break;
        case 3: {
          const Index first = below(length + 1), last = first + below(length + 1 - first);
          cache.shift(one, first, last, first - last);
          break;
        }
        default:
          if (family.size() > 1) remove_one();
      }
      const MemoryReport report = cache.memory_report();
      ASSERT_EQ(cache.free_pages(), options.max_pages - report.pages_used / cache.page_bytes(0));
    }
    while (!family.empty()) remove_one();
    EXPECT_EQ(cache.memory_report().pages_used, 0u);
    EXPECT_EQ(cache.memory_report().exact, 0u);
    EXPECT_EQ(cache.free_pages(), options.max_pages);
  }
}

TEST(SharedPages, LeaveAFullPoolAsItIs) {
  Options options = small();
  options.max_pages = 20;
  KVCache<half, 2> cache(options);
  Texts texts(options);
  const SequenceId parent = cache.add_sequence();
  fill(cache, parent, texts.one, 0, prompt);  // 9 pages a layer
  EXPECT_EQ(cache.free_pages(), 2u);
  const SequenceId child = cache.fork(parent), short_child = cache.fork(parent, 40);
  EXPECT_EQ(cache.free_pages(), 2u);
  fill(cache, child, texts.other, 0, page_tokens);
  EXPECT_EQ(cache.free_pages(), 0u);
  const Contents held = contents(cache, parent, 0);
  expect_error([&] { fill(cache, parent, texts.other, 0, page_tokens); }, {"max_pages"});
  EXPECT_EQ(contents(cache, parent, 0), held);
  EXPECT_EQ(cache.freed_if_removed(short_child).pages, 0u);
  EXPECT_EQ(cache.freed_if_removed(child).pages, 2u);
  cache.remove_sequence(child);
  EXPECT_EQ(cache.free_pages(), 2u);
  fill(cache, parent, texts.other, 0, page_tokens);
  EXPECT_EQ(cache.free_pages(), 0u);
}

// ---- codings of a sequence's own

TEST(SharedCodings, GoWithTheLastThatUsesThem) {
  Options options = small(Coding::subspace);
  options.learning = LearningMode::per_sequence;
  KVCache<half, 2> cache(options), alone(options);
  Texts texts(options);
  const std::size_t none = cache.memory_report().bases;
  const SequenceId parent = cache.add_sequence(), expected = alone.add_sequence();
  fill(cache, parent, texts.one, 0, prompt);
  fill(alone, expected, texts.one, 0, prompt);
  const std::size_t one = cache.memory_report().bases;
  EXPECT_GT(one, none);
  const SequenceId child = cache.fork(parent), grandchild = cache.fork(child, 100);
  EXPECT_EQ(cache.memory_report().bases, one);
  cache.remove_sequence(parent);
  const SequenceId stranger = cache.add_sequence();  // its coding takes no name that is in use
  fill(cache, stranger, texts.other, 0, prompt);
  expect_same_from_here(cache, child, alone, expected, texts.one);
  cache.remove_sequence(stranger);
  cache.remove_sequence(child);
  EXPECT_EQ(cache.memory_report().bases, one);
  cache.remove_sequence(grandchild);
  EXPECT_EQ(cache.memory_report().bases, none);
}

/// A family whose coding is its own is a cache whose coding is that of all.
TEST(SharedCodings, LearnFromTheWholeFamily) {
  Options options = small(Coding::subspace);
  options.keep_statistics = true;
  std::vector<Contents> held;
  std::vector<float> taught;
  for (const bool own : {false, true}) {
    options.learning = own ? LearningMode::per_sequence : LearningMode::first_tokens;
    KVCache<half, 2> cache(options);
    Inputs<> one(options, 20, 1), both(options, 23, 4);
    const SequenceId parent = cache.add_sequence();
    fill(cache, parent, one, 0, 20);
    const SequenceId child = cache.fork(parent, 15);
    EXPECT_EQ(cache.memory_report().packed_tokens, 0);
    const std::array batch = {SequenceTokens{parent, 12}, SequenceTokens{child, 11}};
    for (int layer : {0, 1}) {
      cache.attend(batch, layer, both.q.view(), both.k.view(), both.v.view(), both.out.view());
    }
    EXPECT_GT(cache.memory_report().packed_tokens, 0) << "20, 12 and 11 tokens are enough together";
    for (const SequenceId sequence : {parent, child}) held.push_back(contents(cache, sequence, 1));
    const Prior learnt_from = cache.statistics();
    const auto sums = learnt_from.head(1, 0).sums(&HeadSums::key_weight);
    taught.push_back(static_cast<float>(sums[0]));
  }
  EXPECT_EQ(held[0], held[2]);
  EXPECT_EQ(held[1], held[3]);
  EXPECT_EQ(taught[0], taught[1]);
}

}  // namespace
}  // namespace squat::test::fork_test
