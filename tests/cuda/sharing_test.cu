// Heads that share the bits of a page on the device (CudaSharing, CudaSharingTrellis): what it holds and
// attends to is what the CPU does with the same prior; pages that the basis does not suit, snapshots,
// graphs, page sizes by layer.

#include <vector>

#include "both_backends.cuh"
#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/expect_error.hpp"
#include "reference/saved.hpp"

namespace squat::test {
namespace {

template <int HeadDim, int KeyBits, int ValueBits>
using SharedWidths = CachePair<CudaSharing<HeadDim>, HeadDim, KeyBits, ValueBits, Codes::scalar>;

template <class Widths>
class CudaSharedBits : public OnDevice {};

using AllSharedWidths = testing::Types<SharedWidths<64, 2, 2>, SharedWidths<128, 3, 3>,
                                       SharedTrellis<64, 2, 2>, SharedTrellis<128, 2, 3>>;
TYPED_TEST_SUITE(CudaSharedBits, AllSharedWidths);

TYPED_TEST(CudaSharedBits, AreWhatTheCpuSharesOut) {
  const Options options = learnt_options<TypeParam>(Allocation::layer);
  Options by_head = options;
  by_head.allocation = Allocation::head;
  Both<TypeParam> both(options), equal(by_head);
  DeviceInputs in = uneven(options, 600, 1);
  both.feed(uneven(options, 600, 1));
  equal.feed(uneven(options, 600, 1));
  both.check();
  equal.check();
  EXPECT_EQ(both.device.memory_report().packed_bits_per_element,
            equal.device.memory_report().packed_bits_per_element);
  const double shared = relative_distance(device_contents(both.device, both.on_device).k, in.host.k),
               by_itself =
                   relative_distance(device_contents(equal.device, equal.on_device).k, in.host.k);
  EXPECT_NE(shared, by_itself) << "bits were shared out";
  both.device.truncate(both.on_device, 300);
  both.host.truncate(both.on_host, 300);
  both.check();
}

/// Pages in the basis, then plain ones, then others.
TYPED_TEST(CudaSharedBits, ArePlainInPagesThatTheBasisDoesNotSuit) {
  const Options options = learnt_options<TypeParam>(Allocation::layer);
  Both<TypeParam> both(options);
  both.feed(uneven(options, 400, 1));
  both.feed_turned_over(400, 2);
  both.feed(uneven(options, 300, 3));
  both.check();
  const Bytes of_host = saved(both.host, both.on_host);
  typename TypeParam::Cache again(options);
  EXPECT_TRUE(saved(again, again.load(of_host)) == of_host);
}

TYPED_TEST(CudaSharedBits, ByLayerHavePagesOfTheirOwnSize) {
  Options options = learnt_options<TypeParam>(Allocation::model, 3);
  Both<TypeParam> both(options);
  for (int layer : {0, 1, 2}) both.feed(uneven(options, 500, static_cast<unsigned>(layer)), layer);
  for (int layer : {0, 1, 2}) both.check(layer);
  EXPECT_EQ(both.device.memory_report().packed_tokens, both.host.memory_report().packed_tokens);
}

/// Without a prior, from a prompt in pieces: exact rows and bytes are weighed, and rows of the call.
TYPED_TEST(CudaSharedBits, AreLearntFromPromptsToo) {
  for (const TailCoding tail : {TailCoding::exact, TailCoding::int8}) {
    Options options = learnt_options<TypeParam>(Allocation::layer);
    options.prior = nullptr;
    options.tail = tail;
    options.keep_statistics = true;
    Both<TypeParam> both(options);
    for (const Index tokens : {3, 200, 1, 396})
      both.feed(uneven(options, tokens, static_cast<unsigned>(tokens)));
    both.check();
    const Prior of_device = both.device.statistics(), of_host = both.host.statistics();
    for (const Index head : {0, 1}) {
      const QueryStatistics &device = of_device.head(0, head), &host = of_host.head(0, head);
      EXPECT_EQ(device.sums(&HeadSums::far_queries)[0], host.sums(&HeadSums::far_queries)[0]);
      for (const auto sums : {&HeadSums::key_weight, &HeadSums::value_weight, &HeadSums::output_square})
        EXPECT_NEAR(device.sums(sums)[0], host.sums(sums)[0], 2e-3 * host.sums(sums)[0]);
      EXPECT_LT(relative_distance(device.sums(&HeadSums::weighted_moment),
                                  host.sums(&HeadSums::weighted_moment)),
                5e-3);
    }
  }
}

TYPED_TEST(CudaSharedBits, TravelInSnapshots) {
  const Options options = learnt_options<TypeParam>(Allocation::layer);
  Both<TypeParam> both(options);
  both.feed(uneven(options, 700, 1));
  both.check_snapshots();
}

/// Across page boundaries, and pages of another space.
TYPED_TEST(CudaSharedBits, InACapturedGraphAreThoseOfSteps) {
  const Options options = learnt_options<TypeParam>(Allocation::layer);
  typename TypeParam::Cache replayed(options), stepped(options);
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  DeviceInputs prompt = uneven(options, 500, 1), step = uneven(options, 1, 2);
  const SequenceId a = replayed.add_sequence(), b = stepped.add_sequence();
  const std::vector<SequenceTokens> one = {{a, 1}}, other = {{b, 1}};
  replayed.attend(a, 0, prompt.q.view(), prompt.k.view(), prompt.v.view(), prompt.out.view(), stream);
  stepped.attend(b, 0, prompt.q.view(), prompt.k.view(), prompt.v.view(), prompt.out.view(), stream);
  const auto attend = [&] {
    replayed.attend(a, 0, step.q.view(), step.k.view(), step.v.view(), step.out.view(), stream);
  };
  attend();
  stepped.attend(b, 0, step.q.view(), step.k.view(), step.v.view(), step.out.view(), stream);
  CapturedGraph graph(stream, attend);
  for (int i = 0; i < 200; ++i) {
    DeviceInputs next = uneven(options, 1, static_cast<unsigned>(3 + i));
    if (i > 100) turn_over(next.host.k);
    step.q.write(next.host.q);
    step.k.write(next.host.k);
    step.v.write(next.host.v);
    graph.replay();
    replayed.advance(one, 1, stream);
    require(cudaStreamSynchronize(stream));
    const std::vector<float> of_graph = step.out.read().elements;
    stepped.attend(b, 0, step.q.view(), step.k.view(), step.v.view(), step.out.view(), stream);
    require(cudaStreamSynchronize(stream));
    ASSERT_EQ(of_graph, step.out.read().elements) << i;
  }
  replayed.check(stream);
  EXPECT_EQ(replayed.memory_report().packed_tokens, stepped.memory_report().packed_tokens);
  require(cudaStreamDestroy(stream));
}

using CudaSharedBitsErrors = OnDevice;

TEST_F(CudaSharedBitsErrors, SayWhatIsMissing) {
  Options options{.layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  options.allocation = Allocation::layer;
  options.page_tokens = 32;
  expect_error([&] { DeviceCache<64, 32, 2, 2> cache(options); },
               {"allocation", "layer", "CudaSharing"});
  using Sharing = SharedWidths<64, 2, 2>::Cache;
  expect_error([&] { Sharing cache(options); }, {"page_tokens", "32", "128"});
  options.page_tokens = 128;
  options.codes = Codes::trellis;
  expect_error([&] { Sharing cache(options); }, {"codes", "trellis", "CudaSharingTrellis"});
  options.codes = Codes::scalar;
  options.allocation = Allocation::head;
  options.coding = Coding::orthogonal;
  options.values = ValueCoding::symmetric;
  expect_error([&] { Sharing cache(options); }, {"coding", "orthogonal", "subspace"});
}

}  // namespace
}  // namespace squat::test
