// Out of memory: whichever allocation of a call fails, the call throws squat::Error, the cache is as it
// was, and the same call then gives what it would have given.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>

#include "counting_allocator.hpp"
#include "reference/failing_allocations.hpp"
#include "reference/small_world.hpp"

namespace squat::test::failure_test {
namespace {

template <class Prepare, class Call>
std::size_t expect_nothing_lost(const Options &options, Prepare &&prepare, Call &&call) {
  return test::expect_nothing_lost<SmallWorld>(options, fails_at, prepare, call,
                                               [](const auto &a, const auto &b) { EXPECT_EQ(a, b); });
}

class OutOfMemory : public testing::TestWithParam<Coding> {};

TEST_P(OutOfMemory, InAFirstPromptThatTeachesAndPacks) {
  EXPECT_GT(expect_nothing_lost(
                small_options(GetParam()), [](SmallWorld &) {},
                [](SmallWorld &world) { world.attend(0, 0, 0, 150); }),
            0u);
}

TEST_P(OutOfMemory, InAPieceThatCompletesTheStatistics) {
  EXPECT_GT(expect_nothing_lost(
                small_options(GetParam()), [](SmallWorld &world) { world.attend(0, 0, 60); },
                [](SmallWorld &world) { world.attend(0, 0, 60, 90); }),
            0u);
}

TEST_P(OutOfMemory, InAStepThatFillsAPage) {
  // Most of them have all that they need.
  expect_nothing_lost(
      small_options(GetParam()), [](SmallWorld &world) { world.attend(0, 0, 4 + 16 + 16 + 64 - 1); },
      [](SmallWorld &world) { world.attend(0, 0, 99, 1); });
}

TEST_P(OutOfMemory, InABatchWhoseSequencesLearnForThemselves) {
  Options options = small_options(GetParam());
  options.learning = LearningMode::per_sequence;
  EXPECT_GT(expect_nothing_lost(
                options, [](SmallWorld &world) { world.attend(0, 0, 40); },
                [](SmallWorld &world) { world.attend_batch(); }),
            0u);
}

TEST(OutOfMemoryByLayer, InAFirstPromptWhoseHeadsShareBits) {
  Options options = small_options(Coding::subspace);
  options.kv_heads = 2;
  options.allocation = Allocation::layer;
  EXPECT_GT(expect_nothing_lost(
                options, [](SmallWorld &) {}, [](SmallWorld &world) { world.attend(0, 0, 0, 150); }),
            0u);
}

Options small_model() {
  Options options = small_options(Coding::subspace);
  options.kv_heads = 2;
  options.allocation = Allocation::model;
  return options;
}

TEST(OutOfMemoryByModel, InTheCallWithWhichAllLayersLearn) {
  EXPECT_GT(expect_nothing_lost(
                small_model(), [](SmallWorld &world) { world.attend(0, 0, 0, 150); },
                [](SmallWorld &world) { world.attend(0, 1, 0, 150); }),
            0u);
}

TEST(OutOfMemoryByModel, BehindTheLastTokensThatLayersLearnFrom) {
  Options options = small_model();
  options.keep_statistics = true;  // so that the call goes on to observe
  EXPECT_GT(expect_nothing_lost(
                options, [](SmallWorld &world) { world.attend(0, 0, 0, 150); },
                [](SmallWorld &world) { world.attend(0, 1, 0, 150); }),
            0u);
}

TEST(OutOfMemoryByModel, InTheCallThatPacksPagesOfANewSize) {
  EXPECT_GT(expect_nothing_lost(
                small_model(), [](SmallWorld &world) { world.attend(0, 0, 150); },
                [](SmallWorld &world) { world.attend(0, 0, 150, 1); }),
            0u);
}

TEST_P(OutOfMemory, InReadingAttention) {
  EXPECT_GT(expect_nothing_lost(
                small_options(GetParam()), [](SmallWorld &world) { world.attend(0, 0, 150); },
                [](SmallWorld &world) {
                  world.cache.attend(world.sequences[0], 1, world.in.q.view(0, 60),
                                     world.in.out.view(0, 60));
                }),
            0u);
}

TEST_P(OutOfMemory, InAShift) {
  // Most of them have all that they need.
  expect_nothing_lost(
      small_options(GetParam()), [](SmallWorld &world) { world.attend(0, 0, 150); },
      [](SmallWorld &world) { world.cache.shift(world.sequences[0], 10, 30, -20); });
}

TEST_P(OutOfMemory, InAddingASequence) {
  for (const bool own : {false, true}) {
    Options options = small_options(GetParam());
    options.learning = own ? LearningMode::per_sequence : LearningMode::first_tokens;
    EXPECT_GT(expect_nothing_lost(
                  options, [](SmallWorld &world) { world.attend(0, 0, 150); },
                  [](SmallWorld &world) { world.cache.add_sequence(); }),
              0u);
  }
}

TEST_P(OutOfMemory, InAFork) {
  for (const bool own : {false, true}) {
    Options options = small_options(GetParam());
    options.learning = own ? LearningMode::per_sequence : LearningMode::first_tokens;
    EXPECT_GT(
        expect_nothing_lost(
            options, [](SmallWorld &world) { world.attend(0, 0, 150); },
            [](SmallWorld &world) { world.sequences[1] = world.cache.fork(world.sequences[0], 120); }),
        0u);
  }
}

TEST_P(OutOfMemory, InAReorderThatCopies) {
  EXPECT_GT(
      expect_nothing_lost(
          small_options(GetParam()), [](SmallWorld &world) { world.attend(0, 0, 150); },
          [](SmallWorld &world) {
            world.cache.reorder(world.sequences, std::array{world.sequences[0], world.sequences[0]});
          }),
      0u);
}

TEST_P(OutOfMemory, InAReorderThatMoves) {
  EXPECT_GT(
      expect_nothing_lost(
          small_options(GetParam()),
          [](SmallWorld &world) {
            world.attend(0, 0, 150);
            world.attend(1, 20, 90);
          },
          [](SmallWorld &world) {
            world.cache.reorder(world.sequences, std::array{world.sequences[1], world.sequences[0]});
          }),
      0u);
}

INSTANTIATE_TEST_SUITE_P(Codings, OutOfMemory,
                         testing::Values(Coding::plain, Coding::orthogonal, Coding::subspace));

}  // namespace
}  // namespace squat::test::failure_test
