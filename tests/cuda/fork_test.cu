// Forks on the device are the sequences that were fed the same tokens, whoever steps on: the host, the
// kernels, or a graph that was captured before. Reordered beams are what recomputing them gives.

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/inputs.hpp"

namespace squat::test {
namespace {

class CudaFork : public OnDevice {
 protected:
  using Cache = DeviceCache<64, 32, 2, 2>;

  static constexpr Index sinks = 3, residual = 10, page_tokens = 32, prompt = 180;
  static constexpr Index paged_end = sinks + (prompt - sinks - residual) / page_tokens * page_tokens;

  static Options small(Coding coding = Coding::subspace, TailCoding tail = TailCoding::int8) {
    return {.layers = 2,
            .query_heads = 4,
            .kv_heads = 2,
            .head_dim = 64,
            .coding = coding,
            .tail = tail,
            .sinks = sinks,
            .residual = residual,
            .page_tokens = page_tokens,
            .rotary = {rotary_table(1e3, 64)},
            .statistics_tokens = 60};
  }

  void SetUp() override {
    OnDevice::SetUp();
    if (!IsSkipped()) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }

  static void feed(Cache &cache, SequenceId sequence, DeviceInputs &in, Index first, Index count) {
    for (int layer : {0, 1}) {
      cache.attend(sequence, layer, in.q.view(first, count), in.k.view(first, count),
                   in.v.view(first, count), in.out.view(first, count));
    }
  }

  /// In a piece, and then token by token across a page.
  static void go_on(Cache &cache, SequenceId sequence, DeviceInputs &in) {
    feed(cache, sequence, in, prompt, 7);
    for (Index token = prompt + 7; token < prompt + 50; ++token) feed(cache, sequence, in, token, 1);
  }

  static void expect_same(Cache &cache, SequenceId a, SequenceId b) {
    ASSERT_EQ(cache.length(a), cache.length(b));
    for (int layer : {0, 1})
      ASSERT_EQ(device_contents(cache, a, layer), device_contents(cache, b, layer));
  }

  /// Attention of a few queries over two sequences that hold the same.
  static void expect_same_attention(Cache &cache, SequenceId a, SequenceId b, DeviceInputs &in) {
    for (const Index queries : {Index{1}, std::min<Index>(5, cache.length(a))}) {
      std::array<Tensor<float>, 2> outputs = {in.host.out, in.host.out};
      for (std::size_t i = 0; i < 2; ++i) {
        cache.attend(i == 0 ? a : b, 1, in.q.view(0, queries), in.out.view(0, queries));
        outputs[i] = in.out.read();
      }
      for (std::size_t i = 0; i < outputs[0].elements.size(); ++i)
        ASSERT_NEAR(outputs[0].elements[i], outputs[1].elements[i], 1e-3);
    }
  }

  /// Caches whose kernels count alike hold alike: one went on step by step, one by replays.
  static void expect_same(Cache &a, Cache &b, std::span<const SequenceTokens> batch) {
    for (const SequenceTokens &entry : batch) {
      ASSERT_EQ(a.length(entry.sequence), b.length(entry.sequence));
      for (int layer : {0, 1}) {
        ASSERT_EQ(device_contents(a, entry.sequence, layer), device_contents(b, entry.sequence, layer));
      }
    }
  }

  void step(Cache &cache, std::span<const SequenceTokens> batch, DeviceInputs &in) const {
    for (int layer : {0, 1}) {
      cache.attend(batch, layer, in.q.view(), in.k.view(), in.v.view(), in.out.view(), stream);
    }
  }

  static void write(DeviceInputs &in, const Options &options, unsigned seed) {
    const DeviceInputs next(options, in.host.q.tokens, seed);
    in.q.write(next.host.q);
    in.k.write(next.host.k);
    in.v.write(next.host.v);
  }

