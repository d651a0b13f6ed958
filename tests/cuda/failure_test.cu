// Out of device memory: whichever allocation of a call is refused, the call throws squat::Error, the
// cache is as it was, and the same call then gives what it would have given.

#include <array>
#include <cstddef>
#include <vector>

#include "caches.cuh"
#include "reference/failing_allocations.hpp"
#include "reference/inputs.hpp"

namespace squat::test {
namespace {

/// Counts down to the allocation that is refused.
std::size_t refused_at = 0;
bool refuse(std::size_t) { return refused_at > 0 && --refused_at == 0; }

std::size_t asked = 0;
bool refuse_all(std::size_t) {
  ++asked;
  return true;
}

class DeviceOutOfMemory : public OnDevice {
 protected:
  using Cache = DeviceCache<64, 32, 2, 2>;

  static Options small(Coding coding) {
    return {.layers = 2,
            .query_heads = 4,
            .kv_heads = 2,
            .head_dim = 64,
            .coding = coding,
            .sinks = 3,
            .residual = 10,
            .page_tokens = 32,
            .rotary = {rotary_table(1e3, 48)},
            .statistics_tokens = 60};
  }

  void SetUp() override {
    OnDevice::SetUp();
    cuda::refuses_device_memory = refuse;
  }
  void TearDown() override { cuda::refuses_device_memory = nullptr; }

  /// A cache with two sequences, and inputs for calls.
  struct World {
    explicit World(const Options &options)
        : cache(options), sequences{cache.add_sequence(), cache.add_sequence()}, in(options, 300, 1) {}

    void attend(std::size_t sequence, Index first, Index count) {
      for (int layer : {0, 1}) attend(sequence, layer, first, count);
    }
    void attend(std::size_t sequence, int layer, Index first, Index count) {
      cache.attend(sequences[sequence], layer, in.q.view(first, count), in.k.view(first, count),
                   in.v.view(first, count), in.out.view(first, count));
    }

    std::vector<float> seen() {
      std::vector<float> all;
      for (const SequenceId sequence : sequences) {
        for (int layer : {0, 1}) {
          const Contents held = device_contents(cache, sequence, layer);
          all.push_back(static_cast<float>(held.k.tokens));
          all.insert(all.end(), held.k.elements.begin(), held.k.elements.end());
          all.insert(all.end(), held.v.elements.begin(), held.v.elements.end());
        }
      }
      return all;
    }

    std::vector<float> outputs() { return in.out.read().elements; }

    /// Steps on, and what comes of them.
    std::vector<float> decode() {
      for (std::size_t sequence : {0u, 1u}) attend(sequence, 270, 3);
      for (std::size_t sequence : {0u, 1u}) attend(sequence, 273, 1);
      cache.check();
      return outputs();
    }

    Cache cache;
    std::array<SequenceId, 2> sequences;
    DeviceInputs in;
  };

  /// Statistics are sums in no fixed order, whose last bits may differ.
  static void expect_same(const std::vector<float> &a, const std::vector<float> &b) {
    ASSERT_EQ(a.size(), b.size());
    std::size_t off = 0;
    for (std::size_t i = 0; i < a.size(); ++i) off += !(std::abs(a[i] - b[i]) <= 1e-4f);
    EXPECT_EQ(off, 0u);
  }

