// Contexts split over ranks give what one cache gives: the same tokens coded the same, each at one rank,
// and the same outputs within rounding.

#include "squat/parallel/split_context.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/rank_threads.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"

namespace squat::test::split_context_test {
namespace {

/// A first run of 67 tokens, then runs of 32.
Options small(Coding coding = Coding::subspace) {
  Options options{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32, .coding = coding};
  options.sinks = 3;
  options.residual = 16;
  options.page_tokens = 16;
  options.statistics_tokens = 64;
  options.rotary = {rotary_table(1e3, 32)};
  if (coding == Coding::subspace) options.tile_tokens = 32;
  return options;
}
constexpr Index first_run = 67;

void copy_row(TensorView<float> from, TensorView<float> to) {
  std::copy_n(from.data, from.heads * from.head_dim, to.data);
}

/// The texts of two sequences.
struct Texts {
  explicit Texts(const Options &options)
      : in{Inputs<>(options, most, 1), Inputs<>(options, most, 11), Inputs<>(options, most, 21)} {}
  static constexpr Index most = 520;
  std::array<Inputs<>, 3> in;
};

/// A sequence of a player: its text is that of sequence `text`, of which shifts have dropped tokens and
/// moved others.
struct Played {
  SequenceId sequence;
  std::size_t text;
  Index tokens;
  Index dropped = 0, moved = 0;
};

/// Plays the same for a cache and for a context that is split.
template <class Context>
struct Player {
  Player(Context &its_context, const Options &its_options)
      : context(&its_context), options(its_options), texts(options) {}

  /// The next counts[i] tokens of each sequence in one call a layer, with a row of padding between.
  void step(std::vector<Played *> sequences, const std::vector<Index> &counts) {
    Index rows = 0;
    for (const Index count : counts) rows += count + 1;
    for (int layer = 0; layer < options.layers; ++layer) {
      Inputs<> call(options, rows, 99);
      std::vector<SequenceTokens> batch;
      Index row = 0;
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        Inputs<> &text = texts.in[sequences[i]->text];
        for (Index token = 0; token < counts[i]; ++token) {
          const Index from = sequences[i]->dropped + sequences[i]->tokens + token;
          copy_row(text.q.view(from, 1), call.q.view(row + token, 1));
          copy_row(text.k.view(from, 1), call.k.view(row + token, 1));
          copy_row(text.v.view(from, 1), call.v.view(row + token, 1));
          const Turn turn(options.rotary.front(), from + sequences[i]->moved);
          for (Tensor<float> *x : {&call.q, &call.k}) {
            for (Index head = 0; head < x->heads; ++head) turn.apply(x->view().row(row + token, head));
          }
        }
        batch.push_back({sequences[i]->sequence, counts[i], row});
        row += counts[i] + 1;
      }
      Tensor<float> lse(rows, options.query_heads, 1);
      context->attend(batch, layer,
                      AttentionTensors<float>{.q = call.q.view(),
                                              .k = call.k.view(),
                                              .v = call.v.view(),
                                              .out = call.out.view(),
                                              .lse = lse.view()});
      out.insert(out.end(), call.out.elements.begin(), call.out.elements.end());
      lses.insert(lses.end(), lse.elements.begin(), lse.elements.end());
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) sequences[i]->tokens += counts[i];
  }
  void steps(const std::vector<Played *> &sequences, int count) {
    for (int i = 0; i < count; ++i) step(sequences, std::vector<Index>(sequences.size(), 1));
  }
  Played add(std::size_t text) { return {context->add_sequence(), text, 0}; }
  void truncate(Played &played, Index tokens) {
    context->truncate(played.sequence, tokens);
    played.tokens = tokens;
  }
  Played fork(const Played &played, Index tokens) {
    Played child = played;
    child.sequence = context->fork(played.sequence, tokens);
    child.tokens = tokens;
    return child;
  }
  void shift(Played &played, Index first, Index last, Index by) {
    context->shift(played.sequence, first, last, by);
    played.tokens -= last - first;
    played.dropped += last - first;
    played.moved += by;
  }
  /// Each of `sequences` becomes what its parent was.
  void reorder(const std::vector<Played *> &sequences, const std::vector<Played> &parents) {
    std::vector<SequenceId> to, from;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      to.push_back(sequences[i]->sequence);
      from.push_back(parents[i].sequence);
    }
    context->reorder(to, from);
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      *sequences[i] = parents[i];
      sequences[i]->sequence = to[i];
    }
  }

  Context *context;
  Options options;
  Texts texts;
  std::vector<float> out, lses;
};

