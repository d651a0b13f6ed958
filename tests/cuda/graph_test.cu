// A decode step that was captured once and is replayed does what the same steps do one by one, across
// pages, and no call in it waits for the device or allocates.

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/inputs.hpp"

namespace squat::test {
namespace {

using Cache = DeviceCache<64, 32, 2, 2>;

constexpr int layers = 2;
constexpr Index sequences = 3;

Options options_of(Coding coding) {
  return {.layers = layers,
          .query_heads = 8,
          .kv_heads = 2,
          .head_dim = 64,
          .coding = coding,
          .residual = 20,
          .page_tokens = 32,
          .rotary = {rotary_table(1e4, 64)},
          .statistics_tokens = 60};
}

/// A cache with sequences of different lengths.
struct Filled {
  explicit Filled(const Options &options) : cache(options) {
    const std::array<Index, sequences> lengths = {90, 131, 70};
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      batch[i] = {cache.add_sequence(), 1};
      DeviceInputs in(options, lengths[i], 10 * static_cast<unsigned>(i));
      for (int layer = 0; layer < layers; ++layer) {
        cache.append(batch[i].sequence, layer, in.q.view(), in.k.view(), in.v.view());
      }
    }
  }

  void step(DeviceInputs &in, cudaStream_t stream) {
    for (int layer = 0; layer < layers; ++layer) {
      cache.attend(batch, layer, in.q.view(), in.k.view(), in.v.view(), in.out.view(), stream);
    }
  }

  Cache cache;
  std::array<SequenceTokens, sequences> batch;
};

class CudaGraph : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (!IsSkipped()) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }

  /// What the kernels counted is what the host did: attention and contents agree.
  void expect_attention(Filled &filled, DeviceInputs &in) {
    const SequenceId sequence = filled.batch[0].sequence;
    const Contents held = device_contents(filled.cache, sequence);
    filled.cache.attend(sequence, 0, in.q.view(0, 1), in.out.view(0, 1), stream);
    require(cudaStreamSynchronize(stream));
    const Tensor<float> out = in.out.read();
    EXPECT_LT(attention_distance<float>(in.host.q.view(0, 1), held.k.view(), held.v.view(),
                                        out.view().slice(0, 1), held.k.tokens - 1),
              device_tolerance);
  }

  cudaStream_t stream = nullptr;
};

TEST_F(CudaGraph, ReplaysAreSteps) {
  for (Coding coding : {Coding::plain, Coding::subspace}) {
    const Options options = options_of(coding);
    Filled eager(options), replayed(options);
    DeviceInputs in(options, sequences, 77);
    eager.step(in, stream);
    replayed.step(in, stream);
    require(cudaStreamSynchronize(stream));  // before its inputs are written anew
    const CapturedGraph captured(stream, [&] { replayed.step(in, stream); });
    for (unsigned step = 0; step < 100; ++step) {
      const DeviceInputs next(options, sequences, 100 + 3 * step);
      in.q.write(next.host.q);
      in.k.write(next.host.k);
      in.v.write(next.host.v);
      eager.step(in, stream);
      require(cudaStreamSynchronize(stream));
      const Tensor<float> expected = in.out.read();
      captured.replay();
      replayed.cache.advance(replayed.batch, 1, stream);
      require(cudaStreamSynchronize(stream));
      const Tensor<float> out = in.out.read();
      for (std::size_t i = 0; i < out.elements.size(); ++i) {
        ASSERT_NEAR(out.elements[i], expected.elements[i], 1e-3) << "step " << step;
      }
    }
    eager.cache.check(stream);
    replayed.cache.check(stream);
    EXPECT_EQ(eager.cache.memory_report().packed_tokens, replayed.cache.memory_report().packed_tokens);
    for (std::size_t i = 0; i < sequences; ++i) {
      const SequenceId a = eager.batch[i].sequence, b = replayed.batch[i].sequence;
      EXPECT_EQ(eager.cache.length(a), replayed.cache.length(b));
      for (int layer = 0; layer < layers; ++layer) {
        EXPECT_EQ(device_contents(eager.cache, a, layer), device_contents(replayed.cache, b, layer));
      }
    }
  }
}

TEST_F(CudaGraph, SeveralReplaysAreCountedTogether) {
  const Options options = options_of(Coding::plain);
  Filled filled(options);
  DeviceInputs in(options, sequences, 77);
  filled.step(in, stream);
  const CapturedGraph captured(stream, [&] { filled.step(in, stream); });
  const Index before = filled.cache.length(filled.batch[0].sequence);
  for (int round = 0; round < 4; ++round) {
    for (int replay = 0; replay < options.page_tokens; ++replay) captured.replay();
    filled.cache.advance(filled.batch, options.page_tokens, stream);
  }
  filled.cache.check(stream);
  EXPECT_EQ(filled.cache.length(filled.batch[0].sequence), before + 4 * options.page_tokens);
  expect_attention(filled, in);
}

/// Every second row of the tensors, from row 1 on.
Tensor<float> spread(Tensor<float> rows) {
  Tensor<float> all(2 * rows.tokens, rows.heads, rows.head_dim);
  const Index width = rows.heads * rows.head_dim;
  for (Index row = 0; row < rows.tokens; ++row)
    std::copy_n(rows.elements.begin() + row * width, width,
                all.elements.begin() + (2 * row + 1) * width);
  return all;
}

