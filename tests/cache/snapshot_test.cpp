// Snapshots: what is loaded is what was saved, bit for bit, goes on as the original does, and is refused
// where it is not what it says.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"
#include "reference/snapshot_sections.hpp"

namespace squat::test::snapshot_test {
namespace {

Options small(Coding coding) {
  Options options{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32, .coding = coding};
  options.sinks = 3;
  options.residual = 16;
  options.page_tokens = 32;
  options.statistics_tokens = 64;
  options.rotary = {rotary_table(1e3, 24)};
  return options;
}

template <class Cache>
void expect_equal(Cache &a, SequenceId in_a, Cache &b, SequenceId in_b) {
  for (int layer = 0; layer < a.options().layers; ++layer) {
    ASSERT_EQ(a.length(in_a, layer), b.length(in_b, layer));
    EXPECT_EQ(contents(a, in_a, layer), contents(b, in_b, layer));
  }
}

/// Saves `sequence`, loads it into another cache of the same options, and steps on in both.
template <class Cache>
void expect_it_goes_on(Cache &cache, SequenceId sequence, Index tokens) {
  const Bytes bytes = saved(cache, sequence);
  Cache other(cache.options());
  const SequenceId loaded = other.load(bytes);
  expect_equal(cache, sequence, other, loaded);
  EXPECT_EQ(saved(other, loaded), bytes);
  EXPECT_EQ(other.memory_report().pages_used, cache.memory_report().pages_used);  // a cut page is one
  Inputs<> here(cache.options(), tokens, 77), there(cache.options(), tokens, 77);
  for (Index token = 0; token + 5 <= tokens; token += 5) {
    fill(cache, sequence, here, token, 5);
    fill(other, loaded, there, token, 5);
  }
  EXPECT_EQ(here.out.elements, there.out.elements);
  expect_equal(cache, sequence, other, loaded);
  EXPECT_EQ(saved(other, loaded), saved(cache, sequence));
}

template <class T, int KeyBits, int ValueBits = KeyBits>
void check(const Options &options) {
  for (const Index tokens : {Index{0}, Index{2}, Index{40}, Index{100}, Index{203}}) {
    SCOPED_TRACE(std::to_string(KeyBits) + " and " + std::to_string(ValueBits) + " bits, " +
                 std::to_string(tokens) + " tokens");
    KVCache<T, KeyBits, ValueBits> cache(options);
    const SequenceId sequence = cache.add_sequence();
    Inputs<> in(options, tokens, 3);
    for (float &x : in.v.elements) x += 2;  // about a mean
    if (tokens > 0) fill(cache, sequence, in, 0, tokens);
    expect_it_goes_on(cache, sequence, 100);
  }
}

class Snapshot : public testing::TestWithParam<Coding> {};

INSTANTIATE_TEST_SUITE_P(Codings, Snapshot,
                         testing::Values(Coding::plain, Coding::orthogonal, Coding::subspace));

TEST_P(Snapshot, GoesOnAtEveryWidth) {
  check<float, 2>(small(GetParam()));
  check<float, 3>(small(GetParam()));
  check<float, 4>(small(GetParam()));
  check<float, 8>(small(GetParam()));
  check<float, 16>(small(GetParam()));
  check<float, 2, 8>(small(GetParam()));
  check<float, 16, 4>(small(GetParam()));
}

TEST_P(Snapshot, GoesOnInEveryElementType) {
  check<half, 2>(small(GetParam()));
  check<bfloat16, 16>(small(GetParam()));
  check<bfloat16, 3>(small(GetParam()));
}

TEST_P(Snapshot, GoesOnWithEveryTailAndValueCoding) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    for (const ValueCoding values : {ValueCoding::plain, ValueCoding::symmetric}) {
      Options options = small(GetParam());
      options.tail = tail;
      options.values = values;
      check<half, 2>(options);
      check<float, 4>(options);
    }
  }
}