  cudaStream_t stream = nullptr;
};

TEST_F(CudaFork, IsTheSequenceThatWasFedTheSameTokens) {
  for (const Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
      const Options options = small(coding, tail);
      Cache cache(options);
      DeviceInputs one(options, prompt + 50, 1), other(options, prompt + 50, 4);
      const SequenceId parent = cache.add_sequence(), whole = cache.add_sequence();
      for (const SequenceId sequence : {parent, whole}) feed(cache, sequence, one, 0, prompt);
      for (const Index kept :
           {Index{0}, Index{1}, sinks, sinks + 1, sinks + page_tokens, sinks + page_tokens + 1,
            paged_end - 1, paged_end, paged_end + 1, prompt - 1, prompt}) {
        SCOPED_TRACE(testing::Message() << "coding " << static_cast<int>(coding) << ", " << kept);
        const SequenceId cut = cache.add_sequence(), child = cache.fork(parent, kept);
        feed(cache, cut, one, 0, prompt);
        cache.truncate(cut, kept);
        expect_same(cache, child, cut);
        for (const SequenceId sequence : {cut, child}) go_on(cache, sequence, other);
        expect_same(cache, child, cut);
        expect_same_attention(cache, child, cut, other);
        expect_same(cache, parent, whole);
        cache.remove_sequence(cut);
        cache.remove_sequence(child);
      }
      const SequenceId child = cache.fork(parent);  // behind steps, whose tail begins within its ring
      for (const SequenceId sequence : {parent, whole}) go_on(cache, sequence, one);
      const SequenceId later = cache.fork(parent);
      expect_same(cache, later, whole);
      go_on(cache, child, one);
      expect_same(cache, child, whole);
      for (const SequenceId sequence : {whole, later}) go_on(cache, sequence, other);
      expect_same(cache, later, whole);
      expect_same_attention(cache, later, whole, other);
      cache.check();
    }
  }
}

TEST_F(CudaFork, IsTheSameBeforeAnythingIsLearnt) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    Options options = small(Coding::subspace, tail);
    options.statistics_tokens = 400;
    Cache cache(options);
    DeviceInputs in(options, 400, 1);
    const SequenceId parent = cache.add_sequence();
    feed(cache, parent, in, 0, 300);
    const SequenceId child = cache.fork(parent), part = cache.fork(parent, 150),
                     cut = cache.fork(parent);
    cache.truncate(cut, 150);
    expect_same(cache, child, parent);
    expect_same(cache, part, cut);
    EXPECT_EQ(cache.memory_report().packed_tokens, 0);
    feed(cache, child, in, 300, 100);  // which learns, and packs its own
    EXPECT_EQ(cache.memory_report().packed_tokens, 2 * (400 - sinks - residual) / 32 * 32);
    feed(cache, parent, in, 300, 100);
    expect_same(cache, child, parent);
    for (const SequenceId sequence : {part, cut}) go_on(cache, sequence, in);
    expect_same(cache, part, cut);
    expect_same_attention(cache, part, cut, in);
    cache.check();
  }
}

TEST_F(CudaFork, AndItsParentNeverNoticeEachOther) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    const Options options = small(Coding::subspace, tail);
    Cache cache(options);
    DeviceInputs one(options, prompt + 50, 1), other(options, prompt + 50, 4);
    const SequenceId parent = cache.add_sequence(), whole = cache.add_sequence();
    for (const SequenceId sequence : {parent, whole}) feed(cache, sequence, one, 0, prompt);
    const auto change = [&](SequenceId sequence) {
      go_on(cache, sequence, other);
      cache.shift(sequence, 20, 60, -40);
      go_on(cache, sequence, one);
      cache.truncate(sequence, 70);
      cache.shift(sequence, 0, 30, -30);
      go_on(cache, sequence, other);
    };
    const SequenceId changed = cache.fork(parent), kept = cache.fork(parent);
    change(changed);
    expect_same(cache, parent, whole);
    expect_same(cache, kept, whole);
    change(parent);
    expect_same(cache, parent, changed);
    expect_same(cache, kept, whole);
    cache.remove_sequence(parent);
    cache.remove_sequence(changed);
    for (const SequenceId sequence : {kept, whole}) go_on(cache, sequence, other);
    expect_same(cache, kept, whole);
    expect_same_attention(cache, kept, whole, other);
    cache.check();
  }
}

TEST_F(CudaFork, HasItsParentsCodingUntilTheLastGoes) {
  Options options = small();
  options.learning = LearningMode::per_sequence;
  Cache cache(options);
  DeviceInputs in(options, prompt + 50, 1);
  const SequenceId parent = cache.add_sequence();
  feed(cache, parent, in, 0, prompt);
  const std::size_t bases = cache.memory_report().bases;
  const SequenceId child = cache.fork(parent), other = cache.fork(parent);
  EXPECT_EQ(cache.memory_report().bases, bases);
  go_on(cache, child, in);
  cache.remove_sequence(parent);
  const SequenceId stranger = cache.add_sequence();
  DeviceInputs strange(options, prompt, 9);
  feed(cache, stranger, strange, 0, prompt);
  go_on(cache, other, in);
  expect_same(cache, child, other);
  expect_same_attention(cache, child, other, in);
}

