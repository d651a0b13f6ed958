// Two caches that work at once, each on a stream of its own, do what each does alone.

#include <array>
#include <future>
#include <vector>

#include "caches.cuh"
#include "reference/inputs.hpp"

namespace squat::test {
namespace {

/// A cache that is fed one sequence: a prompt, decode steps, a few tokens at once, decode steps.
class Fed {
 public:
  Fed(Coding coding, unsigned seed)
      : cache_(options(coding)), sequence_(cache_.add_sequence()), in_(options(coding), tokens, seed) {}

  /// Feeds the next piece. Returns whether there was one.
  bool feed(cudaStream_t stream) {
    if (past_ == tokens) return false;
    const Index count = past_ == 0 ? prompt : past_ == prompt + steps ? tokens - prompt - 2 * steps : 1;
    cache_.attend(sequence_, 0, in_.q.view(past_, count), in_.k.view(past_, count),
                  in_.v.view(past_, count), in_.out.view(past_, count), stream);
    past_ += count;
    return true;
  }

  /// Once its stream has come to rest.
  std::vector<float> outputs() { return in_.out.read().elements; }
  Contents held() { return device_contents(cache_, sequence_); }

 private:
  static constexpr Index prompt = 100, steps = 70, tokens = prompt + steps + 40 + steps;

  static Options options(Coding coding) {
    return {.layers = 1,
            .query_heads = 8,
            .kv_heads = 2,
            .head_dim = 64,
            .coding = coding,
            .residual = 20,
            .page_tokens = 32,
            .rotary = {rotary_table(1e4, 64)},
            .statistics_tokens = 60};
  }

  DeviceCache<64, 32, 2, 2> cache_;
  SequenceId sequence_;
  DeviceInputs in_;
  Index past_ = 0;
};

class CudaStreams : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped()) return;
    for (cudaStream_t &stream : streams) {
      require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
  }
  void TearDown() override {
    for (cudaStream_t stream : streams) {
      if (stream != nullptr) cudaStreamDestroy(stream);
    }
  }

  /// What two caches give that `feed` has fed on both streams is what they give one after the other.
  template <class Feed>
  void expect_each_as_alone(Feed &&feed) {
    for (Coding coding : {Coding::plain, Coding::subspace}) {
      std::array<Fed, 2> together = {Fed(coding, 1), Fed(coding, 4)};
      feed(together);
      for (cudaStream_t stream : streams) require(cudaStreamSynchronize(stream));
      for (unsigned i : {0u, 1u}) {
        Fed alone(coding, 1 + 3 * i);
        while (alone.feed(nullptr)) {
        }
        finish();
        EXPECT_EQ(together[i].outputs(), alone.outputs()) << "cache " << i;
        EXPECT_EQ(together[i].held(), alone.held()) << "cache " << i;
      }
    }
  }

  std::array<cudaStream_t, 2> streams{};
};

TEST_F(CudaStreams, TwoCachesFedInTurn) {
  expect_each_as_alone([&](std::array<Fed, 2> &caches) {
    while (caches[0].feed(streams[0])) caches[1].feed(streams[1]);
  });
}

TEST_F(CudaStreams, TwoCachesFedByTwoThreads) {
  expect_each_as_alone([&](std::array<Fed, 2> &caches) {
    std::array<std::future<void>, 2> threads;
    for (std::size_t i : {0u, 1u}) {
      threads[i] = std::async(std::launch::async, [&, i] {
        while (caches[i].feed(streams[i])) {
        }
      });
    }
    for (std::future<void> &thread : threads) thread.get();
  });
}

}  // namespace
}  // namespace squat::test