TEST_P(Snapshot, GoesOnWithACodingOfItsOwn) {
  Options options = small(GetParam());
  options.learning = LearningMode::per_sequence;
  check<half, 2>(options);
}

TEST_P(Snapshot, GoesOnWithoutARotaryTable) {
  Options options = small(GetParam());
  options.rotary = {};
  check<half, 2>(options);
}

TEST_P(Snapshot, GoesOnAfterTruncateAndShift) {
  KVCache<half, 2> cache(small(GetParam()));
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(cache.options(), 300, 5);
  fill(cache, sequence, in, 0, 300);
  cache.truncate(sequence, 230);
  cache.shift(sequence, 50, 60, -10);  // cuts a page in two
  cache.shift(sequence, 20, 20, 7);
  expect_it_goes_on(cache, sequence, 120);
}

TEST(Snapshot, GoesOnWithTrellisCodes) {
  for (const Allocation allocation : {Allocation::head, Allocation::layer, Allocation::model}) {
    Options options = small(Coding::subspace);
    options.codes = Codes::trellis;
    options.allocation = allocation;
    check<half, 2>(options);
    check<float, 3>(options);
  }
}

TEST(Snapshot, GoesOnWithSharedBits) {
  for (const Allocation allocation : {Allocation::layer, Allocation::model}) {
    Options options = small(Coding::subspace);
    options.allocation = allocation;
    check<half, 2>(options);
    check<float, 4>(options);
    check<float, 2, 8>(options);
  }
}

TEST(Snapshot, OfLayersThatHaveNotAllLearnt) {
  Options options = small(Coding::subspace);
  options.allocation = Allocation::model;
  KVCache<half, 2> cache(options), other(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 200, 5);
  cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  const SequenceId loaded = other.load(saved(cache, sequence));
  EXPECT_EQ(saved(other, loaded), saved(cache, sequence));
  for (auto *each : {&cache, &other}) {
    const SequenceId of = each == &cache ? sequence : loaded;
    each->attend(of, 1, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    fill(*each, of, in, 0, 60);
  }
  EXPECT_EQ(saved(other, loaded), saved(cache, sequence));
}

TEST(Snapshot, TakesLittleMoreThanWhatIsHeld) {
  Options options{.layers = 2, .query_heads = 8, .kv_heads = 4, .head_dim = 128};
  KVCache<half, 2> cache(options);
  const SequenceId sequence = cache.add_sequence();
  const Index tokens = 4 + 64 + 128 * 20 + 30;
  Inputs<> in(options, tokens, 5);
  fill(cache, sequence, in, 0, tokens);
  const MemoryReport report = cache.memory_report();
  const std::size_t sink = 2 * 4 * 128 * sizeof(half), row = 2 * 4 * (128 + sizeof(half));
  const std::size_t exact = 2 * (4 * sink + (64 + 30) * row);
  const Bytes bytes = saved(cache, sequence, false);
  EXPECT_LE(bytes.size(), (report.pages_used + exact) * 101 / 100);
  EXPECT_GE(bytes.size(), (report.pages_used + exact) * 99 / 100);
}

TEST(Snapshot, GoesThroughStreamsAndTellsHowFarItIs) {
  KVCache<half, 2> cache(small(Coding::subspace));
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(cache.options(), 200, 5);
  fill(cache, sequence, in, 0, 200);
  std::stringstream file;
  std::uint64_t written = 0, read = 0;
  cache.save(sequence, file, {.progress = [&](std::uint64_t bytes) { written = bytes; }});
  file << "behind it";
  KVCache<half, 2> other(cache.options());
  const SequenceId loaded = other.load(file, [&](std::uint64_t bytes) { read = bytes; });
  EXPECT_EQ(written, saved(cache, sequence).size());
  EXPECT_EQ(read, written);
  expect_equal(cache, sequence, other, loaded);
  std::string behind;
  std::getline(file, behind);
  EXPECT_EQ(behind, "behind it");
  Bytes memory(written);
  SpanSink all{std::span<std::byte>(memory)}, less{std::span<std::byte>(memory).first(written - 1)};
  cache.save(sequence, all);
  EXPECT_EQ(all.size(), written);
  EXPECT_THROW(cache.save(sequence, less), Error);
}

TEST(Snapshot, IsLeftAsItWasWhereProgressThrows) {
  KVCache<half, 2> cache(small(Coding::subspace)), other(cache.options());
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(cache.options(), 200, 5);
  fill(cache, sequence, in, 0, 200);
  const Bytes bytes = saved(cache, sequence);
  const auto stop = [&](std::uint64_t done) {
    if (done > bytes.size() - 10) throw std::runtime_error("enough");
  };
  EXPECT_THROW(other.load(bytes, stop), std::runtime_error);
  EXPECT_EQ(other.memory_report().pages, 0u);
  EXPECT_NO_THROW(other.load(bytes));
}

/// What tests/reference/snapshot.py reads: a snapshot, and what the library says that it holds.
template <class T, int Bits>
void write_files(const std::string &name, const Options &options) {
  KVCache<T, Bits> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 200, 5);
  for (float &x : in.v.elements) x += 2;  // about a mean
  fill(cache, sequence, in, 0, 200);
  cache.shift(sequence, 50, 60, options.rotary.empty() ? 0 : -10);
  std::ofstream snapshot(name + ".snapshot", std::ios::binary),
      expected(name + ".expected", std::ios::binary);
  cache.save(sequence, snapshot);
  const auto write = [&](const void *data, std::size_t size) {
    expected.write(static_cast<const char *>(data), static_cast<std::streamsize>(size));
  };
  const std::vector<float> frequencies =
      options.rotary.empty() ? std::vector<float>() : options.rotary.front().inverse_frequencies;
  const auto count = static_cast<std::uint32_t>(frequencies.size());
  write(&count, sizeof count);
  write(frequencies.data(), frequencies.size() * sizeof(float));
  for (int layer = 0; layer < options.layers; ++layer) {
    const Contents held = contents(cache, sequence, layer);
    for (const auto *rows : {&held.k, &held.v})
      write(rows->elements.data(), rows->elements.size() * sizeof(float));
  }
  EXPECT_TRUE(snapshot.flush() && expected.flush()) << name;
}