TEST_F(CudaFork, SharesPagesUntilTheLastGoes) {
  Options options = small();
  options.max_pages = 2000;
  for (unsigned seed = 0; seed < 5; ++seed) {
    SCOPED_TRACE(seed);
    Cache cache(options);
    DeviceInputs in(options, prompt, 1);
    std::mt19937 random(seed);
    const auto below = [&](Index count) { return static_cast<Index>(random()) % count; };
    std::vector<SequenceId> family = {cache.add_sequence()};
    feed(cache, family[0], in, 0, prompt);
    const MemoryReport one = cache.memory_report();
    for (int i = 0; i < 8; ++i) family.push_back(cache.fork(family[0]));
    EXPECT_EQ(cache.memory_report().pages_used, one.pages_used);
    EXPECT_EQ(cache.memory_report().saved_by_sharing, 8 * one.pages_used);
    EXPECT_EQ(cache.memory_report().shared_pages * cache.page_bytes(0), one.pages_used);
    for (int round = 0; round < 20; ++round) {
      const SequenceId sequence =
          family[static_cast<std::size_t>(below(static_cast<Index>(family.size())))];
      const Index length = cache.length(sequence);
      if (round % 2 == 0) family.push_back(cache.fork(sequence, below(length + 1)));
      feed(cache, sequence, in, 0, 1 + below(40));
    }
    std::shuffle(family.begin(), family.end(), random);
    for (const SequenceId sequence : family) {
      const FreedPages freed = cache.freed_if_removed(sequence);
      const std::size_t free = cache.free_pages(), used = cache.memory_report().pages_used;
      cache.remove_sequence(sequence);
      ASSERT_EQ(cache.free_pages(), free + freed.pages);
      ASSERT_EQ(cache.memory_report().pages_used, used - freed.bytes);
    }
    EXPECT_EQ(cache.memory_report().pages_used, 0u);
    EXPECT_EQ(cache.memory_report().exact, 0u);
  }
}

TEST_F(CudaFork, GoesOnByReplays) {
  for (const Coding coding : {Coding::plain, Coding::subspace}) {
    const Options options = small(coding);
    Cache eager(options), replayed(options);
    DeviceInputs text(options, prompt, 1), in(options, 3, 50);
    std::array<SequenceTokens, 3> batch{};
    for (Cache *cache : {&eager, &replayed}) {
      const SequenceId parent = cache->add_sequence();
      feed(*cache, parent, text, 0, prompt);
      batch = {{{parent, 1}, {cache->fork(parent), 1}, {cache->fork(parent, paged_end + 1), 1}}};
      finish();
      step(*cache, batch, in);
      require(cudaStreamSynchronize(stream));
    }
    const CapturedGraph captured(stream, [&] { step(replayed, batch, in); });
    for (unsigned i = 0; i < 80; ++i) {
      require(cudaStreamSynchronize(stream));
      write(in, options, 100 + 3 * i);
      step(eager, batch, in);
      captured.replay();
      replayed.advance(batch, 1, stream);
    }
    eager.check(stream);
    replayed.check(stream);
    expect_same(eager, replayed, batch);
  }
}

/// A parent that was captured is forked and goes on in its graph.
TEST_F(CudaFork, LeavesItsParentsGraphAsItWas) {
  const Options options = small(Coding::plain);
  Cache eager(options), replayed(options);
  DeviceInputs text(options, prompt, 1), in(options, 1, 50);
  const std::array batch = {SequenceTokens{eager.add_sequence(), 1}};
  ASSERT_EQ(replayed.add_sequence(), batch[0].sequence);
  for (Cache *cache : {&eager, &replayed}) {
    feed(*cache, batch[0].sequence, text, 0, prompt);
    finish();
    step(*cache, batch, in);
    require(cudaStreamSynchronize(stream));
  }
  const CapturedGraph captured(stream, [&] { step(replayed, batch, in); });
  std::vector<SequenceId> children;
  std::vector<Contents> held;
  for (unsigned i = 0; i < 80; ++i) {
    require(cudaStreamSynchronize(stream));
    write(in, options, 100 + 3 * i);
    step(eager, batch, in);
    captured.replay();
    replayed.advance(batch, 1, stream);
    if (i % 16 != 7) continue;
    children.push_back(replayed.fork(batch[0].sequence, stream));
    require(cudaStreamSynchronize(stream));
    held.push_back(device_contents(eager, batch[0].sequence));
  }
  replayed.check(stream);
  expect_same(eager, replayed, batch);
  for (std::size_t i = 0; i < children.size(); ++i)
    EXPECT_EQ(device_contents(replayed, children[i]), held[i]);
}

class CudaReorder : public CudaFork {};