/// Ragged prompts, pieces that end where runs end, steps, cuts, forks, shifts and beams. pieces: also
/// some of many runs.
template <class Context>
std::vector<Played> play(Player<Context> &player, bool pieces) {
  Played a = player.add(0), b = player.add(1);
  player.step({&a, &b}, {first_run, 20});
  player.step({&a, &b}, {32, 47});
  player.steps({&b, &a}, 70);
  if (pieces) player.step({&a, &b}, {100, 3});
  player.truncate(a, a.tokens - 5);  // in the tail
  player.steps({&a}, 30);
  player.truncate(a, 90);  // through a page
  player.steps({&a, &b}, 75);
  player.shift(b, 3, 90, -87);  // all of some runs, and some of others
  player.shift(a, 72, 80, -8);  // a piece of one
  player.steps({&a, &b}, 40);
  player.shift(b, 20, 20, 7);  // nothing
  Played c = player.fork(a, 110), d = player.fork(b, 30);
  player.steps({&a, &c, &d}, 30);
  player.reorder({&c, &a, &d}, {a, c, b});
  player.steps({&a, &c, &d}, 30);
  if (pieces) player.step({&d, &c}, {170, 90});
  return {a, b, c, d};
}

double distance(const std::vector<float> &a, const std::vector<float> &b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return a.size() == b.size() ? std::sqrt(difference / norm) : 1e9;
}

/// What a rank holds of a sequence, in each layer.
using Held = std::vector<Contents>;

struct Outcome {
  std::vector<float> out, lses;
  std::vector<std::vector<Held>> held;    // by rank and played sequence
  std::vector<std::vector<int>> rank_of;  // by played sequence and token
};

template <class Cache>
Outcome play_split(const Options &options, int ranks, bool pieces) {
  Outcome outcome;
  outcome.held.resize(static_cast<std::size_t>(ranks));
  std::vector<std::vector<float>> out(outcome.held.size()), lses(outcome.held.size());
  run_ranks(ranks, [&](RankThread &transport) {
    const auto rank = static_cast<std::size_t>(transport.rank());
    Cache cache(options);
    using Context = SplitContext<Cache, RankThread>;
    Context context(cache, transport);
    Player<Context> player(context, cache.options());
    const std::vector<Played> played = play(player, pieces);
    out[rank] = player.out;
    lses[rank] = player.lses;
    for (std::size_t i = 0; i < played.size(); ++i) {
      EXPECT_EQ(context.length(played[i].sequence), played[i].tokens);
      Held held;
      for (int layer = 0; layer < options.layers; ++layer)
        held.push_back(contents(cache, context.local(played[i].sequence, transport.rank()), layer));
      outcome.held[rank].push_back(std::move(held));
      if (rank > 0) continue;
      outcome.rank_of.emplace_back();
      for (Index token = 0; token < played[i].tokens; ++token)
        outcome.rank_of.back().push_back(context.rank_of(played[i].sequence, token));
    }
  });
  for (std::size_t rank = 0; rank < out.size(); ++rank) {
    EXPECT_EQ(out[rank], out[0]);
    EXPECT_EQ(lses[rank], lses[0]);
  }
  outcome.out = out[0];
  outcome.lses = lses[0];
  return outcome;
}