TEST(Snapshot, IsWrittenForAnotherReader) {
  const char *directory = std::getenv("SQUAT_SNAPSHOT_DIRECTORY");
  if (directory == nullptr) GTEST_SKIP() << "SQUAT_SNAPSHOT_DIRECTORY says where; ctest sets it";
  const std::string folder = std::string(directory) + "/";
  write_files<half, 2>(folder + "subspace_2", small(Coding::subspace));
  write_files<half, 3>(folder + "subspace_3", small(Coding::subspace));
  write_files<float, 4>(folder + "subspace_4", small(Coding::subspace));
  write_files<float, 8>(folder + "plain_8", small(Coding::plain));
  write_files<half, 2>(folder + "orthogonal_2", small(Coding::orthogonal));
  Options options = small(Coding::plain);
  options.rotary = {};
  write_files<half, 3>(folder + "plain_3_without_rotary", options);
}

// ---- codings that meet

TEST(Snapshot, NeedsNoCodingWhereTheCacheHasIt) {
  KVCache<half, 2> cache(small(Coding::subspace)), other(cache.options());
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(cache.options(), 200, 5);
  fill(cache, sequence, in, 0, 200);
  EXPECT_THROW(other.load(saved(cache, sequence, false)), Error);
  Bytes codings;
  cache.save_codings(codings);
  other.load_codings(codings);
  other.load_codings(codings);  // the same again
  const SequenceId loaded = other.load(saved(cache, sequence, false));
  expect_equal(cache, sequence, other, loaded);
  const SequenceId again = cache.load(saved(cache, sequence));
  expect_equal(cache, sequence, cache, again);
}

