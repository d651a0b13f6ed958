// Out of memory: whichever allocation of a call fails, the call throws squat::Error, the cache is as it
// was, and the same call then gives what it would have given.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "counting_allocator.hpp"
#include "reference/failing_allocations.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test {
namespace {

using Cache = KVCache<half, 2>;

Options small(Coding coding) {
  return {.layers = 2,
          .query_heads = 2,
          .kv_heads = 1,
          .head_dim = 32,
          .coding = coding,
          .residual = 16,
          .page_tokens = 16,
          .rotary = {{.inverse_frequencies = {1, .1f, .01f}}},
          .statistics_tokens = 80};
}

/// A cache, its sequences, and inputs for calls.
struct World {
  explicit World(const Options &options, Index tokens = 200)
      : cache(options), sequences{cache.add_sequence(), cache.add_sequence()}, in(options, tokens, 1) {}

  void attend(std::size_t sequence, Index first, Index count) {
    for (int layer : {0, 1}) attend(sequence, layer, first, count);
  }
  void attend(std::size_t sequence, int layer, Index first, Index count) {
    cache.attend(sequences[sequence], layer, in.q.view(first, count), in.k.view(first, count),
                 in.v.view(first, count), in.out.view(first, count));
  }

  /// What a caller can see.
  std::vector<float> seen() {
    std::vector<float> all;
    for (const SequenceId sequence : sequences) {
      for (int layer : {0, 1}) {
        const Contents held = contents(cache, sequence, layer);
        all.push_back(static_cast<float>(cache.length(sequence, layer)));
        all.insert(all.end(), held.k.elements.begin(), held.k.elements.end());
        all.insert(all.end(), held.v.elements.begin(), held.v.elements.end());
      }
    }
    const MemoryReport report = cache.memory_report();
    all.push_back(static_cast<float>(report.packed_tokens));
    all.push_back(static_cast<float>(report.exact_tokens));
    return all;
  }

  std::vector<float> outputs() const { return in.out.elements; }

  /// Steps on, and what comes of them in every layer; the second sees what the first packs.
  std::vector<float> decode() {
    std::vector<float> all;
    for (const auto &[sequence, first] : {std::pair<std::size_t, Index>{0, 190}, {0, 193}, {1, 190}}) {
      for (int layer : {0, 1}) {
        attend(sequence, layer, first, 3);
        const std::vector<float> of_layer = outputs();
        all.insert(all.end(), of_layer.begin(), of_layer.end());
      }
    }
    return all;
  }

