// Drafts on the device: trees of proposed tokens against attention in double precision over what the
// cache holds and the path of each, and beside what appending a path comes to. They leave no trace.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/drafts.hpp"
#include "reference/inputs.hpp"
#include "reference/saved.hpp"
#include "reference/score_rules.hpp"

namespace squat::test {
namespace {

template <int HeadDim, int Group, int KeyBits, int ValueBits, class T = half>
struct DraftedWidths : CacheWidths<HeadDim, Group, KeyBits, ValueBits, T> {
  using CpuCache = KVCache<T, KeyBits, ValueBits>;
  static std::vector<TailCoding> tails() {
    if (std::max(KeyBits, ValueBits) == 16) return {TailCoding::exact};
    return {TailCoding::exact, TailCoding::int8};
  }
};

template <class W>
class CudaDraft : public OnDevice {};
using DraftedCaches = testing::Types<DraftedWidths<64, 32, 2, 2>, DraftedWidths<64, 32, 16, 16>,
                                     DraftedWidths<128, 128, 4, 4>, DraftedWidths<128, 128, 8, 16>,
                                     DraftedWidths<96, 32, 3, 3, bfloat16>>;
TYPED_TEST_SUITE(CudaDraft, DraftedCaches);

/// `held` with some rows of another tensor behind it.
Tensor<float> with_path(const Tensor<float> &held, const Tensor<float> &from, const Parents &path) {
  Tensor<float> rows(held.tokens, from.heads, from.head_dim);
  rows.elements = held.elements;
  const Index size = from.heads * from.head_dim;
  for (const Index row : path) {
    const float *first = from.elements.data() + row * size;
    rows.elements.insert(rows.elements.end(), first, first + size);
    ++rows.tokens;
  }
  return rows;
}

/// A draft's rows, whose outputs are no numbers before they are written.
struct DraftInputs : DeviceInputs {
  template <class Round>
  DraftInputs(const Options &options, Index tokens, unsigned seed, Round round)
      : DeviceInputs(options, tokens, seed, round), lse(Tensor<float>(tokens, options.query_heads, 1)) {
    spoil();
  }

  void spoil() {
    Tensor<float> rows = host.out, sums(host.out.tokens, host.out.heads, 1);
    for (auto *tensor : {&rows, &sums})
      std::fill(tensor->elements.begin(), tensor->elements.end(), std::nanf(""));
    out.write(rows);
    lse.write(sums);
  }

  AttentionTensors<float> tensors() {
    return {.q = q.view(), .k = k.view(), .v = v.view(), .out = out.view(), .lse = lse.view()};
  }