TEST(Snapshot, OfPagesBringsItsCodingWhereTheCacheHasLearntAnother) {
  KVCache<half, 2> other(small(Coding::subspace));
  Inputs<> others(other.options(), 200, 15);
  const SequenceId own = other.add_sequence();
  fill(other, own, others, 0, 200);
  const Contents before = contents(other, own);
  std::vector<Bytes> sessions;
  for (unsigned seed = 0; seed < 4; ++seed) {
    KVCache<half, 2> cache(other.options());
    Inputs<> in(cache.options(), 200, 50 + 10 * seed);
    const SequenceId sequence = cache.add_sequence();
    fill(cache, sequence, in, 0, 200);
    sessions.push_back(saved(cache, sequence));
    if (seed == 3) break;
    const SequenceId loaded = other.load(sessions.back());
    expect_equal(cache, sequence, other, loaded);
    EXPECT_EQ(saved(other, loaded), sessions.back());
    const MemoryReport report = other.memory_report();
    other.remove_sequence(other.load(sessions.back()));  // the coding is there
    EXPECT_EQ(other.memory_report().bases, report.bases);
    Bytes codings;
    cache.save_codings(codings);
    EXPECT_THROW(other.load_codings(codings), Error);
  }
  const MemoryReport report = other.memory_report();
  EXPECT_THROW(other.load(sessions.back()), Error);  // a fifth
  EXPECT_EQ(contents(other, own), before);
  EXPECT_EQ(other.memory_report().total(), report.total());
  other.remove_sequence(own);  // the cache's own coding stays
  EXPECT_THROW(other.load(sessions.back()), Error);
}

TEST(Snapshot, OfPagesOfOtherSizesIsRefused) {
  Options options = small(Coding::subspace);
  options.allocation = Allocation::model;
  KVCache<half, 2> cache(options), other(options);
  const SequenceId sequence = cache.add_sequence(), own = other.add_sequence();
  Inputs<> in(options, 200, 5), others(options, 200, 15);
  for (Index first : {0, 150}) {
    fill(cache, sequence, in, first, first == 0 ? 150 : 50);
    fill(other, own, others, first, first == 0 ? 150 : 50);
  }
  const Contents before = contents(other, own);
  const MemoryReport report = other.memory_report();
  EXPECT_THROW(other.load(saved(cache, sequence)), Error);
  EXPECT_EQ(contents(other, own), before);
  EXPECT_EQ(other.memory_report().total(), report.total());
}

TEST(Snapshot, OfPagesThatKnowNothingTeachesNoCache) {
  for (const Allocation allocation : {Allocation::head, Allocation::layer, Allocation::model}) {
    Options options = small(Coding::subspace);
    options.allocation = allocation;
    KVCache<half, 2> cache(options), other(options), untouched(options);
    Inputs<> dummies(options, 200, 5), in(options, 200, 15);
    std::fill(dummies.k.elements.begin(), dummies.k.elements.end(), 1.0f);  // no text
    const SequenceId sequence = cache.add_sequence();
    for (Index first : {0, 150}) fill(cache, sequence, dummies, first, first == 0 ? 150 : 50);
    ASSERT_GT(cache.memory_report().packed_tokens, 0);
    const SequenceId loaded = other.load(saved(cache, sequence));
    expect_equal(cache, sequence, other, loaded);
    const SequenceId taught = other.add_sequence(), as_ever = untouched.add_sequence();
    for (Index first : {0, 150}) {
      fill(other, taught, in, first, first == 0 ? 150 : 50);
      fill(untouched, as_ever, in, first, first == 0 ? 150 : 50);
    }
    expect_equal(other, taught, untouched, as_ever);
  }
}