/// Every token is at its one rank, and there as one cache has it.
template <class Cache>
void expect_same_tokens(Cache &one, const std::vector<Played> &played, const Outcome &found) {
  for (std::size_t i = 0; i < played.size(); ++i) {
    for (int layer = 0; layer < one.options().layers; ++layer) {
      const Contents all = contents(one, played[i].sequence, layer);
      std::vector<Index> next(found.held.size());
      for (Index token = 0; token < played[i].tokens; ++token) {
        const auto rank = static_cast<std::size_t>(found.rank_of[i][static_cast<std::size_t>(token)]);
        const Contents &part = found.held[rank][i][static_cast<std::size_t>(layer)];
        ASSERT_LT(next[rank], part.k.tokens);
        const auto row = [](const Tensor<float> &rows, Index at) {
          const auto begin = rows.elements.begin() + at * rows.heads * rows.head_dim;
          return std::vector<float>(begin, begin + rows.heads * rows.head_dim);
        };
        ASSERT_EQ(row(all.k, token), row(part.k, next[rank])) << "key of token " << token;
        ASSERT_EQ(row(all.v, token), row(part.v, next[rank])) << "value of token " << token;
        ++next[rank];
      }
      for (std::size_t rank = 0; rank < next.size(); ++rank)
        EXPECT_EQ(next[rank], found.held[rank][i][static_cast<std::size_t>(layer)].k.tokens);
    }
  }
}

template <class T, int Bits>
void check(const Options &options, double tolerance, bool pieces) {
  using Cache = KVCache<T, Bits>;
  Cache one(options);
  Player<Cache> player(one, one.options());
  const std::vector<Played> played = play(player, pieces);
  for (const int ranks : {1, 2, 3, 4}) {
    SCOPED_TRACE(std::to_string(Bits) + " bits, " + std::to_string(ranks) + " ranks");
    const auto found = play_split<Cache>(options, ranks, pieces);
    EXPECT_LE(distance(found.out, player.out), tolerance);
    EXPECT_LE(distance(found.lses, player.lses), tolerance);
    if (!pieces) expect_same_tokens(one, played, found);
  }
}

/// Wherever a shift begins and ends, in runs that are there, that end, or that have not begun.
TEST(SplitContext, IsOneCacheAfterAnyShift) {
  struct Shift {
    Index first, last, by;
  };
  using Cache = KVCache<float, 16>;
  const Options options = small(Coding::plain);
  for (const Index tokens : {40, 67, 99, 115, 131, 150}) {
    for (const Shift &shift :
         {Shift{0, 5, -5}, Shift{2, 39, -37}, Shift{3, 35, -20}, Shift{30, tokens, 0},
          Shift{tokens - 9, tokens - 2, -7}, Shift{tokens, tokens, 11}, Shift{tokens / 2, tokens / 2, 0},
          Shift{0, tokens, -tokens}}) {
      const auto play_shift = [&](auto &player) {
        Played a = player.add(0);
        player.step({&a}, {std::min(tokens, first_run)});
        player.steps({&a}, static_cast<int>(tokens - a.tokens));
        player.shift(a, shift.first, shift.last, shift.by);
        player.steps({&a}, 30);
        player.shift(a, 1, 2, -1);
        player.truncate(a, a.tokens - 3);
        player.steps({&a}, 80);
        EXPECT_EQ(player.context->length(a.sequence), a.tokens);
      };
      Cache one(options);
      Player<Cache> in_one(one, one.options());
      play_shift(in_one);
      for (const int ranks : {1, 2, 3}) {
        run_ranks(ranks, [&](RankThread &transport) {
          Cache cache(options);
          SplitContext context(cache, transport);
          Player player(context, cache.options());
          play_shift(player);
          // Where a run ends early, pages of half precision do.
          EXPECT_LE(distance(player.out, in_one.out), 1e-4)
              << ranks << " ranks, " << tokens << " tokens, " << shift.first << " to " << shift.last
              << " by " << shift.by;
        });
      }
    }
  }
}

TEST(SplitContext, IsOneCacheAt16Bits) {
  check<float, 16>(small(Coding::plain), 2e-5, false);
  check<float, 16>(small(Coding::plain), 1e-3, true);  // in pieces, half precision meets other tokens
}

TEST(SplitContext, IsOneCacheAt2BitsOfOneCoding) {
  check<float, 2>(small(), rounding_tolerance(2), false);
  check<half, 4>(small(Coding::orthogonal), rounding_tolerance(4), false);
}

TEST(SplitContext, HasTheLogitsOfSinksOnce) {
  for (const float logit : {-3.0f, 2.0f, 9.0f}) {  // hardly any of a row's weight, some, most
    Options options = small(Coding::plain);
    options.sink_logits = {logit, logit + 1, 0, logit - 2, 1, logit, 4, -logit};  // of two layers
    check<float, 16>(options, 2e-5, false);
    options = small();
    options.sink_logits = {logit, 1, logit - 1, 0};
    check<float, 2>(options, rounding_tolerance(2), false);
  }
}