TEST_F(CudaReorder, IsRecomputingEveryBeam) {
  constexpr std::size_t width = 4;
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    const Options options = small(Coding::subspace, tail);
    Cache cache(options);
    DeviceInputs in(options, prompt + 50, 1);
    std::vector<SequenceId> beams;
    std::vector<std::vector<Index>> fed(width);
    for (std::size_t i = 0; i < width; ++i) {
      beams.push_back(cache.add_sequence());
      feed(cache, beams[i], in, 0, prompt);
    }
    std::mt19937 random(3);
    for (int round = 0; round < 60; ++round) {
      std::vector<SequenceId> parents;
      const std::vector<std::vector<Index>> before = fed;
      for (std::size_t i = 0; i < width; ++i) {
        const std::size_t parent = random() % width;
        parents.push_back(beams[parent]);
        fed[i] = before[parent];
      }
      cache.reorder(beams, parents);
      for (std::size_t i = 0; i < width; ++i) {
        fed[i].push_back(static_cast<Index>(random()) % in.host.q.tokens);
        feed(cache, beams[i], in, fed[i].back(), 1);
      }
    }
    cache.check();
    for (std::size_t i = 0; i < width; ++i) {
      const SequenceId again = cache.add_sequence();
      feed(cache, again, in, 0, prompt);
      for (const Index row : fed[i]) feed(cache, again, in, row, 1);
      expect_same(cache, beams[i], again);
      expect_same_attention(cache, beams[i], again, in);
      cache.remove_sequence(again);
    }
    for (const SequenceId beam : beams) cache.remove_sequence(beam);
    EXPECT_EQ(cache.memory_report().pages_used, 0u);
    EXPECT_EQ(cache.memory_report().exact, 0u);
  }
}

TEST_F(CudaReorder, TakesTokensOfAnyLengthAndNone) {
  Cache cache(small());
  DeviceInputs in(small(), prompt + 50, 1);
  const SequenceId full = cache.add_sequence(), empty = cache.add_sequence(),
                   whole = cache.add_sequence();
  for (const SequenceId sequence : {full, whole}) feed(cache, sequence, in, 0, prompt);
  const std::array both = {full, empty}, swapped = {empty, full};
  cache.reorder(both, swapped);
  EXPECT_EQ(cache.length(full), 0);
  expect_same(cache, empty, whole);
  cache.truncate(full, 0);
  cache.shift(full, 0, 0, 5);
  cache.reorder(both, swapped);
  EXPECT_EQ(cache.length(empty), 0);
  cache.shift(empty, 0, 0, -5);  // which it took with the tokens
  expect_same(cache, full, whole);
  for (const SequenceId sequence : {full, whole}) go_on(cache, sequence, in);
  expect_same(cache, full, whole);
  feed(cache, empty, in, 0, prompt);
  go_on(cache, empty, in);
  expect_same(cache, empty, whole);
  cache.check();
}

/// The graph names sequences, which hold other tokens after each reorder.
TEST_F(CudaReorder, LeavesCapturedStepsGood) {
  constexpr std::size_t width = 4;
  const Options options = small(Coding::plain);
  Cache eager(options), replayed(options);
  DeviceInputs text(options, prompt, 1), in(options, width, 50);
  std::vector<SequenceTokens> batch;
  std::vector<SequenceId> beams;
  for (Cache *cache : {&eager, &replayed}) {
    batch.clear();
    beams.clear();
    for (std::size_t i = 0; i < width; ++i) {
      batch.push_back({i == 0 ? cache->add_sequence() : cache->fork(beams[0]), 1});
      beams.push_back(batch.back().sequence);
      if (i == 0) feed(*cache, beams[0], text, 0, prompt);
    }
    finish();
    step(*cache, batch, in);
    require(cudaStreamSynchronize(stream));
  }
  const CapturedGraph captured(stream, [&] { step(replayed, batch, in); });
  std::mt19937 random(3);
  for (unsigned i = 0; i < 90; ++i) {
    std::vector<SequenceId> parents;
    for (std::size_t beam = 0; beam < width; ++beam) parents.push_back(beams[random() % width]);
    eager.reorder(beams, parents, stream);
    replayed.reorder(beams, parents, stream);
    require(cudaStreamSynchronize(stream));
    write(in, options, 100 + 3 * i);
    step(eager, batch, in);
    require(cudaStreamSynchronize(stream));
    const Tensor<float> expected = in.out.read();
    captured.replay();
    replayed.advance(batch, 1, stream);
    require(cudaStreamSynchronize(stream));
    const Tensor<float> out = in.out.read();
    for (std::size_t at = 0; at < out.elements.size(); ++at)
      ASSERT_NEAR(out.elements[at], expected.elements[at], 1e-3) << "step " << i;
  }
  eager.check(stream);
  replayed.check(stream);
  expect_same(eager, replayed, batch);
}

}  // namespace
}  // namespace squat::test