  Cache cache;
  std::array<SequenceId, 2> sequences;
  Inputs<> in;
};

template <class Prepare, class Call>
std::size_t expect_nothing_lost(const Options &options, Prepare &&prepare, Call &&call) {
  return test::expect_nothing_lost<World>(options, fails_at, prepare, call,
                                          [](const auto &a, const auto &b) { EXPECT_EQ(a, b); });
}

class OutOfMemory : public testing::TestWithParam<Coding> {};

TEST_P(OutOfMemory, InAFirstPromptThatTeachesAndPacks) {
  EXPECT_GT(expect_nothing_lost(
                small(GetParam()), [](World &) {}, [](World &world) { world.attend(0, 0, 0, 150); }),
            0u);
}

TEST_P(OutOfMemory, InAPieceThatCompletesTheStatistics) {
  EXPECT_GT(expect_nothing_lost(
                small(GetParam()), [](World &world) { world.attend(0, 0, 60); },
                [](World &world) { world.attend(0, 0, 60, 90); }),
            0u);
}

TEST_P(OutOfMemory, InAStepThatFillsAPage) {
  // Most of them have all that they need.
  expect_nothing_lost(
      small(GetParam()), [](World &world) { world.attend(0, 0, 4 + 16 + 16 + 64 - 1); },
      [](World &world) { world.attend(0, 0, 99, 1); });
}

TEST_P(OutOfMemory, InABatchWhoseSequencesLearnForThemselves) {
  Options options = small(GetParam());
  options.learning = LearningMode::per_sequence;
  EXPECT_GT(expect_nothing_lost(
                options, [](World &world) { world.attend(0, 0, 40); },
                [](World &world) {
                  const std::array batch = {SequenceTokens{world.sequences[0], 70},
                                            SequenceTokens{world.sequences[1], 100}};
                  world.cache.attend(batch, 1, world.in.q.view(10, 170), world.in.k.view(10, 170),
                                     world.in.v.view(10, 170), world.in.out.view(10, 170));
                }),
            0u);
}

TEST(OutOfMemoryByLayer, InAFirstPromptWhoseHeadsShareBits) {
  Options options = small(Coding::subspace);
  options.kv_heads = 2;
  options.allocation = Allocation::layer;
  EXPECT_GT(expect_nothing_lost(
                options, [](World &) {}, [](World &world) { world.attend(0, 0, 0, 150); }),
            0u);
}

Options small_model() {
  Options options = small(Coding::subspace);
  options.kv_heads = 2;
  options.allocation = Allocation::model;
  return options;
}

TEST(OutOfMemoryByModel, InTheCallWithWhichAllLayersLearn) {
  EXPECT_GT(expect_nothing_lost(
                small_model(), [](World &world) { world.attend(0, 0, 0, 150); },
                [](World &world) { world.attend(0, 1, 0, 150); }),
            0u);
}

TEST(OutOfMemoryByModel, BehindTheLastTokensThatLayersLearnFrom) {
  Options options = small_model();
  options.keep_statistics = true;  // so that the call goes on to observe
  EXPECT_GT(expect_nothing_lost(
                options, [](World &world) { world.attend(0, 0, 0, 150); },
                [](World &world) { world.attend(0, 1, 0, 150); }),
            0u);
}

TEST(OutOfMemoryByModel, InTheCallThatPacksPagesOfANewSize) {
  EXPECT_GT(expect_nothing_lost(
                small_model(), [](World &world) { world.attend(0, 0, 150); },
                [](World &world) { world.attend(0, 0, 150, 1); }),
            0u);
}

TEST_P(OutOfMemory, InReadingAttention) {
  EXPECT_GT(expect_nothing_lost(
                small(GetParam()), [](World &world) { world.attend(0, 0, 150); },
                [](World &world) {
                  world.cache.attend(world.sequences[0], 1, world.in.q.view(0, 60),
                                     world.in.out.view(0, 60));
                }),
            0u);
}

TEST_P(OutOfMemory, InAShift) {
  // Most of them have all that they need.
  expect_nothing_lost(
      small(GetParam()), [](World &world) { world.attend(0, 0, 150); },
      [](World &world) { world.cache.shift(world.sequences[0], 10, 30, -20); });
}

TEST_P(OutOfMemory, InAddingASequence) {
  for (const bool own : {false, true}) {
    Options options = small(GetParam());
    options.learning = own ? LearningMode::per_sequence : LearningMode::first_tokens;
    EXPECT_GT(expect_nothing_lost(
                  options, [](World &world) { world.attend(0, 0, 150); },
                  [](World &world) { world.cache.add_sequence(); }),
              0u);
  }
}

TEST_P(OutOfMemory, InAFork) {
  for (const bool own : {false, true}) {
    Options options = small(GetParam());
    options.learning = own ? LearningMode::per_sequence : LearningMode::first_tokens;
    EXPECT_GT(expect_nothing_lost(
                  options, [](World &world) { world.attend(0, 0, 150); },
                  [](World &world) { world.sequences[1] = world.cache.fork(world.sequences[0], 120); }),
              0u);
  }
}

TEST_P(OutOfMemory, InAReorderThatCopies) {
  EXPECT_GT(
      expect_nothing_lost(
          small(GetParam()), [](World &world) { world.attend(0, 0, 150); },
          [](World &world) {
            world.cache.reorder(world.sequences, std::array{world.sequences[0], world.sequences[0]});
          }),
      0u);
}

TEST_P(OutOfMemory, InAReorderThatMoves) {
  EXPECT_GT(
      expect_nothing_lost(
          small(GetParam()),
          [](World &world) {
            world.attend(0, 0, 150);
            world.attend(1, 20, 90);
          },
          [](World &world) {
            world.cache.reorder(world.sequences, std::array{world.sequences[1], world.sequences[0]});
          }),
      0u);
}

INSTANTIATE_TEST_SUITE_P(Codings, OutOfMemory,
                         testing::Values(Coding::plain, Coding::orthogonal, Coding::subspace));

}  // namespace
}  // namespace squat::test
