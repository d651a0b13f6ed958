// Heads narrower than kernels are compiled for, on the device: number for number larger heads whose
// further channels are zeros; captured steps too.

#include <array>
#include <cmath>
#include <vector>

#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/head_sizes.hpp"
#include "reference/inputs.hpp"
#include "reference/saved.hpp"

namespace squat::test {
namespace {

class CudaHeadSizes : public OnDevice {};
using NarrowCache = DeviceCache<64, 32, 2, 2>;

Options narrow_options(const Sizes &sizes) { return options_of(sizes, sizes.head_dim); }

/// The tensors of TwoSizes on the device.
struct DeviceTwoSizes {
  DeviceTwoSizes(const Sizes &sizes, Index tokens, unsigned seed)
      : host(sizes, tokens, seed),
        q(host.q),
        k(host.k),
        v(host.v),
        out(host.out),
        lse(host.lse),
        wide_q(host.wide_q),
        wide_k(host.wide_k),
        wide_v(host.wide_v),
        wide_out(host.wide_out),
        wide_lse(host.wide_lse) {}

  AttentionTensors<float> tensors() { return tensors_of<float>(*this); }
  AttentionTensors<float> wide() { return wide_tensors_of<float>(*this); }
  void expect_same() {
    EXPECT_EQ(out.read().elements, resized(wide_out.read(), host.out.head_dim).elements);
    EXPECT_EQ(lse.read().elements, wide_lse.read().elements);
  }

  TwoSizes<float> host;
  DeviceTensorCopy<> q, k, v, out, lse, wide_q, wide_k, wide_v, wide_out, wide_lse;
};

std::array<SequenceTokens, 1> share_of(SequenceId sequence, Index tokens) {
  return {SequenceTokens{sequence, tokens}};
}

TEST_F(CudaHeadSizes, AreLargerHeadsWithZeros) {
  for (const Sizes &sizes : {Sizes{50, 50, 64}, Sizes{64, 24, 64}, Sizes{21, 60, 64}}) {
    SCOPED_TRACE(testing::Message() << sizes.head_dim << "/" << sizes.value_dim);
    const Options options = narrow_options(sizes);
    Options larger = options;
    larger.head_dim = larger.value_dim = sizes.padded;
    larger.attention_scale = 1 / std::sqrt(static_cast<float>(sizes.head_dim));
    NarrowCache cache(options), wide(larger);
    const SequenceId a = cache.add_sequence(), b = wide.add_sequence();
    for (const Index tokens : {90, 1, 1, 30, 3}) {
      DeviceTwoSizes in(sizes, tokens, static_cast<unsigned>(tokens));
      cache.attend(share_of(a, tokens), 0, in.tensors());
      wide.attend(share_of(b, tokens), 0, in.wide());
      in.expect_same();
      EXPECT_EQ(saved(cache, a), saved(wide, b));
    }
    DeviceTwoSizes held(sizes, cache.length(a), 1);
    cache.dequantize(a, 0, held.k.view(), held.v.view());
    wide.dequantize(b, 0, held.wide_k.view(), held.wide_v.view());
    EXPECT_EQ(held.k.read().elements, resized(held.wide_k.read(), sizes.head_dim).elements);
    EXPECT_EQ(held.v.read().elements, resized(held.wide_v.read(), sizes.value_dim).elements);
  }
}

/// A call of many tokens between replays needs larger rows; the graph keeps its own.
TEST_F(CudaHeadSizes, CapturedStepsKeepTheirRows) {
  const Sizes sizes{50, 36, 64};
  const Options options = narrow_options(sizes);
  NarrowCache replayed(options), stepped(options);
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  DeviceTwoSizes prompt(sizes, 80, 3), step(sizes, 1, 4), other(sizes, 300, 5);
  const SequenceId a = replayed.add_sequence(), b = stepped.add_sequence();
  replayed.attend(share_of(a, 80), 0, prompt.tensors(), stream);
  stepped.attend(share_of(b, 80), 0, prompt.tensors(), stream);
  const auto attend = [&] { replayed.attend(share_of(a, 1), 0, step.tensors(), stream); };
  attend();
  stepped.attend(share_of(b, 1), 0, step.tensors(), stream);
  CapturedGraph graph(stream, attend);
  for (int i = 0; i < 40; ++i) {
    if (i % 10 == 5) {
      const SequenceId passing = replayed.add_sequence();
      replayed.attend(share_of(passing, 300), 0, other.tensors(), stream);
      replayed.remove_sequence(passing);
    }
    graph.replay();
    replayed.advance(share_of(a, 1), 1, stream);
    require(cudaStreamSynchronize(stream));
    const std::vector<float> of_graph = step.out.read().elements;
    stepped.attend(share_of(b, 1), 0, step.tensors(), stream);
    require(cudaStreamSynchronize(stream));
    EXPECT_EQ(of_graph, step.out.read().elements) << i;
  }
  require(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace squat::test
