// Contexts split over ranks on the device give what one cache there gives: the same tokens, each at one
// rank, and the same outputs within rounding.

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/drafts.hpp"
#include "reference/inputs.hpp"
#include "reference/rank_threads.hpp"
#include "reference/saved.hpp"
#include "squat/parallel/split_context.cuh"

namespace squat::test {

/// A first run of 67 tokens, then runs of 64.
struct SplitCase {
  static constexpr Index first_run = 67, most = 400;
  static Options options(TailCoding tail) {
    return {.layers = 2,
            .query_heads = 4,
            .kv_heads = 2,
            .head_dim = 64,
            .tail = tail,
            .sinks = 3,
            .residual = 20,
            .page_tokens = 32,
            .rotary = {rotary_table(1e4, 64)},
            .tile_tokens = 64,
            .statistics_tokens = 60};
  }
};

template <int Bits>
using SplitCache = DeviceCache<64, 32, Bits, Bits>;

/// Two texts in one tensor, the rows of the second behind those of the first, and what plays them to a
/// cache or a context.
template <class Context>
class SplitPlayer {
 public:
  struct Played {
    SequenceId sequence;
    Index text;
    Index tokens = 0;
    Index dropped = 0;  // by shifts
  };

  SplitPlayer(Context &context, const Options &options)
      : context_(&context),
        layers_(options.layers),
        in_(options, 2 * SplitCase::most, 7),
        lse_(Tensor<float>(2 * SplitCase::most, options.query_heads, 1)) {}

  Played add(Index text) { return {context_->add_sequence(), text}; }
  Played fork(const Played &parent, Index tokens, Index text) {
    return {context_->fork(parent.sequence, tokens), text, tokens, parent.dropped};
  }
  void truncate(Played &played, Index tokens) {
    context_->truncate(played.sequence, tokens);
    played.tokens = tokens;
  }

  void shift(Played &played, Index first, Index last) {
    context_->shift(played.sequence, first, last, first - last);
    played.tokens -= last - first;
    played.dropped += last - first;
  }
  /// Both become what the other was.
  void exchange(Played &a, Played &b) {
    const std::array sequences{a.sequence, b.sequence}, parents{b.sequence, a.sequence};
    context_->reorder(sequences, parents);
    std::swap(a.sequence, b.sequence);
    std::swap(a, b);
  }

  /// The next counts[i] tokens of each sequence, which are of different texts, first text first.
  void step(std::vector<Played *> sequences, const std::vector<Index> &counts) {
    std::vector<SequenceTokens> batch;
    for (std::size_t i = 0; i < sequences.size(); ++i)
      batch.push_back({sequences[i]->sequence, counts[i], row_of(*sequences[i])});
    for (int layer = 0; layer < layers_; ++layer) {
      context_->attend(batch, layer,
                       AttentionTensors<float>{.q = in_.q.view(),
                                               .k = in_.k.view(),
                                               .v = in_.v.view(),
                                               .out = in_.out.view(),
                                               .lse = lse_.view()});
      finish();
      const Tensor<float> rows = in_.out.read(), lses = lse_.read();
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        const Index first = row_of(*sequences[i]);
        for (Index row = first; row < first + counts[i]; ++row) {
          const auto add = [&](const Tensor<float> &from) {
            const Index width = from.heads * from.head_dim;
            const auto begin = from.elements.begin() + row * width;
            found.insert(found.end(), begin, begin + width);
          };
          add(rows);
          add(lses);
        }
      }
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) sequences[i]->tokens += counts[i];
  }
  void steps(const std::vector<Played *> &sequences, int count) {
    for (int i = 0; i < count; ++i) step(sequences, std::vector<Index>(sequences.size(), 1));
  }

  std::vector<float> found;

 private:
  static Index row_of(const Played &played) {
    return played.text * SplitCase::most + played.dropped + played.tokens;
  }

  Context *context_;
  int layers_;
  DeviceInputs in_;
  DeviceTensorCopy<> lse_;
};

namespace {

/// Ragged prompts, pieces that end where runs end, steps, cuts, forks, shifts and beams.
template <class Player>
auto play(Player &player) {
  auto a = player.add(0), b = player.add(1);
  player.step({&a, &b}, {SplitCase::first_run, 20});
  player.step({&a, &b}, {64, 47});
  player.steps({&a, &b}, 100);
  player.truncate(a, a.tokens - 5);  // in the tail
  player.steps({&a}, 30);
  player.truncate(a, 120);  // through a page
  player.steps({&a, &b}, 90);
  player.shift(a, 3, 80);   // all of a run, and some of another
  player.shift(b, 70, 90);  // a piece of one
  player.steps({&a, &b}, 30);
  auto c = player.fork(b, 150, 1);
  player.steps({&a, &c}, 30);
  player.exchange(a, c);
  player.steps({&c, &a}, 30);
  return std::vector{a, b, c};
}

/// What each rank holds of a sequence and layer, assembled in the order of its tokens.
template <class Cache>
struct Assembled {
  std::vector<Contents> parts;
  std::vector<std::size_t> rank_of;  // by token

