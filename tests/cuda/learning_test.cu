// Learning under control on the device: what is no text teaches nothing, and learning can begin anew.

#include <memory>
#include <span>
#include <utility>

#include "caches.cuh"
#include "reference/inputs.hpp"
#include "reference/saved.hpp"

namespace squat::test {
namespace {

using Cache = DeviceCache<64, 32, 2, 2>;
constexpr Index learnt_from = 192;

class CudaLearning : public OnDevice {
 protected:
  static Options options() {
    Options options{
        .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 64, .coding = Coding::subspace};
    options.residual = 16;
    options.page_tokens = 32;
    options.statistics_tokens = learnt_from;
    options.rotary = {rotary_table(1e4, 64)};
    return options;
  }

  /// Tokens from `period` on are those before again, each turned to where it stands.
  static std::unique_ptr<DeviceInputs> inputs(Index tokens, unsigned seed, Index period,
                                              float scale = 1) {
    auto made = std::make_unique<DeviceInputs>(options(), tokens, seed);
    DeviceInputs &in = *made;
    for (auto *x : {&in.host.q, &in.host.k, &in.host.v}) {
      for (float &element : x->elements) element *= scale;
    }
    repeat(in.host, period);
    embed(in.host, options().rotary.front());
    in.q.write(in.host.q);
    in.k.write(in.host.k);
    in.v.write(in.host.v);
    return made;
  }
  static std::unique_ptr<DeviceInputs> text(Index tokens, unsigned seed) {
    return inputs(tokens, seed, tokens);
  }

  static SequenceId sequence_of(Cache &cache, std::unique_ptr<DeviceInputs> made, bool learn = true) {
    DeviceInputs &in = *made;
    const SequenceId sequence = cache.add_sequence();
    const SequenceTokens entry{.sequence = sequence, .tokens = in.host.q.tokens, .learn = learn};
    for (int layer : {0, 1}) {
      cache.attend(std::span(&entry, 1), layer, in.q.view(), in.k.view(), in.v.view(), in.out.view());
    }
    return sequence;
  }
};

TEST_F(CudaLearning, OfTokensThatAreNoTextChangesNothing) {
  for (const auto &[period, scale] : {std::pair{1, 0.0f}, {1, 1.0f}, {5, 1.0f}}) {
    SCOPED_TRACE(testing::Message() << period << " tokens, times " << scale);
    Cache cache(options()), untouched(options());
    const SequenceId warm = sequence_of(cache, inputs(learnt_from + 60, 91, period, scale));
    EXPECT_GT(cache.memory_report().packed_tokens, 0);
    const SequenceId a = sequence_of(cache, text(300, 5)), b = sequence_of(untouched, text(300, 5));
    EXPECT_EQ(saved(cache, a), saved(untouched, b));
    EXPECT_EQ(device_contents(cache, warm), device_contents(cache, cache.fork(warm)));
  }
}

TEST_F(CudaLearning, IsTheCallersToForbid) {
  Cache cache(options()), untouched(options());
  sequence_of(cache, text(600, 44), false);
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  const SequenceId a = sequence_of(cache, text(300, 5)), b = sequence_of(untouched, text(300, 5));
  EXPECT_EQ(saved(cache, a), saved(untouched, b));
}

TEST_F(CudaLearning, BeginsAnewBesideWhatIsPacked) {
  Cache cache(options()), untouched(options());
  const SequenceId partly = sequence_of(cache, text(100, 70));
  cache.reset_learning();
  cache.remove_sequence(partly);
  const SequenceId old = sequence_of(cache, text(300, 44));
  const Contents before = device_contents(cache, old);
  cache.reset_learning();
  const SequenceId a = sequence_of(cache, text(300, 5)), b = sequence_of(untouched, text(300, 5));
  EXPECT_EQ(saved(cache, a), saved(untouched, b));
  EXPECT_EQ(device_contents(cache, old), before);
  const SequenceId loaded = untouched.load(saved(cache, old));  // brings its own
  EXPECT_EQ(device_contents(untouched, loaded), before);
}

TEST_F(CudaLearning, OfFrozenCachesIsThePriorsAlone) {
  Options with = options();
  with.keep_statistics = true;
  Cache collecting(with);
  sequence_of(collecting, text(500, 3));
  with.keep_statistics = false;
  with.prior = std::make_shared<const Prior>(collecting.statistics());
  with.learning = LearningMode::frozen;
  Cache cache(with), replica(with);
  sequence_of(replica, text(300, 25));
  const SequenceId a = sequence_of(cache, text(300, 5)), b = sequence_of(replica, text(300, 5));
  EXPECT_GT(cache.memory_report().packed_tokens, 0);
  EXPECT_EQ(saved(cache, a), saved(replica, b));
  EXPECT_EQ(cache.memory_report().statistics, 0u);
}

}  // namespace
}  // namespace squat::test
