// What may become of scores, and what softmaxes come to, on the device: against attention in double
// precision over what the cache holds; steps that were captured too.

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/score_rules.hpp"

namespace squat::test {
namespace {

template <class W>
class CudaScores : public OnDevice {};
using RuledCaches = testing::Types<CacheWidths<64, 32, 2, 2>, CacheWidths<64, 32, 3, 4>,
                                   CacheWidths<64, 32, 16, 16>, CacheWidths<128, 128, 4, 4>,
                                   CacheWidths<128, 128, 8, 16>, CacheWidths<96, 32, 3, 3, bfloat16>>;
TYPED_TEST_SUITE(CudaScores, RuledCaches);

/// How far a call is from attention over the rows that the cache held before, and its own.
template <class Cache>
RuleDistance distance_of(const Cache &cache, const DeviceInputs &in, Contents held,
                         const Tensor<float> &out, const Tensor<float> &lse) {
  const Index past = held.k.tokens;
  for (auto [all, own] : {std::pair{&held.k, &in.host.k}, {&held.v, &in.host.v}}) {
    all->elements.insert(all->elements.end(), own->elements.begin(), own->elements.end());
    all->tokens += own->tokens;
  }
  return rule_distance(cache.options(), in.host.q.view(), held.k.view(), held.v.view(), out.view(),
                       lse.view(), [&](Index token) { return past + token + 1; });
}

/// Hands all of `in` to the first layer, and asks for its logarithms.
template <class Cache>
void attend_once(Cache &cache, SequenceId sequence, DeviceInputs &in, DeviceTensorCopy<> &lse,
                 cudaStream_t stream = nullptr) {
  const SequenceTokens entry{sequence, in.host.q.tokens};
  cache.attend(
      std::span(&entry, 1), 0,
      AttentionTensors<float>{
          .q = in.q.view(), .k = in.k.view(), .v = in.v.view(), .out = in.out.view(), .lse = lse.view()},
      stream);
}

TYPED_TEST(CudaScores, AreBentAsOptionsSay) {
  using T = typename TypeParam::T;
  for (const Options &base :
       {TypeParam::options(6, 2), TypeParam::options(16, 1), TypeParam::options(2, 2)}) {
    for (Options options : score_rules(base)) {
      options.sinks = options.attention_window % 2 == 0 ? 4 : 20;
      typename TypeParam::Cache cache(options);
      const SequenceId sequence = cache.add_sequence();
      Index past = 0;
      for (const Index piece : {290, 1, 1, 5, 140, 1}) {
        SCOPED_TRACE(testing::Message()
                     << options.query_heads << "/" << options.kv_heads << ", window "
                     << options.attention_window << ", at " << past << " + " << piece);
        DeviceInputs in(options, piece, static_cast<unsigned>(past + 5), nearest<T>);
        DeviceTensorCopy<> lse(Tensor<float>(piece, options.query_heads, 1));
        const Contents held = device_contents(cache, sequence);
        attend_once(cache, sequence, in, lse);
        // A step meets its own row as the tail keeps it: in bytes where these are 8 bits.
        const double tolerance = cache.options().tail == TailCoding::int8 ? 3e-2 : device_tolerance;
        const RuleDistance distance = distance_of(cache, in, held, in.out.read(), lse.read());
        EXPECT_LT(distance.output, tolerance);
        EXPECT_LT(distance.lse, tolerance);
        past += piece;
      }
    }
  }
}

TYPED_TEST(CudaScores, OfReadsMayMeetAllTokens) {
  const Options options = TypeParam::options(6, 2);
  typename TypeParam::Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  DeviceInputs in(options, 150, 3, nearest<typename TypeParam::T>);
  cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
  const Contents held = device_contents(cache, sequence);
  for (const Index count : {3, 170}) {
    DeviceInputs queries(options, count, 9, nearest<typename TypeParam::T>);
    DeviceTensorCopy<> lse(Tensor<float>(count, options.query_heads, 1));
    const SequenceTokens entry{sequence, count};
    if (count < 150)  // the same batch, which sees fewer
      cache.attend(sequence, 0, queries.q.view(), queries.out.view());
    cache.attend(
        std::span(&entry, 1), 0,
        AttentionTensors<float>{
            .q = queries.q.view(), .out = queries.out.view(), .lse = lse.view(), .causal = false});
    const Tensor<float> out = queries.out.read(), logarithms = lse.read();
    const RuleDistance distance =
        rule_distance(options, queries.host.q.view(), held.k.view(), held.v.view(), out.view(),
                      logarithms.view(), [](Index) { return Index{150}; });
    EXPECT_LT(distance.output, device_tolerance);
    EXPECT_LT(distance.lse, device_tolerance);
  }
}

using Cache = DeviceCache<64, 32, 2, 2>;
class CudaScoresInGraphs : public OnDevice {};

TEST_F(CudaScoresInGraphs, AreBentAlike) {
  const Options options = score_rules(CacheWidths<64, 32, 2, 2>::options(6, 2)).back();
  Cache replayed(options), stepped(options);
  const SequenceId a = replayed.add_sequence(), b = stepped.add_sequence();
  DeviceInputs prompt(options, 290, 3), step(options, 1, 4);
  replayed.append(a, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
  stepped.append(b, 0, prompt.q.view(), prompt.k.view(), prompt.v.view());
  DeviceTensorCopy<> lse(Tensor<float>(1, options.query_heads, 1));
  const auto attend = [&](Cache &cache, SequenceId sequence, cudaStream_t stream) {
    attend_once(cache, sequence, step, lse, stream);
  };
  const auto found = [&] { return std::pair(step.out.read().elements, lse.read().elements); };
  attend(replayed, a, nullptr);
  attend(stepped, b, nullptr);
  require(cudaDeviceSynchronize());  // before another stream goes on
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CapturedGraph graph(stream, [&] { attend(replayed, a, stream); });
  const SequenceTokens entry{a, 1};
  for (int i = 0; i < 70; ++i) {
    graph.replay();
    replayed.advance(std::span(&entry, 1), 1, stream);
    require(cudaStreamSynchronize(stream));
    const auto of_graph = found();
    attend(stepped, b, nullptr);
    EXPECT_EQ(of_graph, found()) << i;
  }
  require(cudaStreamDestroy(stream));
}

/// A sequence beside one of a cache that keeps everything; replays of a captured step as well.
TEST_F(CudaScoresInGraphs, PagesBehindAWindowAreGivenBack) {
  Options all = CacheWidths<64, 32, 2, 2>::options(6, 2);
  all.tail = TailCoding::exact;  // a step's own row is met as it came
  Options options = all;
  options.attention_window = 100;
  Cache cache(options), keeping(all);
  const SequenceId sequence = cache.add_sequence(), kept = keeping.add_sequence();
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (unsigned piece = 0; piece < 20; ++piece) {
    DeviceInputs in(options, 77, piece);
    cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view(), stream);
    keeping.append(kept, 0, in.q.view(), in.k.view(), in.v.view(), stream);
  }
  EXPECT_LE(cache.memory_report().packed_tokens, 100 + 2 * 32);
  DeviceInputs step(options, 1, 4);
  DeviceTensorCopy<> lse(Tensor<float>(1, options.query_heads, 1));
  const SequenceTokens entry{sequence, 1};
  const auto attend = [&] { attend_once(cache, sequence, step, lse, stream); };
  attend();
  keeping.append(kept, 0, step.q.view(), step.k.view(), step.v.view(), stream);
  CapturedGraph graph(stream, attend);
  for (int i = 0; i < 150; ++i) {
    require(cudaStreamSynchronize(stream));
    const Contents held = device_contents(keeping, kept);
    if (i % 2 == 0) {
      attend();
    } else {
      graph.replay();
      cache.advance(std::span(&entry, 1), 1, stream);
    }
    keeping.append(kept, 0, step.q.view(), step.k.view(), step.v.view(), stream);
    require(cudaStreamSynchronize(stream));
    const RuleDistance distance = distance_of(cache, step, held, step.out.read(), lse.read());
    EXPECT_LT(distance.output, device_tolerance) << i;
    EXPECT_LT(distance.lse, device_tolerance) << i;
    EXPECT_LE(cache.memory_report().packed_tokens, 100 + 2 * 32);
  }
  require(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace squat::test