/// Drafts of three sequences, of which one has no tokens and one is at one part alone: by what part 0
/// learns from and by tokens of later runs.
TEST(SplitContext, DraftsAsOneCache) {
  using Cache = KVCache<float, 16>;
  for (const float logit : {0.0f, 5.0f}) {
    Options options = small(Coding::plain);
    if (logit != 0) options.sink_logits = {logit, 1, logit - 1, 0};
    const std::vector<Index> parents = {-1, 0, 0, -1, 2, -7, -1, 0, 1, -1};  // row 5 is padding
    const auto drafted = [&](auto &context) {
      Player player(context, options);
      Played a = player.add(0), b = player.add(1), c = player.add(2);
      player.step({&a, &b}, {first_run, 20});
      std::vector<float> found;
      for (const int more : {0, 40, 24, 1, 60}) {
        player.steps({&a}, more);
        Inputs<> in(options, 10, 50);
        Tensor<float> lse(10, options.query_heads, 1);
        const std::vector batch{SequenceTokens{a.sequence, 5, 0}, SequenceTokens{b.sequence, 3, 6},
                                SequenceTokens{c.sequence, 1, 9}};
        context.draft(batch, 1,
                      AttentionTensors<float>{.q = in.q.view(),
                                              .k = in.k.view(),
                                              .v = in.v.view(),
                                              .out = in.out.view(),
                                              .lse = lse.view()},
                      parents);
        EXPECT_EQ(context.length(a.sequence), a.tokens);
        found.insert(found.end(), in.out.elements.begin(), in.out.elements.end());
        found.insert(found.end(), lse.elements.begin(), lse.elements.end());
      }
      return found;
    };
    Cache one(options);
    const std::vector<float> expected = drafted(one);
    for (const int ranks : {1, 2, 3, 4}) {
      run_ranks(ranks, [&](RankThread &transport) {
        Cache cache(options);
        SplitContext context(cache, transport);
        EXPECT_LE(distance(drafted(context), expected), 2e-5) << ranks << " ranks, logit " << logit;
      });
    }
  }
}

TEST(SplitContext, ComesNearInPiecesOfManyRuns) {
  check<float, 8>(small(), 1e-2, true);
  check<float, 4>(small(), 5e-2, true);
}

/// What ranks hold of a sequence, in the order of its tokens.
Contents assembled(const Outcome &found, std::size_t sequence, int layer, const Options &options) {
  const std::vector<int> &rank_of = found.rank_of[sequence];
  const auto tokens = static_cast<Index>(rank_of.size());
  Contents all{{tokens, options.kv_heads, options.head_dim},
               {tokens, options.kv_heads, options.head_dim}};
  std::vector<Index> next(found.held.size());
  for (Index token = 0; token < tokens; ++token) {
    const auto rank = static_cast<std::size_t>(rank_of[static_cast<std::size_t>(token)]);
    Contents part = found.held[rank][sequence][static_cast<std::size_t>(layer)];
    copy_row(part.k.view(next[rank], 1), all.k.view(token, 1));
    copy_row(part.v.view(next[rank]++, 1), all.v.view(token, 1));
  }
  return all;
}