  template <class Prepare, class Call>
  static std::size_t expect_nothing_lost(const Options &options, Prepare &&prepare, Call &&call) {
    return test::expect_nothing_lost<World>(options, refused_at, prepare, call, expect_same);
  }
};

TEST_F(DeviceOutOfMemory, InAFirstPromptThatTeachesAndPacks) {
  for (const Coding coding : {Coding::plain, Coding::orthogonal, Coding::subspace}) {
    EXPECT_GT(expect_nothing_lost(
                  small(coding), [](World &) {}, [](World &world) { world.attend(0, 0, 0, 200); }),
              0u);
  }
}

TEST_F(DeviceOutOfMemory, InAPieceThatCompletesTheStatistics) {
  for (const Coding coding : {Coding::orthogonal, Coding::subspace}) {
    EXPECT_GT(expect_nothing_lost(
                  small(coding), [](World &world) { world.attend(0, 0, 50); },
                  [](World &world) { world.attend(0, 0, 50, 200); }),
              0u);
  }
}

TEST_F(DeviceOutOfMemory, InABatchWhoseSequencesLearnForThemselves) {
  Options options = small(Coding::subspace);
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

TEST_F(DeviceOutOfMemory, InReadingAttentionAndAShiftAndAddingASequence) {
  EXPECT_GT(expect_nothing_lost(
                small(Coding::subspace), [](World &world) { world.attend(0, 0, 150); },
                [](World &world) {
                  world.cache.attend(world.sequences[0], 1, world.in.q.view(0, 60),
                                     world.in.out.view(0, 60));
                }),
            0u);
  // All memory may be there.
  expect_nothing_lost(
      small(Coding::plain), [](World &world) { world.attend(0, 0, 150); },
      [](World &world) { world.cache.shift(world.sequences[0], 10, 30, -20); });
  Options options = small(Coding::subspace);
  options.learning = LearningMode::per_sequence;
  EXPECT_GT(expect_nothing_lost(
                options, [](World &world) { world.attend(0, 0, 150); },
                [](World &world) { world.cache.add_sequence(); }),
            0u);
}

TEST_F(DeviceOutOfMemory, InAForkAndAReorder) {
  for (const bool own : {false, true}) {
    Options options = small(Coding::subspace);
    options.learning = own ? LearningMode::per_sequence : LearningMode::first_tokens;
    EXPECT_GT(expect_nothing_lost(
                  options, [](World &world) { world.attend(0, 0, 150); },
                  [](World &world) { world.sequences[1] = world.cache.fork(world.sequences[0], 120); }),
              0u);
    EXPECT_GT(
        expect_nothing_lost(
            options, [](World &world) { world.attend(0, 0, 150); },
            [](World &world) {
              world.cache.reorder(world.sequences, std::array{world.sequences[0], world.sequences[0]});
            }),
        0u);
  }
}

/// Its table of pages is to grow beyond the first 64.
TEST_F(DeviceOutOfMemory, IsNotAskedAboutInEveryStep) {
  World world(small(Coding::plain));
  for (int piece = 0; piece < 8; ++piece) world.attend(0, 0, 250);  // 62 pages, and one acquired ahead
  world.attend(0, 290, 1);                                          // makes what steps need
  asked = 0;
  cuda::refuses_device_memory = refuse_all;
  int steps = 0;
  EXPECT_THROW(for (; steps < 200; ++steps) world.attend(0, 290, 1), Error);
  EXPECT_GT(steps, 32) << "what is missing is needed once a page more is packed";
  EXPECT_GT(asked, 0u);
  EXPECT_LT(asked, 10u);
  cuda::refuses_device_memory = nullptr;
  world.decode();
}

/// In blocks of 16 tokens, sinks apart.
TEST_F(DeviceOutOfMemory, IsFarAsShortSequencesTakeTheBlocksTheyNeed) {
  const Options options = small(Coding::plain);
  for (const Index tokens : {1, 3, 4, 19, 20, 40}) {
    World world(options);
    world.attend(0, 0, tokens);
    const Index sinks = std::min<Index>(tokens, 3),
                blocks = 1 + std::max<Index>(1, (tokens - sinks + 15) / 16);
    const std::size_t rows = static_cast<std::size_t>(blocks) * 16 * 2 * 2 * 64 * 2;
    const std::size_t tables = 64 * 48 + 256;  // of pages and of state
    EXPECT_LE(world.cache.memory_report().exact, 2 * (rows + tables)) << tokens;
  }
}

}  // namespace
}  // namespace squat::test
