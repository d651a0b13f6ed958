// Heads split over ranks: the caches of all ranks together are one cache of all heads, bit for bit, and
// what they save is what it saves, cut apart or put together.

#include "squat/parallel/split_heads.hpp"

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"
#include "reference/snapshot_sections.hpp"

namespace squat::test::split_heads_test {
namespace {

constexpr int all_heads = 4;

Options small(Coding coding) {
  Options options{
      .layers = 2, .query_heads = 8, .kv_heads = all_heads, .head_dim = 32, .coding = coding};
  options.sinks = 3;
  options.residual = 16;
  options.page_tokens = 32;
  options.statistics_tokens = 64;
  options.rotary = {rotary_table(1e3, 24)};
  return options;
}

/// As even as can be.
std::vector<HeadRange> split(int ranks) {
  std::vector<HeadRange> ranges;
  for (int rank = 0; rank < ranks; ++rank) {
    const int first = all_heads * rank / ranks;
    ranges.push_back({first, all_heads * (rank + 1) / ranks - first});
  }
  return ranges;
}

/// The heads of a rank. heads: of the tensor, for each KV head.
template <class S>
TensorView<S> of_heads(TensorView<S> rows, HeadRange range, Index heads) {
  rows.data += range.first * heads * rows.head_stride;
  rows.heads = range.count * heads;
  return rows;
}

/// Hands a rank its heads of the tokens [first, first + count).
template <class Cache>
void fill(Cache &cache, SequenceId sequence, HeadRange range, Inputs<> &in, Index first, Index count) {
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    cache.attend(sequence, layer, of_heads(in.q.view(first, count), range, 2),
                 of_heads(in.k.view(first, count), range, 1),
                 of_heads(in.v.view(first, count), range, 1),
                 of_heads(in.out.view(first, count), range, 2));
  }
}

template <class Cache>
struct Rank {
  Rank(const Options &options, HeadRange of)
      : range(of), cache(options_of_heads(options, of)), sequence(cache.add_sequence()) {}