template <class T, int Bits>
void expect_double_precision(const Options &options, bool learn) {
  using Cache = KVCache<T, Bits>;
  for (const int ranks : {2, 3}) {
    SCOPED_TRACE(std::to_string(Bits) + " bits, " + std::to_string(ranks) + " ranks");
    Inputs<> text(options, 300, 5);
    embed(text, options.rotary.front());
    Outcome found;
    found.held.resize(static_cast<std::size_t>(ranks));
    std::vector<Tensor<float>> out(2, Tensor<float>(1, options.query_heads, options.head_dim));
    run_ranks(ranks, [&](RankThread &transport) {
      Cache cache(options);
      SplitContext context(cache, transport);
      const SequenceId sequence = context.add_sequence();
      Inputs<> in = text;
      for (Index first = 0; first < 300;) {
        const Index count = first == 0 ? first_run : std::min<Index>(first < 200 ? 40 : 1, 300 - first);
        const std::vector batch{SequenceTokens{.sequence = sequence, .tokens = count, .learn = learn}};
        for (int layer = 0; layer < 2; ++layer) {
          context.attend(batch, layer,
                         AttentionTensors<float>{.q = in.q.view(first, count),
                                                 .k = in.k.view(first, count),
                                                 .v = in.v.view(first, count),
                                                 .out = in.out.view(first, count)});
          if (transport.rank() == 1 && first == 299)
            copy_row(in.out.view(299, 1), out[static_cast<std::size_t>(layer)].view());
        }
        first += count;
      }
      Held held;
      for (int layer = 0; layer < 2; ++layer)
        held.push_back(contents(cache, context.local(sequence, transport.rank()), layer));
      found.held[static_cast<std::size_t>(transport.rank())].push_back(std::move(held));
      if (transport.rank() > 0) return;
      found.rank_of.emplace_back();
      for (Index token = 0; token < 300; ++token)
        found.rank_of.back().push_back(context.rank_of(sequence, token));
    });
    for (int layer = 0; layer < 2; ++layer) {
      const Contents all = assembled(found, 0, layer, options);
      EXPECT_LE(attention_distance(std::as_const(text.q).view().slice(299, 1),
                                   std::as_const(all.k).view(), std::as_const(all.v).view(),
                                   std::as_const(out[static_cast<std::size_t>(layer)]).view(), 299),
                rounding_tolerance(Bits));
    }
  }
}

TEST(SplitContext, AttendsToAllPartsAsInDoublePrecision) {
  expect_double_precision<float, 16>(small(Coding::plain), true);
  expect_double_precision<float, 2>(small(), true);
  expect_double_precision<half, 3>(small(Coding::orthogonal), true);
}

TEST(SplitContext, GoesOnWhereNothingIsLearnt) { expect_double_precision<half, 2>(small(), false); }

/// Ranks that have the parts of four go on with what four have saved, bit for bit. dropped: tokens that
/// a shift dropped before.
void expect_load_at_fewer(Index tokens, Index dropped = 0) {
  using Cache = KVCache<half, 2>;
  const Options options = small();
  constexpr int parts = 4;
  std::array<Bytes, parts> snapshots;
  std::vector<float> expected;
  const auto go_on = [&](auto &player, Played &played) {
    const std::size_t before = player.out.size();
    if (played.tokens < first_run) player.step({&played}, {first_run - played.tokens});
    player.steps({&played}, 100);
    player.truncate(played, 80);
    player.shift(played, 4, 30, -26);
    Played other = player.fork(played, 50);
    player.steps({&other, &played}, 60);
    return std::vector<float>(player.out.begin() + static_cast<std::ptrdiff_t>(before),
                              player.out.end());
  };
  run_ranks(parts, [&](RankThread &transport) {
    Cache cache(options);
    SplitContext context(cache, transport);
    Player player(context, cache.options());
    Played played = player.add(0);
    player.step({&played}, {std::min(tokens, first_run)});
    if (tokens > first_run) player.step({&played}, {tokens - first_run});
    if (dropped > 0) player.shift(played, 5, 5 + dropped, 9 - dropped);
    context.save(played.sequence, transport.rank(),
                 snapshots[static_cast<std::size_t>(transport.rank())]);
    const std::vector<float> out = go_on(player, played);
    if (transport.rank() == 2) expected = out;
  });
  for (const int ranks : {1, 2, 3, 4}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens at " + std::to_string(ranks) + " ranks");
    run_ranks(ranks, [&](RankThread &transport) {
      Cache cache(options);
      SplitContext context(cache, transport, parts);
      std::vector<SpanSource> sources;
      for (const int part : context.own_parts())
        sources.emplace_back(snapshots[static_cast<std::size_t>(part)]);
      Player player(context, cache.options());
      Played played{context.load(std::span<SpanSource>(sources)), 0, tokens - dropped, dropped,
                    dropped > 0 ? 9 - dropped : 0};
      EXPECT_EQ(context.length(played.sequence), tokens - dropped);
      for (const int part : context.own_parts()) {
        Bytes again;
        context.save(played.sequence, part, again);
        if (tokens > first_run) {  // before, part 0 alone has codings
          EXPECT_TRUE(again == snapshots[static_cast<std::size_t>(part)]) << "part " << part;
        }
      }
      EXPECT_TRUE(go_on(player, played) == expected);
    });
  }
}

