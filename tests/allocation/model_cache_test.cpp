// Out of memory in a call for all groups of a model: it happens in all of them or in none.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <vector>

#include "counting_allocator.hpp"
#include "model/layered_model.hpp"
#include "reference/failing_allocations.hpp"
#include "reference/saved.hpp"

namespace squat::test::model_cache_test {
namespace {

ModelOptions turning_model() {
  ModelOptions options = layered_model();
  options.groups[0].options.rotary = {rotary_table(1e4, 32)};
  options.groups[1].options.rotary = {rotary_table(1e3, 48)};
  return options;
}

struct ModelWorld {
  explicit ModelWorld(const Options &)
      : in(turning_model()),
        cache(turning_model(), make_cpu_group),
        sequences{cache.add_sequence(), cache.add_sequence(), cache.add_sequence()} {
    feed(cache, sequences[0], in, 0, 120);
    feed(cache, sequences[1], in, 30, 90);
  }

  std::vector<float> seen() {
    std::vector<float> all{static_cast<float>(cache.memory_report().pages_used)};
    for (const SequenceId sequence : sequences) {
      const std::vector<float> of_one = test::seen(cache, sequence, in);
      all.insert(all.end(), of_one.begin(), of_one.end());
    }
    return all;
  }
  std::vector<float> outputs() { return {}; }
  std::vector<float> decode() {
    for (const SequenceId sequence : sequences) feed(cache, sequence, in, 150, 1);
    return seen();
  }

  ModelInputs in;
  ModelCache cache;
  std::array<SequenceId, 3> sequences;
};

template <class Call>
void expect_nothing_lost(Call &&call) {
  EXPECT_GT(test::expect_nothing_lost<ModelWorld>(
                {}, fails_at, [](ModelWorld &) {}, call,
                [](const auto &a, const auto &b) { EXPECT_EQ(a, b); }),
            0u);
}

TEST(OutOfMemoryInAModel, ForkingItsSequences) {
  expect_nothing_lost([](ModelWorld &world) {
    const SequenceId child = world.cache.fork(world.sequences[0], 110);
    world.cache.remove_sequence(world.sequences[2]);
    world.sequences[2] = child;
  });
}

TEST(OutOfMemoryInAModel, ReorderingThem) {
  expect_nothing_lost([](ModelWorld &world) {
    const auto &[a, b, c] = world.sequences;
    world.cache.reorder(world.sequences, std::array{b, a, a});
  });
}

TEST(OutOfMemoryInAModel, ShiftingOne) {
  expect_nothing_lost([](ModelWorld &world) { world.cache.shift(world.sequences[0], 112, 116, -4); });
}

TEST(OutOfMemoryInAModel, LoadingOne) {
  ModelWorld source({});
  const Bytes bytes = saved(source.cache, source.sequences[0]);
  expect_nothing_lost([&](ModelWorld &world) {
    const SequenceId loaded = world.cache.load(bytes);
    world.cache.remove_sequence(world.sequences[2]);
    world.sequences[2] = loaded;
  });
}

}  // namespace
}  // namespace squat::test::model_cache_test