  HeadRange range;
  Cache cache;
  SequenceId sequence;
};

Bytes joined(const std::vector<Bytes> &parts) {
  std::vector<SpanSource> sources(parts.begin(), parts.end());
  Bytes all;
  join_heads(std::span<SpanSource>(sources), all);
  return all;
}

Bytes sliced(const Bytes &all, HeadRange range) {
  Bytes part;
  slice_heads(all, range, part);
  return part;
}

template <class Cache>
Bytes saved_codings(Cache &cache) {
  Bytes bytes;
  cache.save_codings(bytes);
  return bytes;
}

/// What ranks hold is what one cache holds, which saves as they do.
template <class Cache, class Ranks>
void expect_same(Cache &all, SequenceId sequence, Ranks &ranks) {
  std::vector<Bytes> parts, codings;
  for (const auto &rank : ranks) {
    parts.push_back(saved(rank->cache, rank->sequence));
    EXPECT_EQ(parts.back(), sliced(saved(all, sequence), rank->range));
    codings.push_back(saved_codings(rank->cache));
    EXPECT_EQ(codings.back(), sliced(saved_codings(all), rank->range));
  }
  EXPECT_EQ(joined(parts), saved(all, sequence));
  EXPECT_EQ(joined(codings), saved_codings(all));
}

template <class T, int KeyBits, int ValueBits = KeyBits>
void check(const Options &options, int ranks) {
  using Cache = KVCache<T, KeyBits, ValueBits>;
  SCOPED_TRACE(std::to_string(KeyBits) + " and " + std::to_string(ValueBits) + " bits, " +
               std::to_string(ranks) + " ranks");
  Cache all(options);
  const SequenceId sequence = all.add_sequence();
  std::vector<std::unique_ptr<Rank<Cache>>> parts;
  for (const HeadRange range : split(ranks))
    parts.push_back(std::make_unique<Rank<Cache>>(options, range));
  Inputs<> whole(options, 250, 3), cut(options, 250, 3);
  Index first = 0;
  for (const Index count : {40, 160, 1, 1, 30, 18}) {  // learning still, then pages, then steps
    test::fill(all, sequence, whole, first, count);
    for (auto &part : parts) fill(part->cache, part->sequence, part->range, cut, first, count);
    first += count;
    ASSERT_EQ(whole.out.elements, cut.out.elements);
    expect_same(all, sequence, parts);
  }
  all.shift(sequence, 50, 60, options.rotary.empty() ? 0 : -10);  // cuts a page in two
  for (auto &part : parts) part->cache.shift(part->sequence, 50, 60, options.rotary.empty() ? 0 : -10);
  expect_same(all, sequence, parts);
}

class SplitHeads : public testing::TestWithParam<Coding> {};

INSTANTIATE_TEST_SUITE_P(Codings, SplitHeads,
                         testing::Values(Coding::plain, Coding::orthogonal, Coding::subspace));

TEST_P(SplitHeads, AreOneCacheBitForBit) {
  for (const int ranks : {1, 2, 3, 4}) {
    check<half, 2>(small(GetParam()), ranks);
    check<float, 4, 8>(small(GetParam()), ranks);
    check<bfloat16, 16>(small(GetParam()), ranks);
  }
}

TEST_P(SplitHeads, AreOneCacheWithEveryTailAndValueCoding) {
  Options options = small(GetParam());
  options.tail = TailCoding::exact;
  options.values = ValueCoding::plain;
  check<half, 2>(options, 3);
  options.values = ValueCoding::symmetric;
  options.tail = TailCoding::int8;
  options.rotary = {};
  check<float, 3>(options, 2);
}

TEST(SplitHeads, AreOneCacheWithTrellisCodes) {
  Options options = small(Coding::subspace);
  options.codes = Codes::trellis;
  check<half, 2>(options, 2);
}

TEST(SplitHeads, LoadAtAnotherNumberOfRanks) {
  const Options options = small(Coding::subspace);
  using Cache = KVCache<half, 2>;
  Inputs<> one(options, 300, 3), four(options, 300, 3), two(options, 300, 3);
  Cache all(options);
  const SequenceId sequence = all.add_sequence();
  test::fill(all, sequence, one, 0, 200);
  std::vector<Bytes> parts;
  for (const HeadRange range : split(4)) {
    Rank<Cache> rank(options, range);
    fill(rank.cache, rank.sequence, range, four, 0, 200);
    parts.push_back(saved(rank.cache, rank.sequence));
  }
  test::fill(all, sequence, one, 200, 100);
  for (const HeadRange range : split(2)) {
    Cache cache(options_of_heads(options, range));
    const auto first = parts.begin() + range.first;
    const SequenceId loaded = cache.load(joined({first, first + range.count}));
    fill(cache, loaded, range, two, 200, 100);
    EXPECT_EQ(saved(cache, loaded), sliced(saved(all, sequence), range));
  }
  EXPECT_TRUE(std::equal(two.out.elements.end() - 100 * 8 * 32, two.out.elements.end(),
                         one.out.elements.end() - 100 * 8 * 32));
}

TEST(SplitHeads, GoThroughStreams) {
  KVCache<half, 2> cache(small(Coding::subspace));
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(cache.options(), 200, 5);
  test::fill(cache, sequence, in, 0, 200);
  std::stringstream all, part;
  cache.save(sequence, all);
  all << "behind it";
  std::uint64_t written = 0;
  slice_heads(all, {1, 2}, part, [&](std::uint64_t bytes) { written = bytes; });
  EXPECT_EQ(written, part.str().size());
  std::string behind;
  std::getline(all, behind);
  EXPECT_EQ(behind, "behind it");
  std::array sources{StreamSource(part)};
  Bytes again;
  join_heads(std::span<StreamSource>(sources), again);
  EXPECT_EQ(again, sliced(saved(cache, sequence), {1, 2}));
}

TEST(SplitHeads, HaveTheirShareOfOptions) {
  Options options = small(Coding::subspace);
  options.alibi_slopes = {0, 1, 2, 3, 4, 5, 6, 7};
  for (float logit = 0; logit < 16; ++logit) options.sink_logits.push_back(logit);  // of two layers
  const Options part = options_of_heads(options, {1, 2});
  EXPECT_EQ(part.query_heads, 4);
  EXPECT_EQ(part.kv_heads, 2);
  EXPECT_EQ(part.alibi_slopes, (std::vector<float>{2, 3, 4, 5}));
  EXPECT_EQ(part.sink_logits, (std::vector<float>{2, 3, 4, 5, 10, 11, 12, 13}));
}

TEST(SplitHeads, HaveTheirShareOfAPrior) {
  Options options = small(Coding::subspace);
  options.keep_statistics = true;
  KVCache<half, 2> teacher(options);
  const SequenceId sequence = teacher.add_sequence();
  Inputs<> in(options, 200, 5);
  test::fill(teacher, sequence, in, 0, 200);
  options.prior = std::make_shared<Prior>(teacher.statistics());
  check<half, 2>(options, 3);

  const auto bytes = [](const Prior &prior) {
    std::ostringstream out;
    prior.save(out);
    return out.str();
  };
  const std::array parts{options.prior->heads(0, 1), options.prior->heads(1, 3)};
  EXPECT_EQ(bytes(Prior::join_heads(parts)), bytes(*options.prior));
  EXPECT_NE(bytes(parts[0]), bytes(options.prior->heads(1, 1)));
  EXPECT_THROW(options.prior->heads(4, 1), Error);
  EXPECT_THROW(options.prior->heads(-1, 1), Error);
  EXPECT_THROW(options.prior->heads(2, 3), Error);
  EXPECT_THROW(options.prior->heads(2, 0), Error);
  EXPECT_THROW(Prior::join_heads({}), Error);
  const std::array others{parts[0], Prior(2, 1, 32, 1)};
  EXPECT_THROW(Prior::join_heads(others), Error);
}

TEST(SplitHeads, RefuseWhatIsNotThere) {
  const Options options = small(Coding::subspace);
  for (const HeadRange range : {HeadRange{-1, 1}, {4, 1}, {2, 3}, {2, 0}})
    EXPECT_THROW(options_of_heads(options, range), Error);
  KVCache<half, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  const Bytes bytes = saved(cache, sequence);
  EXPECT_THROW(sliced(bytes, {3, 2}), Error);
  EXPECT_THROW(sliced(saved(cache, sequence, false), {0, 1}), Error) << "without codings";
  EXPECT_THROW(joined({}), Error);
}

TEST(SplitHeads, RefuseSharedBits) {
  Options options = small(Coding::subspace);
  options.allocation = Allocation::layer;
  EXPECT_THROW(options_of_heads(options, {0, 1}), Error);
  KVCache<half, 2> cache(options);
  EXPECT_THROW(sliced(saved(cache, cache.add_sequence()), {0, 1}), Error);
}

TEST(SplitHeads, RefusePartsThatDoNotBelongTogether) {
  const Options options = small(Coding::subspace);
  KVCache<half, 2> cache(options), other(options);
  const SequenceId a = cache.add_sequence(), b = other.add_sequence();
  Inputs<> in(options, 200, 5);
  test::fill(cache, a, in, 0, 200);
  test::fill(other, b, in, 0, 199);
  const Bytes first = sliced(saved(cache, a), {0, 2});
  EXPECT_EQ(joined({first, sliced(saved(cache, a), {2, 2})}), saved(cache, a));
  EXPECT_THROW(joined({first, sliced(saved(other, b), {2, 2})}), Error) << "another length";
  EXPECT_THROW(joined({first, sliced(saved_codings(cache), {2, 2})}), Error) << "another kind";
  other.shift(b, 100, 100, 1);
  test::fill(other, b, in, 199, 1);
  EXPECT_THROW(joined({first, sliced(saved(other, b), {2, 2})}), Error) << "another page table";
  KVCache<float, 2> floats(options);
  EXPECT_THROW(joined({first, saved(floats, floats.add_sequence())}), Error) << "another element type";
}

TEST(SplitHeads, RefuseDamage) {
  KVCache<half, 2> cache(small(Coding::subspace));
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(cache.options(), 120, 5);
  test::fill(cache, sequence, in, 0, 120);
  const Bytes bytes = saved(cache, sequence);
  for (std::size_t at = 0; at < bytes.size(); at += at < 600 ? 1 : 37) {
    Bytes damaged = bytes;
    damaged[at] ^= std::byte{4};
    EXPECT_THROW(sliced(damaged, {1, 2}), Error) << "byte " << at;
    EXPECT_THROW(sliced({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(at)}, {1, 2}), Error)
        << "cut at " << at;
  }
  // Checksums that fit do not make a shape possible.
  for (std::size_t number = 0; number < detail::shape_names.size(); ++number) {
    Bytes impossible = bytes;
    const std::size_t at = snapshot_mark_bytes + sizeof(detail::SectionHeader) + 8 * number;
    impossible[at + 5] = std::byte{1};
    repair(impossible);
    try {
      sliced(impossible, {1, 2});
    } catch (const Error &) {
    }
  }
}

}  // namespace
}  // namespace squat::test::split_heads_test