TEST(SplitContext, LoadsAtFewerRanks) {
  expect_load_at_fewer(0);
  expect_load_at_fewer(40);  // learning still
  expect_load_at_fewer(first_run);
  expect_load_at_fewer(first_run + 32 + 20);
  expect_load_at_fewer(250);
  expect_load_at_fewer(250, 120);
}

TEST(SplitContext, OfOneRankIsItsCache) {
  using Cache = KVCache<half, 2>;
  const Options options = small();
  Cache one(options), cache(options);
  OneRank alone;
  SplitContext context(cache, alone);
  Player in_one(one, one.options());
  Player split(context, cache.options());
  EXPECT_EQ(context.room(split.add(0).sequence), Index{1} << 32);
  in_one.add(0);
  const std::vector<Played> expected = play(in_one, true), found = play(split, true);
  EXPECT_LE(distance(split.out, in_one.out), 1e-6);
  for (std::size_t i = 0; i < found.size(); ++i)
    EXPECT_EQ(saved(cache, context.local(found[i].sequence, 0)), saved(one, expected[i].sequence));
}

/// Calls of many runs pack no newer tokens than one cache does.
TEST(SplitContext, PacksNothingEarlyInCallsOfManyRuns) {
  using Cache = KVCache<half, 2>;
  Cache one(small());
  Player in_one(one, one.options());
  for (const Index count : {96, 128, 150, 160}) {
    Played all = in_one.add(0);
    in_one.step({&all}, {first_run});
    in_one.step({&all}, {count});
    run_ranks(2, [&](RankThread &transport) {
      Cache cache(small());
      SplitContext context(cache, transport);
      Player player(context, cache.options());
      Played played = player.add(0);
      player.step({&played}, {first_run});
      player.step({&played}, {count});
      std::vector<std::byte> tail(1);
      tail[0] = std::byte(cache.tail(context.local(played.sequence, transport.rank()), 1));
      std::vector<std::byte> tails(2);
      transport.all_gather(tail, tails);
      EXPECT_EQ(std::to_integer<Index>(tails[0]) + std::to_integer<Index>(tails[1]),
                one.tail(all.sequence, 1))
          << count;
    });
  }
}

TEST(SplitContext, AppendsWithoutAttention) {
  const Options options = small();
  Inputs<> text(options, 200, 5);
  embed(text, options.rotary.front());
  run_ranks(3, [&](RankThread &transport) {
    KVCache<half, 2> with(options), without(options);
    Inputs<> in = text;
    std::array<Bytes, 2> snapshots;
    for (auto *cache : {&with, &without}) {
      SplitContext context(*cache, transport);
      const SequenceId sequence = context.add_sequence();
      for (Index first = 0; first < 200;) {
        const Index count = std::min({Index{80}, 200 - first, context.room(sequence)});
        const std::vector batch{SequenceTokens{sequence, count}};
        AttentionTensors<float> tensors{.k = in.k.view(first, count), .v = in.v.view(first, count)};
        if (cache == &with || first == 0) tensors.q = in.q.view(first, count);
        if (cache == &with) tensors.out = in.out.view(first, count);
        for (int layer = 0; layer < 2; ++layer) context.attend(batch, layer, tensors);
        first += count;
      }
      context.save(sequence, transport.rank(), snapshots[cache == &with ? 0 : 1]);
    }
    EXPECT_EQ(snapshots[0], snapshots[1]);
  });
}

TEST(SplitContext, GivesRunsRoundTheRanks) {
  const Options options = small();
  run_ranks(3, [&](RankThread &transport) {
    KVCache<half, 2> cache(options);
    SplitContext context(cache, transport);
    const SequenceId sequence = context.add_sequence();
    const auto expect_rank = [&](Index token, int rank) {
      EXPECT_EQ(context.rank_of(sequence, token), rank);
    };
    expect_rank(0, 0);
    expect_rank(first_run - 1, 0);
    for (int run = 0; run < 7; ++run) {
      expect_rank(first_run + 32 * run, (run + 1) % 3);
      expect_rank(first_run + 32 * run + 31, (run + 1) % 3);
    }
    EXPECT_EQ(context.room(sequence), first_run);
    context.remove_sequence(sequence);
    EXPECT_THROW(context.length(sequence), Error);
  });
}