TEST_F(CudaGraph, TakesRowsWhereTheBatchSays) {
  const Options options = options_of(Coding::plain);
  Filled filled(options), same(options);
  DeviceInputs in(options, sequences, 77), rows(options, 2 * sequences, 1);
  rows.q.write(spread(in.host.q));
  rows.k.write(spread(in.host.k));
  rows.v.write(spread(in.host.v));
  for (std::size_t i = 0; i < sequences; ++i) same.batch[i].first_row = 2 * static_cast<Index>(i) + 1;
  filled.step(in, stream);
  same.step(rows, stream);
  const CapturedGraph captured(stream, [&] { same.step(rows, stream); });
  for (Index step = 0; step < options.page_tokens; ++step) {
    filled.step(in, stream);
    captured.replay();
  }
  same.cache.advance(same.batch, options.page_tokens, stream);
  same.cache.check(stream);
  require(cudaStreamSynchronize(stream));
  const Tensor<float> found = rows.out.read(), expected = spread(in.out.read());
  for (std::size_t i = 0; i < found.elements.size(); ++i) {
    ASSERT_NEAR(found.elements[i], expected.elements[i], 1e-3) << "0 where no row is named";
  }
}

TEST_F(CudaGraph, SaysWhenItIsOutgrownAndIsCapturedAnew) {
  const Options options = options_of(Coding::plain);
  Filled filled(options);
  DeviceInputs in(options, sequences, 77);
  filled.step(in, stream);
  const auto step = [&] { filled.step(in, stream); };
  auto captured = std::make_unique<CapturedGraph>(stream, step);
  const Index before = filled.cache.length(filled.batch[0].sequence);
  int outgrown = 0;
  constexpr int rounds = 80;  // pages are as many, and tables begin with 64
  for (int round = 0; round < rounds; ++round) {
    for (int replay = 0; replay < options.page_tokens; ++replay) captured->replay();
    try {
      filled.cache.advance(filled.batch, options.page_tokens, stream);
    } catch (const Error &error) {
      EXPECT_NE(std::string(error.what()).find("outgrown"), std::string::npos) << error.what();
      ++outgrown;
      filled.step(in, stream);
      captured = std::make_unique<CapturedGraph>(stream, step);
    }
  }
  EXPECT_GT(outgrown, 0);
  filled.cache.check(stream);
  EXPECT_EQ(filled.cache.length(filled.batch[0].sequence),
            before + rounds * options.page_tokens + outgrown);
  expect_attention(filled, in);
}

TEST_F(CudaGraph, SaysHowOftenAStepMayBeReplayed) {
  Options options = options_of(Coding::subspace);
  options.max_pages = 24;  // 12 are packed, 6 acquired ahead
  Filled filled(options);
  DeviceInputs in(options, sequences, 77);
  EXPECT_EQ(filled.cache.steps_to_replay({}), 0);
  filled.step(in, stream);
  const CapturedGraph captured(stream, [&] { filled.step(in, stream); });
  const Index before = filled.cache.length(filled.batch[0].sequence);
  Index replayed = 0;
  while (const Index steps = filled.cache.steps_to_replay(filled.batch)) {
    ASSERT_LE(steps, options.page_tokens);
    ASSERT_LT(replayed, 1000) << "pages do not end";
    for (Index step = 0; step < steps; ++step) captured.replay();
    filled.cache.advance(filled.batch, steps, stream);
    replayed += steps;
  }
  filled.cache.check(stream);
  EXPECT_GT(replayed, 2 * options.page_tokens);
  EXPECT_EQ(filled.cache.length(filled.batch[0].sequence), before + replayed);
  expect_attention(filled, in);
}

TEST_F(CudaGraph, EndsWhereAShortTailHasToGrow) {
  const Options options = options_of(Coding::plain);
  Cache cache(options);
  DeviceInputs in(options, 24, 1);
  const std::array batch{SequenceTokens{cache.add_sequence(), 1}};
  const auto append = [&](Index first, Index count) {
    for (int layer = 0; layer < layers; ++layer)
      cache.attend(batch[0].sequence, layer, in.q.view(first, count), in.k.view(first, count),
                   in.v.view(first, count), in.out.view(first, count), stream);
  };
  append(0, 10);
  EXPECT_EQ(cache.steps_to_replay(batch), 10) << "of a block of 16 tokens, behind 4 sinks";
  append(10, 1);
  EXPECT_THROW(cache.advance(batch, 10), Error);
  for (Index token = 11; token < 21; ++token) append(token, 1);
  EXPECT_EQ(cache.steps_to_replay(batch), options.page_tokens) << "it grew as a whole";
}

TEST_F(CudaGraph, IsNoneWhileACodingLearns) {
  Options options = options_of(Coding::subspace);
  options.statistics_tokens = 1000;
  Filled filled(options);
  EXPECT_EQ(filled.cache.steps_to_replay(filled.batch), 0);
}

TEST_F(CudaGraph, RefusesToCaptureWhatIsNoStep) {
  const Options options = options_of(Coding::plain);
  Filled filled(options);
  DeviceInputs in(options, 2, 1);
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  EXPECT_THROW(filled.cache.attend(filled.batch[0].sequence, 0, in.q.view(), in.k.view(), in.v.view(),
                                   in.out.view(), stream),
               Error);
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  (void)cudaGetLastError();
  EXPECT_EQ(filled.cache.length(filled.batch[0].sequence), 90);
}

}  // namespace
}  // namespace squat::test