  std::vector<float> all() const {
    std::vector<float> rows;
    std::vector<Index> next(parts.size());
    for (const std::size_t rank : rank_of) {
      for (const Tensor<float> *from : {&parts[rank].k, &parts[rank].v}) {
        const Index width = from->heads * from->head_dim;
        const auto begin = from->elements.begin() + next[rank] * width;
        rows.insert(rows.end(), begin, begin + width);
      }
      ++next[rank];
    }
    return rows;
  }
};

double apart(const std::vector<float> &a, const std::vector<float> &b) {
  if (a.size() != b.size()) return 1e9;
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

class CudaSplitContext : public OnDevice {};

template <int Bits>
void expect_as_one(TailCoding tail, int ranks, int parts, std::vector<float> sink_logits = {}) {
  SCOPED_TRACE(std::to_string(Bits) + " bits, ranks: " + std::to_string(ranks) +
               ", parts: " + std::to_string(parts));
  using Cache = SplitCache<Bits>;
  Options options = SplitCase::options(tail);
  options.sink_logits = std::move(sink_logits);
  Cache one(options);
  SplitPlayer<Cache> player(one, options);
  const auto played = play(player);
  Bytes codings;
  one.save_codings(codings);

  std::vector<std::vector<float>> found(static_cast<std::size_t>(ranks));
  std::vector<Assembled<Cache>> held(played.size() * 2);
  const Tensor<float> none(0, options.kv_heads, options.head_dim);
  for (auto &each : held) each.parts.assign(static_cast<std::size_t>(parts), Contents{none, none});
  run_ranks(ranks, [&](RankThread &transport) {
    Cache cache(options);
    using Context = SplitContext<Cache, RankThread>;
    Context context(cache, transport, parts);
    SplitPlayer<Context> in_parts(context, options);
    const auto same = play(in_parts);
    cache.check();
    found[static_cast<std::size_t>(transport.rank())] = in_parts.found;
    for (std::size_t i = 0; i < same.size(); ++i) {
      EXPECT_EQ(context.length(same[i].sequence), played[i].tokens);
      for (int layer = 0; layer < 2; ++layer) {
        Assembled<Cache> &all = held[2 * i + static_cast<std::size_t>(layer)];
        for (const int part : context.own_parts())
          all.parts[static_cast<std::size_t>(part)] =
              device_contents(cache, context.local(same[i].sequence, part), layer);
        if (transport.rank() > 0 || parts != ranks) continue;
        for (Index token = 0; token < same[i].tokens; ++token)
          all.rank_of.push_back(static_cast<std::size_t>(context.rank_of(same[i].sequence, token)));
      }
    }
  });
  for (const std::vector<float> &of_rank : found) EXPECT_EQ(of_rank, found.front());
  EXPECT_LE(apart(found.front(), player.found), device_tolerance);
  if (parts != ranks) return;
  for (std::size_t i = 0; i < held.size(); ++i) {
    const Contents all = device_contents(one, played[i / 2].sequence, static_cast<int>(i % 2));
    Assembled<Cache> of_one{{all}, std::vector<std::size_t>(held[i].rank_of.size())};
    // Statistics are sums in no fixed order: a code in some thousands may be another.
    EXPECT_LE(apart(held[i].all(), of_one.all()), 1e-2) << "sequence " << i / 2 << ", layer " << i % 2;
  }
}

TEST_F(CudaSplitContext, IsOneCacheAtOneRank) { expect_as_one<2>(TailCoding::exact, 1, 1); }

TEST_F(CudaSplitContext, IsOneCacheAtSomeRanks) {
  for (const int ranks : {2, 3}) {
    expect_as_one<2>(TailCoding::exact, ranks, ranks);
    expect_as_one<2>(TailCoding::int8, ranks, ranks);
  }
}

TEST_F(CudaSplitContext, IsOneCacheWithMorePartsThanRanks) {
  expect_as_one<2>(TailCoding::exact, 1, 3);
  expect_as_one<2>(TailCoding::int8, 2, 3);
}

TEST_F(CudaSplitContext, HasTheLogitsOfSinksOnce) {
  expect_as_one<2>(TailCoding::exact, 2, 3, {.5f, 6, 1, 3});
}

/// Drafts of two sequences, one of which is at one part alone.
TEST_F(CudaSplitContext, DraftsAsOneCache) {
  const Options options = SplitCase::options(TailCoding::exact);
  const Parents parents = {-1, 0, 0, -1, 2, -1, 0, 1};  // five rows, and three
  const auto drafted = [&](auto &context) {
    SplitPlayer player(context, options);
    auto a = player.add(0), b = player.add(1);
    player.step({&a, &b}, {SplitCase::first_run, 20});
    player.steps({&a}, 100);
    DeviceInputs in(options, 8, 50);
    DeviceTensorCopy<> lse(Tensor<float>(8, options.query_heads, 1));
    const std::array batch{SequenceTokens{a.sequence, 5}, SequenceTokens{b.sequence, 3}};
    context.draft(batch, 1,
                  AttentionTensors<float>{.q = in.q.view(),
                                          .k = in.k.view(),
                                          .v = in.v.view(),
                                          .out = in.out.view(),
                                          .lse = lse.view()},
                  parents);
    EXPECT_EQ(context.length(a.sequence), a.tokens);
    finish();
    std::vector<float> found = in.out.read().elements;
    const Tensor<float> lses = lse.read();
    found.insert(found.end(), lses.elements.begin(), lses.elements.end());
    return found;
  };
  SplitCache<2> one(options);
  const std::vector<float> expected = drafted(one);
  for (const int ranks : {1, 2, 3}) {
    run_ranks(ranks, [&](RankThread &transport) {
      SplitCache<2> cache(options);
      SplitContext context(cache, transport);
      EXPECT_LE(apart(drafted(context), expected), device_tolerance) << ranks << " ranks";
    });
  }
}

TEST_F(CudaSplitContext, GoesOnWithWhatWasSavedAtMoreRanks) {
  const Options options = SplitCase::options(TailCoding::int8);
  std::array<Bytes, 2> snapshots;
  std::vector<float> expected;
  run_ranks(2, [&](RankThread &transport) {
    SplitCache<2> cache(options);
    SplitContext context(cache, transport);
    SplitPlayer player(context, options);
    auto played = player.add(0);
    player.step({&played}, {SplitCase::first_run});
    player.steps({&played}, 150);
    context.save(played.sequence, transport.rank(),
                 snapshots[static_cast<std::size_t>(transport.rank())]);
    player.found.clear();
    player.steps({&played}, 100);
    if (transport.rank() == 0) expected = player.found;
  });
  SplitCache<2> cache(options);
  OneRank alone;
  SplitContext context(cache, alone, 2);
  std::array sources{SpanSource(snapshots[0]), SpanSource(snapshots[1])};
  SplitPlayer player(context, options);
  using Player = decltype(player);
  Player::Played played{context.load(std::span<SpanSource>(sources)), 0, SplitCase::first_run + 150};
  player.steps({&played}, 100);
  EXPECT_LE(apart(player.found, expected), device_tolerance);
}

/// A context of several parts, and one cache that takes the same steps one by one.
class CudaSplitSteps : public CudaSplitContext {
 protected:
  static constexpr Index rows = 2;  // of a step, a sequence each

  void SetUp() override {
    OnDevice::SetUp();
    if (!IsSkipped()) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }

  /// Sequences of a prompt and a fork of it, one token apart from where codings are learnt.
  template <class Context>
  static std::array<SequenceTokens, rows> begin(Context &context, const Options &options) {
    SplitPlayer<Context> player(context, options);
    auto a = player.add(0);
    player.step({&a}, {SplitCase::first_run - 1});
    const auto b = player.fork(a, SplitCase::first_run - 1, 1);
    return {SequenceTokens{a.sequence, 1}, SequenceTokens{b.sequence, 1}};
  }

  template <class Context>
  void step(Context &context, std::span<const SequenceTokens> batch, DeviceInputs &in) const {
    for (int layer = 0; layer < 2; ++layer)
      context.attend(batch, layer,
                     AttentionTensors<float>{
                         .q = in.q.view(), .k = in.k.view(), .v = in.v.view(), .out = in.out.view()},
                     stream);
  }

  static void draw(DeviceInputs &in, const Options &options, unsigned seed) {
    const DeviceInputs next(options, rows, seed);
    in.q.write(next.host.q);
    in.k.write(next.host.k);
    in.v.write(next.host.v);
  }

  /// The outputs, once they are there.
  std::vector<float> outputs(DeviceInputs &in) const {
    require(cudaStreamSynchronize(stream));
    return in.out.read().elements;
  }

  cudaStream_t stream = nullptr;
};

TEST_F(CudaSplitSteps, ReplaysAreStepsUntilARunEnds) {
  for (const int parts : {1, 2, 3}) {
    for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
      const Options options = SplitCase::options(tail);
      SplitCache<2> one(options), cache(options);
      OneRank alone;
      SplitContext context(cache, alone, parts);
      const auto in_one = begin(one, options), batch = begin(context, options);
      DeviceInputs in(options, rows, 1);
      std::unique_ptr<CapturedGraph> graph;
      int replayed = 0, captured = 0;
      for (int taken = 0; taken < 300;) {
        const Index alike = taken == 0 ? 0 : std::min<Index>(context.steps_alike(batch), 300 - taken);
        if (alike > 0) {
          graph = std::make_unique<CapturedGraph>(stream, [&] { step(context, batch, in); });
          ++captured;
        }
        for (Index i = 0; i < std::max<Index>(1, alike); ++i, ++taken) {
          draw(in, options, 100 + 3 * static_cast<unsigned>(taken));
          step(one, in_one, in);
          const std::vector<float> expected = outputs(in);
          if (alike > 0) {
            graph->replay();
            context.advance<float>(batch, 1, stream);
            ++replayed;
          } else {
            step(context, batch, in);
          }
          ASSERT_LE(apart(outputs(in), expected), device_tolerance) << parts << " parts, step " << taken;
        }
      }
      cache.check(stream);
      EXPECT_EQ(context.length(batch[0].sequence), one.length(in_one[0].sequence));
      EXPECT_GE(replayed, 280) << parts << " parts";
      EXPECT_LE(captured, 14) << parts << " parts";
    }
  }
}

TEST_F(CudaSplitSteps, SaysWhichStepsAreAlike) {
  const Options options = SplitCase::options(TailCoding::exact);
  SplitCache<2> cache(options);
  OneRank alone;
  SplitContext context(cache, alone, 2);
  const auto batch = begin(context, options);
  DeviceInputs in(options, rows, 1);
  const auto refused = [&](Index steps) {
    EXPECT_THROW(context.advance<float>(batch, steps, stream), Error);
  };
  const auto capture = [&] { const CapturedGraph graph(stream, [&] { step(context, batch, in); }); };
  const auto capture_refused = [&] {
    const CapturedGraph graph(stream, [&] { EXPECT_THROW(step(context, batch, in), Error); });
  };
  EXPECT_EQ(context.steps_alike(batch), 0) << "codings are not learnt";
  capture_refused();
  step(context, batch, in);
  EXPECT_EQ(context.steps_alike(batch), 0) << "the next begins a run";
  step(context, batch, in);
  EXPECT_EQ(context.steps_alike(batch), 0) << "part 1 had no tokens before the last";
  capture_refused();
  step(context, batch, in);
  EXPECT_EQ(context.steps_alike(batch), 14) << "a block of part 1's tail; 18 until part 0 packs";
  refused(1);  // nothing is captured
  capture();
  refused(19);
  EXPECT_EQ(context.length(batch[0].sequence), 69);
  for (int i = 0; i < 18; ++i) step(context, batch, in);
  refused(1);
  EXPECT_EQ(context.steps_alike(batch), 44) << "until the run ends";
  capture();
  refused(33);  // more than a page
  context.truncate(batch[0].sequence, 80, stream);
  refused(1);
  for (int i = 0; i < 7; ++i) step(context, batch, in);
  EXPECT_EQ(context.length(batch[1].sequence), 94);
  capture();
  context.shift(batch[0].sequence, 5, 6, -1, stream);
  refused(1);
}

/// What SplitContext asks of a cache.
TEST_F(CudaSplitContext, PacksTheWholePagesOfATail) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    const Options options = SplitCase::options(tail);
    SplitCache<2> cache(options);
    const SequenceId sequence = cache.add_sequence();
    DeviceInputs in(options, 200, 3);
    const auto append = [&](Index first, Index count) {
      for (int layer : {0, 1})
        cache.append(sequence, layer, in.q.view(first, count), in.k.view(first, count),
                     in.v.view(first, count));
    };
    append(0, 50);
    cache.pack<float>(sequence, 0);
    EXPECT_EQ(cache.tail(sequence, 0), 47) << "nothing is learnt";
    append(50, 92);  // 139 tokens behind the sinks, of which three pages are packed
    EXPECT_EQ(cache.tail(sequence, 0), 43);
    const Contents before = device_contents(cache, sequence, 0);
    cache.pack<float>(sequence, 0);
    EXPECT_EQ(cache.tail(sequence, 0), 11);
    EXPECT_EQ(cache.tail(sequence, 1), 43);
    EXPECT_EQ(cache.length(sequence, 0), 142);
    const Contents after = device_contents(cache, sequence, 0);
    EXPECT_LE(apart(after.k.elements, before.k.elements), 0.5);
    EXPECT_GT(apart(after.k.elements, before.k.elements), 1e-3) << "newer tokens are packed, too";
    append(142, 58);
    EXPECT_EQ(cache.length(sequence, 0), 200);
    EXPECT_EQ(cache.tail(sequence, 0), 37) << "20 tokens and less than a page";
    cache.check();
  }
}

}  // namespace
}  // namespace squat::test