/// What captured steps hold for: see cuda/split_context_test.cu.
TEST(ContextRuns, SayWhichStepsAreAlike) {
  const detail::RunSizes sizes{.parts = 3, .first = 67, .next = 32};
  detail::ContextRuns runs;
  runs.extend(140, sizes);
  constexpr Index residual = 16;
  const auto expect_alike = [&](Index tokens, Index steps) {
    EXPECT_EQ(runs.steps_alike(tokens, residual), steps) << tokens << " tokens";
  };
  expect_alike(0, 0);
  expect_alike(66, 1);
  expect_alike(67, 0);   // the next begins a run
  expect_alike(68, 0);   // the second, of a part that had no tokens
  expect_alike(69, 14);  // until part 0 packs
  expect_alike(82, 1);
  expect_alike(83, 16);  // until the run ends
  expect_alike(98, 1);
  expect_alike(99, 0);
  runs.shift(60, 80, -20);  // part 0 has 60, part 1 has 19 behind them
  expect_alike(62, 14);
  expect_alike(76, 3);
}

TEST(SplitContext, RefusesOptionsThatCountTokensBetween) {
  const auto refused = [](const Options &options) {
    KVCache<half, 2> cache(options);
    OneRank alone;
    EXPECT_THROW(SplitContext(cache, alone), Error);
  };
  Options options = small();
  options.attention_window = 100;
  refused(options);
  options = small();
  options.alibi_slopes = {1, 1, 1, 1};
  refused(options);
  options = small();
  options.learning = LearningMode::per_sequence;
  refused(options);
}