TEST(Snapshot, OfExactRowsAloneGoesWithAnyCoding) {
  KVCache<half, 2> cache(small(Coding::subspace)), other(cache.options());
  Inputs<> in(cache.options(), 200, 5), others(cache.options(), 200, 15);
  const SequenceId sequence = cache.add_sequence(), own = other.add_sequence();
  fill(cache, sequence, in, 0, 60);
  fill(other, own, others, 0, 200);
  const SequenceId loaded = other.load(saved(cache, sequence));
  expect_equal(cache, sequence, other, loaded);
  fill(other, loaded, in, 60, 100);
  EXPECT_EQ(other.length(loaded), 160);
}

TEST(Snapshot, OfOneCachesCodingsBecomesASequencesOwn) {
  Options options = small(Coding::subspace);
  KVCache<half, 2> cache(options);
  options.learning = LearningMode::per_sequence;
  KVCache<half, 2> other(options);
  Inputs<> in(cache.options(), 200, 5), others(cache.options(), 200, 15);
  const SequenceId sequence = cache.add_sequence(), own = other.add_sequence();
  fill(cache, sequence, in, 0, 200);
  fill(other, own, others, 0, 200);
  const SequenceId loaded = other.load(saved(cache, sequence));
  expect_equal(cache, sequence, other, loaded);
  Bytes codings;
  EXPECT_THROW(other.save_codings(codings), Error);
}

// ---- what is refused

template <class Cache>
void expect_refused(const Bytes &bytes, const Options &options, const std::string &name) {
  Cache cache(options);
  expect_error([&] { cache.load(bytes); }, {"snapshot." + name});
}

TEST(Snapshot, OfOtherOptionsIsRefusedByName) {
  const Options options = small(Coding::orthogonal);
  KVCache<half, 4> cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 50, 5);
  fill(cache, sequence, in, 0, 50);
  const Bytes bytes = saved(cache, sequence);
  using Change = std::function<void(Options &)>;
  const std::vector<std::pair<const char *, Change>> changes = {
      {"layers", [](Options &o) { o.layers = 1; }},
      {"query_heads", [](Options &o) { o.query_heads = 8; }},
      {"kv_heads", [](Options &o) { o.kv_heads = 4; }},
      {"head_dim", [](Options &o) { o.head_dim = 64; }},
      {"coding", [](Options &o) { o.coding = Coding::subspace; }},
      {"fit", [](Options &o) { o.fit = AffineFit::minmax; }},
      {"values", [](Options &o) { o.values = ValueCoding::plain; }},
      {"tail", [](Options &o) { o.tail = TailCoding::int8; }},
      {"codes", [](Options &o) { o.codes = Codes::trellis; }},
      {"orthogonal.rank", [](Options &o) { o.orthogonal.rank = 3; }},
      {"orthogonal.lambda", [](Options &o) { o.orthogonal.lambda = .5f; }},
      {"orthogonal.block", [](Options &o) { o.orthogonal.block = 2; }},
      {"orthogonal.order", [](Options &o) { o.orthogonal.order = false; }},
      {"sinks", [](Options &o) { o.sinks = 4; }},
      {"residual", [](Options &o) { o.residual = 17; }},
      {"page_tokens", [](Options &o) { o.page_tokens = 64; }},
      {"tile_tokens", [](Options &o) { o.tile_tokens = 64; }},
      {"attention_scale", [](Options &o) { o.attention_scale = .5f; }},
      {"rotary", [](Options &o) { o.rotary.front().inverse_frequencies.back() *= 2; }},
      {"statistics_tokens", [](Options &o) { o.statistics_tokens = 100; }}};
  for (const auto &[name, change] : changes) {
    Options other = options;
    change(other);
    expect_refused<KVCache<half, 4>>(bytes, other, name);
  }
  expect_refused<KVCache<float, 4>>(bytes, options, "element_type");
  expect_refused<KVCache<half, 8, 4>>(bytes, options, "key_bits");
  expect_refused<KVCache<half, 4, 8>>(bytes, options, "value_bits");
  Options subspace = small(Coding::subspace);
  KVCache<half, 4> of_heads(subspace);
  subspace.allocation = Allocation::layer;
  expect_refused<KVCache<half, 4>>(saved(of_heads, of_heads.add_sequence()), subspace, "allocation");
}