  DeviceTensorCopy<> lse;
};

/// The distance of a draft from attention over `held` and its paths, over all of its rows.
RuleDistance draft_distance(const Options &options, DraftInputs &in, const Contents &held,
                            const Parents &parents) {
  const Tensor<float> out = in.out.read(), lse = in.lse.read();
  RuleDistance all;
  for (std::size_t i = 0; i < parents.size(); ++i) {
    const auto token = static_cast<Index>(i);
    const Parents path = path_to(parents, token);
    const Tensor<float> k = with_path(held.k, in.host.k, path), v = with_path(held.v, in.host.v, path);
    const Tensor<float> &q = in.host.q;
    const RuleDistance one =
        rule_distance(options, q.view().slice(token, 1), k.view(), v.view(), out.view().slice(token, 1),
                      lse.view().slice(token, 1), [&](Index) { return k.tokens; });
    all.output += one.output * one.output / static_cast<double>(parents.size());
    all.lse = std::max(all.lse, one.lse);
  }
  all.output = std::sqrt(all.output);
  return all;
}

template <class Cache>
void draft_once(Cache &cache, SequenceId sequence, DraftInputs &in, const Parents &parents,
                bool asks_for_lse = true, cudaStream_t stream = nullptr) {
  AttentionTensors<float> tensors = in.tensors();
  if (!asks_for_lse) tensors.lse = {};
  const SequenceTokens entry{sequence, in.host.q.tokens};
  cache.draft(std::span(&entry, 1), 0, tensors, parents, stream);
}

TYPED_TEST(CudaDraft, SeesWhatIsCachedAndItsPathsAsOptionsSay) {
  using T = typename TypeParam::T;
  for (const Options &base :
       {TypeParam::options(6, 2), TypeParam::options(16, 1), TypeParam::options(2, 2)}) {
    for (Options options : score_rules(base)) {
      options.sinks = options.attention_window % 2 == 0 ? 4 : 20;
      typename TypeParam::Cache cache(options);
      const SequenceId sequence = cache.add_sequence();
      for (const Index piece : {290, 1, 30}) {
        DeviceInputs in(options, piece, static_cast<unsigned>(piece), nearest<T>);
        cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
      }
      const Contents held = device_contents(cache, sequence);
      const Bytes before = saved(cache, sequence);
      for (const Parents &parents :
           {chain_of(1), chain_of(5), tree_of(5, 1), tree_of(45, 2), chain_of(60), tree_of(130, 3)}) {
        if (parents.size() > 100 && options.query_heads > 6) continue;  // takes long, and is as with 60
        SCOPED_TRACE(testing::Message() << options.query_heads << "/" << options.kv_heads << ", window "
                                        << options.attention_window << ", cap " << options.soft_cap
                                        << ", of " << parents.size());
        DraftInputs in(options, static_cast<Index>(parents.size()), 9, nearest<T>);
        draft_once(cache, sequence, in, parents);
        const RuleDistance distance = draft_distance(options, in, held, parents);
        EXPECT_LT(distance.output, device_tolerance);
        EXPECT_LT(distance.lse, 2 * device_tolerance);  // the largest of a thousand rows
        const Tensor<float> out = in.out.read();
        in.spoil();
        draft_once(cache, sequence, in, parents, false);
        EXPECT_EQ(in.out.read().elements, out.elements);
      }
      EXPECT_EQ(saved(cache, sequence), before);
      EXPECT_EQ(cache.length(sequence), 321);
    }
  }
}

TYPED_TEST(CudaDraft, OfAChainIsWhatAppendingItComesTo) {
  for (const TailCoding tail : TypeParam::tails()) {
    Options options = TypeParam::options(4, 2);
    options.tail = tail;
    options.rotary = {rotary_table(1e4, options.head_dim)};
    typename TypeParam::Cache cache(options);
    const SequenceId sequence = cache.add_sequence();
    DeviceInputs prompt(options, 300, 1, nearest<typename TypeParam::T>);
    cache.append(sequence, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
    for (const Index tokens : {2, 20, 100}) {
      DraftInputs in(options, tokens, 5, nearest<typename TypeParam::T>);
      draft_once(cache, sequence, in, chain_of(tokens));
      const Tensor<float> out = in.out.read(), lse = in.lse.read();
      const SequenceId fork = cache.fork(sequence);
      const SequenceTokens entry{fork, tokens};
      in.spoil();
      cache.attend(std::span(&entry, 1), 0, in.tensors());
      cache.remove_sequence(fork);
      const Tensor<float> expected = in.out.read(), logarithms = in.lse.read();
      double difference = 0, norm = 0;
      for (std::size_t i = 0; i < out.elements.size(); ++i) {
        const auto x = static_cast<double>(out.elements[i]),
                   y = static_cast<double>(expected.elements[i]);
        difference += (x - y) * (x - y);
        norm += y * y;
      }
      EXPECT_LT(std::sqrt(difference / norm), 2 * device_tolerance);
      for (std::size_t i = 0; i < lse.elements.size(); ++i)
        EXPECT_NEAR(lse.elements[i], logarithms.elements[i], 2 * device_tolerance);
    }
  }
}

TYPED_TEST(CudaDraft, MayStandAloneOrBehindAFewTokens) {
  for (const TailCoding tail : TypeParam::tails()) {
    Options options = TypeParam::options(6, 2);
    options.tail = tail;
    typename TypeParam::Cache cache(options);
    for (const Index cached : {0, 1, 3, 21, 59}) {
      const SequenceId sequence = cache.add_sequence();
      DeviceInputs prompt(options, cached, 1, nearest<typename TypeParam::T>);
      if (cached > 0) cache.append(sequence, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
      const Contents held = cached > 0 ? device_contents(cache, sequence)
                                       : Contents{{0, 2, options.head_dim}, {0, 2, options.head_dim}};
      for (const Parents &parents : {chain_of(1), tree_of(9, 4), tree_of(60, 5)}) {
        DraftInputs in(options, static_cast<Index>(parents.size()), 3, nearest<typename TypeParam::T>);
        draft_once(cache, sequence, in, parents);
        const RuleDistance distance = draft_distance(options, in, held, parents);
        EXPECT_LT(distance.output, device_tolerance) << cached;
        EXPECT_LT(distance.lse, device_tolerance) << cached;
      }
      EXPECT_EQ(cache.length(sequence), cached);
    }
  }
}

using SmallDrafts = DraftedWidths<64, 32, 2, 2>;
class CudaDraftOf : public OnDevice {};

TEST_F(CudaDraftOf, TheMostTokensIsRight) {
  Options options = SmallDrafts::options(2, 1);
  for (const int window : {0, 100}) {
    options.attention_window = window;
    SmallDrafts::Cache cache(options);
    const SequenceId sequence = cache.add_sequence();
    DeviceInputs prompt(options, 150, 1);
    cache.append(sequence, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
    const Contents held = device_contents(cache, sequence);
    for (const Parents &parents : {chain_of(256), tree_of(256, 1), Parents(256, -1)}) {
      DraftInputs in(options, 256, 2, nearest<half>);
      draft_once(cache, sequence, in, parents);
      const RuleDistance distance = draft_distance(options, in, held, parents);
      EXPECT_LT(distance.output, device_tolerance);
      EXPECT_LT(distance.lse, device_tolerance);
    }
  }
}

TEST_F(CudaDraftOf, SeveralSequencesKeepsThemApart) {
  Options options = SmallDrafts::options(6, 2);
  for (const int window : {0, 40}) {
    options.attention_window = window;
    SmallDrafts::Cache cache(options);
    std::vector<SequenceId> ids;
    std::vector<Contents> held;
    for (const Index cached : {300, 0, 90, 25, 170}) {
      ids.push_back(cache.add_sequence());
      DeviceInputs in(options, cached, static_cast<unsigned>(cached));
      if (cached > 0) cache.append(ids.back(), 0, in.q.view(), in.k.view(), in.v.view());
      held.push_back(cached > 0 ? device_contents(cache, ids.back())
                                : Contents{{0, 2, options.head_dim}, {0, 2, options.head_dim}});
    }
    // Rows 64 to 69 and the last are padding.
    const std::array batch{SequenceTokens{ids[0], 3}, SequenceTokens{ids[1], 11},
                           SequenceTokens{ids[2], 50}, SequenceTokens{ids[4], 0},
                           SequenceTokens{ids[3], 1, 70}};
    DraftInputs in(options, 72, 4, nearest<half>);
    Parents parents(72, -1);
    std::vector<Parents> trees;
    for (const Index tokens : {3, 11, 50}) {
      trees.push_back(tree_of(tokens, static_cast<unsigned>(tokens)));
      const Index first = tokens == 3 ? 0 : tokens == 11 ? 3 : 14;
      std::copy(trees.back().begin(), trees.back().end(), parents.begin() + first);
    }
    cache.draft(batch, 0, in.tensors(), parents);
    const Tensor<float> out = in.out.read(), lse = in.lse.read();
    const auto expect = [&](std::size_t sequence, Index first, const Parents &tree) {
      const auto tokens = static_cast<Index>(tree.size());
      DraftInputs alone(options, tokens, 4, nearest<half>);
      const auto copy = [&](const Tensor<float> &from, Tensor<float> &to) {
        const Index size = from.heads * from.head_dim;
        std::copy_n(from.elements.begin() + first * size, tokens * size, to.elements.begin());
      };
      copy(in.host.q, alone.host.q);
      copy(in.host.k, alone.host.k);
      copy(in.host.v, alone.host.v);
      Tensor<float> own_out = alone.host.out, own_lse(tokens, options.query_heads, 1);
      copy(out, own_out);
      copy(lse, own_lse);
      alone.out.write(own_out);
      alone.lse.write(own_lse);
      const RuleDistance distance = draft_distance(options, alone, held[sequence], tree);
      EXPECT_LT(distance.output, device_tolerance) << sequence;
      EXPECT_LT(distance.lse, device_tolerance) << sequence;
    };
    expect(0, 0, trees[0]);
    expect(1, 3, trees[1]);
    expect(2, 14, trees[2]);
    expect(3, 70, {-1});
    for (const Index row : {64, 65, 66, 67, 68, 69, 71}) {
      EXPECT_TRUE(std::isnan(*out.view().row(row, 0))) << row;
      EXPECT_TRUE(std::isnan(*lse.view().row(row, 5))) << row;
    }
  }
}

TEST_F(CudaDraftOf, ASequenceLeavesItsReadsAlone) {
  const Options options = SmallDrafts::options(6, 2);
  SmallDrafts::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs prompt(options, 150, 1);
  cache.append(sequence, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
  DraftInputs in(options, 5, 2, nearest<half>);
  const SequenceTokens entry{sequence, 5};
  const auto read = [&](bool causal) {
    in.spoil();
    cache.attend(std::span(&entry, 1), 0,
                 AttentionTensors<float>{.q = in.q.view(), .out = in.out.view(), .causal = causal});
    return in.out.read().elements;
  };
  const std::vector<float> of_all = read(false), of_own = read(true);
  EXPECT_NE(of_all, of_own);
  draft_once(cache, sequence, in, tree_of(5, 1));
  EXPECT_EQ(read(false), of_all);
  draft_once(cache, sequence, in, tree_of(5, 1));
  EXPECT_EQ(read(true), of_own);
}

/// Of two caches, one drafts between steps, some of which are replays of a captured one.
TEST_F(CudaDraftOf, ASequenceLeavesItsStepsAlone) {
  const Options options = SmallDrafts::options(6, 2);
  SmallDrafts::Cache drafting(options), stepping(options);
  const SequenceId a = drafting.add_sequence(), b = stepping.add_sequence();
  DeviceInputs prompt(options, 290, 3), step(options, 1, 4);
  drafting.append(a, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
  stepping.append(b, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
  require(cudaDeviceSynchronize());  // before another stream goes on
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto attend = [&](SmallDrafts::Cache &cache, SequenceId sequence) {
    cache.attend(sequence, 0, step.q.view(), step.k.view(), step.v.view(), step.out.view(), stream);
  };
  const auto found = [&] {
    require(cudaStreamSynchronize(stream));
    return step.out.read().elements;
  };
  attend(drafting, a);
  attend(stepping, b);
  CapturedGraph graph(stream, [&] { attend(drafting, a); });
  const SequenceTokens entry{a, 1};
  for (int i = 0; i < 70; ++i) {
    graph.replay();
    drafting.advance(std::span(&entry, 1), 1, stream);
    const std::vector<float> of_graph = found();
    attend(stepping, b);
    EXPECT_EQ(of_graph, found()) << i;
    if (i % 7 != 0) continue;
    const Contents held = device_contents(drafting, a);
    const Parents parents = tree_of(i % 2 == 0 ? 6 : 60, static_cast<unsigned>(i));
    DraftInputs in(options, static_cast<Index>(parents.size()), 9, nearest<half>);
    draft_once(drafting, a, in, parents, true, stream);
    require(cudaStreamSynchronize(stream));
    EXPECT_LT(draft_distance(options, in, held, parents).output, device_tolerance) << i;
  }
  require(cudaStreamDestroy(stream));
}

/// What a draft throws, on either backend.
template <class Cache>
std::string draft_error(Cache &cache, SequenceId sequence, const AttentionTensors<float> &tensors,
                        const Parents &parents) {
  const SequenceTokens entry{sequence, tensors.q.tokens};
  try {
    cache.draft(std::span(&entry, 1), 0, tensors, parents);
  } catch (const Error &error) {
    return error.what();
  }
  return "none";
}

TEST_F(CudaDraftOf, WhatCannotBeIsRefusedAsOnTheCpu) {
  const Options options = SmallDrafts::options(6, 2);
  SmallDrafts::Cache cache(options);
  SmallDrafts::CpuCache on_cpu(options);
  const SequenceId sequence = cache.add_sequence(), same = on_cpu.add_sequence();
  const auto expect = [&](Index tokens, const Parents &parents, bool causal = true, char bad = ' ') {
    Inputs<> host = DeviceInputs(options, tokens, 5).host;
    for (auto [name, tensor] : {std::pair{'q', &host.q}, {'k', &host.k}, {'v', &host.v}}) {
      if (name == bad) tensor->view().row(1, 1)[7] = std::numeric_limits<float>::infinity();
    }
    DeviceTensorCopy<> q(host.q), k(host.k), v(host.v), out(host.out);
    const std::string expected = draft_error(on_cpu, same,
                                             {.q = host.q.view(),
                                              .k = host.k.view(),
                                              .v = host.v.view(),
                                              .out = host.out.view(),
                                              .causal = causal},
                                             parents);
    EXPECT_EQ(
        draft_error(cache, sequence,
                    {.q = q.view(), .k = k.view(), .v = v.view(), .out = out.view(), .causal = causal},
                    parents),
        expected);
    return expected;
  };
  EXPECT_EQ(expect(2, {-1, 0}), "none");
  EXPECT_NE(expect(2, {-1}), "none");
  EXPECT_NE(expect(2, {-1, 1}), "none");
  EXPECT_NE(expect(2, {-2, 0}), "none");
  EXPECT_NE(expect(2, {-1, 0}, false), "none");
  EXPECT_NE(expect(257, Parents(257, -1)), "none");
  for (const char name : {'q', 'k', 'v'}) EXPECT_NE(expect(2, {-1, 0}, true, name), "none");
  EXPECT_EQ(expect(2, {-1, 0}), "none");
  EXPECT_EQ(cache.length(sequence), 0);
}

TEST_F(CudaDraftOf, ACapturedStreamIsRefused) {
  const Options options = SmallDrafts::options(6, 2);
  SmallDrafts::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  DraftInputs in(options, 2, 5, nearest<half>);
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CapturedGraph graph(stream, [&] {
    EXPECT_THROW(draft_once(cache, sequence, in, {-1, 0}, true, stream), Error);
  });
  graph.replay();  // of nothing
  require(cudaStreamSynchronize(stream));
  require(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace squat::test