/// What every rank throws alike, before anything changes.
TEST(SplitContext, RefusesWhatCannotBe) {
  const Options options = small();
  std::array<Bytes, 2> snapshots;
  run_ranks(2, [&](RankThread &transport) {
    KVCache<half, 2> cache(options);
    EXPECT_THROW(SplitContext(cache, transport, 1), Error) << "fewer parts than ranks";
    SplitContext context(cache, transport);
    Player player(context, cache.options());
    Played a = player.add(0), b = player.add(1);
    EXPECT_THROW(player.step({&a}, {first_run + 1}), Error) << "before codings are learnt";
    EXPECT_THROW(player.step({&a, &a}, {1, 1}), Error) << "named twice";
    player.step({&a, &b}, {first_run, 9});
    player.steps({&a, &b}, 40);

    Inputs<> in(options, 4, 1);
    const std::vector batch{SequenceTokens{a.sequence, 4}};
    const AttentionTensors<float> good{
        .q = in.q.view(), .k = in.k.view(), .v = in.v.view(), .out = in.out.view()};
    const auto refused = [&](int layer, const AttentionTensors<float> &tensors) {
      EXPECT_THROW(context.attend(batch, layer, tensors), Error);
      EXPECT_EQ(context.length(a.sequence), a.tokens);
    };
    refused(-1, good);
    refused(2, good);
    for (const int tensor : {0, 1, 2, 3}) {
      AttentionTensors<float> bad = good;
      if (tensor == 0) bad.q = bad.q.slice(0, 3);
      if (tensor == 1) bad.k = bad.k.slice(0, 3);
      if (tensor == 2) bad.v = bad.v.slice(0, 3);
      if (tensor == 3) bad.out = bad.out.slice(0, 3);
      refused(0, bad);
    }
    AttentionTensors<float> bad = good;
    bad.causal = false;
    refused(0, bad);
    const auto batch_refused = [&](const std::vector<SequenceTokens> &of_batch,
                                   const std::string &words) {
      expect_error([&] { context.attend(of_batch, 0, good); }, {words});
      EXPECT_EQ(context.length(a.sequence), a.tokens);
    };
    batch_refused({{a.sequence, 3}}, "tokens is 4, must be the tokens of the batch together, 3");
    batch_refused({{a.sequence, 1}, {b.sequence, 1, 5}}, "batch.first_row is 5, must be 1 to 4");
    batch_refused({{a.sequence, 1, 2}, {b.sequence, 2}}, "at most the rows left in the tensors, 1");
    batch_refused({{b.sequence, 2}, {b.sequence, 2}},
                  "batch.sequence is " + std::to_string(b.sequence.value) + ", must be named once");
    const auto draft_refused = [&](const AttentionTensors<float> &tensors, std::vector<Index> parents) {
      EXPECT_THROW(context.draft(batch, 0, tensors, parents), Error);
    };
    draft_refused(good, {-1, 0, 1});
    draft_refused(good, {-1, 0, 1, 3});
    draft_refused(good, {-1, 0, -2, 0});
    AttentionTensors<float> without = good;
    without.out = {};
    draft_refused(without, {-1, 0, 1, 2});
    EXPECT_THROW(context.rank_of(a.sequence, -1), Error);
    EXPECT_THROW(context.truncate(a.sequence, a.tokens + 1), Error);
    EXPECT_THROW(context.fork(a.sequence, -1), Error);
    EXPECT_THROW(context.length({99}), Error);
    EXPECT_THROW(context.length(a.sequence, 2), Error);
    EXPECT_THROW(context.local(a.sequence, 1 - transport.rank()), Error);
    const auto shift_refused = [&](Index first, Index last, Index by) {
      EXPECT_THROW(context.shift(a.sequence, first, last, by), Error);
      EXPECT_EQ(context.length(a.sequence), a.tokens);
    };
    shift_refused(-1, 3, 0);
    shift_refused(4, 3, 0);
    shift_refused(4, a.tokens + 1, 0);
    shift_refused(4, 20, -21);      // before position 0
    shift_refused(0, a.tokens, 0);  // none is left, and the next would not be the first
    shift_refused(4, 20, Index{1} << 32);
    const std::array both{a.sequence, b.sequence}, twice{a.sequence, a.sequence};
    EXPECT_THROW(context.reorder(both, std::span(both).first(1)), Error);
    EXPECT_THROW(context.reorder(twice, both), Error);
    EXPECT_THROW(context.reorder(both, std::array{a.sequence, SequenceId{99}}), Error);
    EXPECT_EQ(context.length(b.sequence), b.tokens);
    context.save(a.sequence, transport.rank(), snapshots[static_cast<std::size_t>(transport.rank())]);
    context.attend(batch, 0, good);  // one layer is ahead
    EXPECT_EQ(context.length(a.sequence, 0), a.tokens + 4);
    EXPECT_THROW(context.truncate(a.sequence, 3), Error);
    EXPECT_THROW(context.fork(a.sequence, 3), Error);
    EXPECT_THROW(context.shift(a.sequence, 3, 4, -1), Error);
    Bytes bytes;
    EXPECT_THROW(context.save(a.sequence, transport.rank(), bytes), Error);
  });

  KVCache<half, 2> cache(options);
  OneRank alone;
  SplitContext context(cache, alone, 2);
  const auto load = [&](const Bytes &first, const Bytes &second) {
    std::array sources{SpanSource(first), SpanSource(second)};
    return context.load(std::span<SpanSource>(sources));
  };
  const MemoryReport before = cache.memory_report();
  EXPECT_THROW(load(snapshots[1], snapshots[0]), Error) << "in another order";
  EXPECT_THROW(load(snapshots[0], snapshots[0]), Error) << "one twice";
  for (std::size_t at = 0; at < 100; ++at) {
    Bytes damaged = snapshots[1];
    damaged[at] ^= std::byte{1};
    EXPECT_THROW(load(snapshots[0], damaged), Error) << "byte " << at;
    EXPECT_THROW(
        load(snapshots[0], {damaged.begin(), damaged.begin() + static_cast<std::ptrdiff_t>(at)}), Error);
  }
  EXPECT_EQ(cache.memory_report().pages_used, before.pages_used);
  EXPECT_NO_THROW(load(snapshots[0], snapshots[1]));
  SplitContext of_three(cache, alone, 3);
  std::array sources{SpanSource(snapshots[0]), SpanSource(snapshots[1]), SpanSource(snapshots[1])};
  EXPECT_THROW(of_three.load(std::span<SpanSource>(sources)), Error) << "of another number of parts";
}

}  // namespace
}  // namespace squat::test::split_context_test