TEST(Snapshot, OfEarlierTrellisCodesIsRefusedByName) {
  Options options = small(Coding::subspace);
  options.codes = Codes::trellis;
  KVCache<half, 2> cache(options);
  Bytes bytes = saved(cache, cache.add_sequence());
  for_each_section(std::span(bytes), [](const auto &header, std::span<std::byte> payload) {
    if (header.section != detail::Section::shape) return;
    payload[detail::codes_of_shape * sizeof(std::uint64_t)] = std::byte{1};
  });
  repair(bytes);
  for (const Codes codes : {Codes::scalar, Codes::trellis}) {
    options.codes = codes;
    KVCache<half, 2> other(options);
    expect_error([&] { other.load(bytes); }, {"snapshot.codes", "earlier"});
  }
}

/// A small cache and what it saved.
struct SmallFile {
  explicit SmallFile(Coding coding) : cache(options_of(coding)), sequence(cache.add_sequence()) {
    Inputs<> in(cache.options(), 70, 5);
    fill(cache, sequence, in, 0, 70);
    bytes = saved(cache, sequence);
  }
  static Options options_of(Coding coding) {
    Options options{.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16, .coding = coding};
    options.sinks = 1;
    options.residual = 2;
    options.page_tokens = 32;
    options.statistics_tokens = 40;
    return options;
  }

  KVCache<half, 2> cache;
  SequenceId sequence;
  Bytes bytes;
};

void expect_refused_without_a_trace(KVCache<half, 2> &cache, const Bytes &bytes,
                                    const MemoryReport &before) {
  EXPECT_THROW(cache.load(bytes), Error);
  const MemoryReport after = cache.memory_report();
  EXPECT_EQ(after.total(), before.total());
  EXPECT_EQ(after.pages, before.pages);
  EXPECT_EQ(after.bases, before.bases);
  EXPECT_EQ(after.statistics, before.statistics);
  EXPECT_EQ(after.packed_tokens + after.exact_tokens, before.packed_tokens + before.exact_tokens);
}

TEST_P(Snapshot, CutAnywhereIsRefused) {
  const SmallFile file(GetParam());
  KVCache<half, 2> cache(file.cache.options());
  const MemoryReport before = cache.memory_report();
  for (std::size_t size = 0; size < file.bytes.size(); ++size) {
    SCOPED_TRACE(size);
    expect_refused_without_a_trace(
        cache, Bytes(file.bytes.begin(), file.bytes.begin() + static_cast<std::ptrdiff_t>(size)),
        before);
  }
  EXPECT_NO_THROW(cache.load(file.bytes));
}

TEST_P(Snapshot, WithOneBitOfAnyByteFlippedIsRefused) {
  SmallFile file(GetParam());
  KVCache<half, 2> cache(file.cache.options());
  const MemoryReport before = cache.memory_report();
  for (std::size_t at = 0; at < file.bytes.size(); ++at) {
    SCOPED_TRACE(at);
    const std::byte bit{static_cast<unsigned char>(1u << (at * 5 + 3) % 8)};
    file.bytes[at] ^= bit;
    expect_refused_without_a_trace(cache, file.bytes, before);
    file.bytes[at] ^= bit;
  }
  EXPECT_NO_THROW(cache.load(file.bytes));
}

TEST(Snapshot, ThatAsksForMorePagesThanThereMayBeIsRefused) {
  SmallFile file(Coding::plain);
  Options options = file.cache.options();
  options.max_pages = 1;
  KVCache<half, 2> cache(options);
  EXPECT_THROW(cache.load(file.bytes), Error);
  EXPECT_EQ(cache.memory_report().pages, 0u);
}

}  // namespace
}  // namespace squat::test::snapshot_test
