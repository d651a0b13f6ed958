// A cache is one device's: of whatever is current when it is made. Calls make that current and then the
// caller's again, and refuse tensors and streams of another device.

#include <array>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "caches.cuh"
#include "captured_graph.cuh"
#include "reference/inputs.hpp"
#include "reference/saved.hpp"

namespace squat::test {
namespace {

int current_device() { return cuda::current_device(); }

class Stream {
 public:
  explicit Stream(int device) {
    const cuda::DeviceScope scope(device);
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A cache, its tensors and a stream, all of one device, whatever is current.
class Placed {
 public:
  using Cache = DeviceCache<64, 32, 2, 2>;
  static constexpr Index prompt = 150;

  static Options options() {
    return {.layers = 1,
            .query_heads = 4,
            .kv_heads = 2,
            .head_dim = 64,
            .sinks = 3,
            .residual = 20,
            .page_tokens = 32,
            .rotary = {rotary_table(1e4, 64)},
            .statistics_tokens = 60,
            .keep_statistics = true};
  }

  explicit Placed(int device) : stream(device) {
    const cuda::DeviceScope scope(device);
    in = std::make_unique<DeviceInputs>(options(), 300, 1);
    lse = std::make_unique<DeviceTensorCopy<>>(Tensor<float>(300, 4, 1));
    cache = std::make_unique<Cache>(options());
    sequence = cache->add_sequence();
  }

  AttentionTensors<float> tensors(Index first, Index count) {
    return {.q = in->q.view(first, count),
            .k = in->k.view(first, count),
            .v = in->v.view(first, count),
            .out = in->out.view(first, count),
            .lse = lse->view(first, count)};
  }
  void attend(Index first, Index count) {
    cache->attend(std::array{SequenceTokens{sequence, count}}, 0, tensors(first, count), stream);
  }

  /// Calls of every kind, in an order in which they can come, by name. `on`: the stream they take.
  std::vector<std::pair<std::string, std::function<void()>>> calls(cudaStream_t on) {
    const std::array batch = {SequenceTokens{sequence, 1}};
    return {
        {"a prompt",
         [=, this] {
           cache->attend(sequence, 0, in->q.view(0, prompt), in->k.view(0, prompt),
                         in->v.view(0, prompt), in->out.view(0, prompt), on);
         }},
        {"steps",
         [=, this] {
           for (Index token = prompt; token < prompt + 40; ++token)
             cache->attend(batch, 0, tensors(token, 1), on);
         }},
        {"reading", [=, this] { cache->attend(batch, 0, in->q.view(0, 1), in->out.view(0, 1), on); }},
        {"a draft",
         [=, this] {
           cache->draft(std::array{SequenceTokens{sequence, 2}}, 0, tensors(200, 2),
                        std::array<Index, 2>{-1, 0}, on);
         }},
        {"append",
         [=, this] { cache->append(sequence, 0, in->k.view(200, 40), in->v.view(200, 40), on); }},
        {"dequantize",
         [=, this] {
           const Index tokens = cache->length(sequence);
           cache->dequantize(sequence, 0, in->k.view(0, tokens), in->v.view(0, tokens), on);
         }},
        {"fork", [=, this] { child = cache->fork(sequence, 100, on); }},
        {"reorder",
         [=, this] {
           cache->reorder(std::array{child, sequence}, std::array{sequence, sequence}, on);
         }},
        {"truncate", [=, this] { cache->truncate(child, 90, on); }},
        {"shift", [=, this] { cache->shift(child, 10, 20, -10, on); }},
        {"save",
         [=, this] {
           bytes.clear();
           cache->save(child, bytes, {}, on);
         }},
        {"load", [=, this] { cache->load(bytes, {}, on); }},
        {"save_codings",
         [=, this] {
           bytes.clear();
           cache->save_codings(bytes, {}, on);
         }},
        {"load_codings", [=, this] { cache->load_codings(bytes, {}, on); }},
        {"advance", [=, this] { cache->advance(batch, 0, on); }},
        {"check", [=, this] { cache->check(on); }},
        {"reset_learning", [=, this] { cache->reset_learning(on); }},
    };
  }

  /// What a prompt and steps across pages give.
  std::vector<float> played() {
    attend(0, prompt);
    for (Index token = prompt; token < 300; ++token) attend(token, 1);
    require(cudaStreamSynchronize(stream));
    cache->check(stream);
    return in->out.read().elements;
  }

  Stream stream;
  std::unique_ptr<DeviceInputs> in;
  std::unique_ptr<DeviceTensorCopy<>> lse;
  std::unique_ptr<Cache> cache;
  SequenceId sequence, child;
  Bytes bytes;
};

/// Expects that a call throws Error with these words.
template <class Call>
void expect_refused(const std::string &words, Call &&call) {
  try {
    call();
    ADD_FAILURE() << "no error, but one was expected that says: " << words;
  } catch (const Error &error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

/// Of what is captured in a stream, nothing is kept.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  }
  ~Capture() {
    cudaGraph_t graph = nullptr;
    (void)cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    (void)cudaGetLastError();
  }
  Capture(const Capture &) = delete;
  Capture &operator=(const Capture &) = delete;

 private:
  cudaStream_t stream_;
};

using OneDevice = OnDevice;

TEST_F(OneDevice, IsTakenWithEveryStreamOfIt) {
  Placed placed(0);
  for (const cudaStream_t stream :
       {cudaStream_t{placed.stream}, cudaStream_t{nullptr}, cudaStreamLegacy, cudaStreamPerThread})
    EXPECT_NO_THROW(cuda::check_stream(stream, 0));
  placed.attend(0, Placed::prompt);
  const auto append = [&](Index token) {
    placed.cache->append(placed.sequence, 0, placed.in->k.view(token, 1), placed.in->v.view(token, 1),
                         placed.stream);
  };
  append(150);
  const Capture capture(placed.stream);
  append(151);
}

TEST_F(OneDevice, TakesMemoryThatIsNoDevicesOwn) {
  Placed placed(0);
  placed.attend(0, Placed::prompt);
  float *managed = nullptr, *pinned = nullptr;
  require(cudaMallocManaged(&managed, 256 * sizeof(float)));
  require(cudaMallocHost(&pinned, 256 * sizeof(float)));
  for (float *out : {managed, pinned}) {
    placed.cache->attend(placed.sequence, 0, placed.in->q.view(149, 1), TensorView<float>(out, 1, 4, 64),
                         placed.stream);
  }
  require(cudaStreamSynchronize(placed.stream));
  EXPECT_EQ(std::vector<float>(managed, managed + 256), std::vector<float>(pinned, pinned + 256));
  require(cudaFree(managed));
  require(cudaFreeHost(pinned));
}

TEST_F(OneDevice, IsCurrentAgainWhereAnotherCannotBe) {
  EXPECT_THROW(cuda::DeviceScope(1000), Error);
  EXPECT_EQ(current_device(), 0);
}

class TwoDevices : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped()) return;
    int count = 0;
    require(cudaGetDeviceCount(&count));
    if (count < 2) GTEST_SKIP() << "one CUDA device: a second is needed";
  }
  void TearDown() override { (void)cudaSetDevice(0); }
};

TEST_F(TwoDevices, EveryCallLeavesTheCallersDeviceCurrent) {
  for (const int current : {0, 1}) {
    require(cudaSetDevice(current));
    Placed placed(1 - current);
    EXPECT_EQ(current_device(), current);
    for (const auto &[name, call] : placed.calls(placed.stream)) {
      EXPECT_NO_THROW(call()) << name;
      EXPECT_EQ(current_device(), current) << name;
    }
    EXPECT_NO_THROW(placed.cache->statistics());
    placed.cache->remove_sequence(placed.cache->add_sequence());
    placed.cache->remove_sequence(placed.child);
    placed.cache.reset();
    EXPECT_EQ(current_device(), current);
    const cuda::DeviceScope scope(1 - current);
    require(cudaDeviceSynchronize());
  }
}

TEST_F(TwoDevices, GiveTheSameWhicheverIsCurrent) {
  const std::vector<float> expected = Placed(0).played();
  EXPECT_EQ(Placed(1).played(), expected);
  require(cudaSetDevice(1));
  EXPECT_EQ(Placed(0).played(), expected);
}

TEST_F(TwoDevices, WorkAtOnceInTwoThreads) {
  const std::vector<float> expected = Placed(0).played();
  std::array<std::future<std::vector<float>>, 2> threads;
  for (const int device : {0, 1}) {
    threads[static_cast<std::size_t>(device)] = std::async(std::launch::async, [device] {
      Placed placed(device);  // device 0 is current in a new thread
      return placed.played();
    });
  }
  for (auto &thread : threads) EXPECT_EQ(thread.get(), expected);
}

TEST_F(TwoDevices, WorkInTurnInOneThread) {
  Placed first(0), second(1);
  first.attend(0, Placed::prompt);
  second.attend(0, Placed::prompt);
  for (Index token = Placed::prompt; token < 300; ++token) {
    first.attend(token, 1);
    second.attend(token, 1);
  }
  require(cudaStreamSynchronize(first.stream));
  require(cudaStreamSynchronize(second.stream));
  EXPECT_EQ(first.in->out.read().elements, second.in->out.read().elements);
}

TEST_F(TwoDevices, RefuseEachOthersTensors) {
  Placed placed(0), other(1);
  placed.attend(0, Placed::prompt);
  placed.attend(150, 1);
  const AttentionTensors<float> good = placed.tensors(151, 1), theirs = other.tensors(151, 1);
  const std::array batch = {SequenceTokens{placed.sequence, 1}};
  const auto expect_all_refused = [&] {
    const auto refused = [&](const char *name, auto AttentionTensors<float>::*tensor) {
      AttentionTensors<float> bad = good;
      bad.*tensor = theirs.*tensor;
      expect_refused(std::string(name) + ".device is 1",
                     [&] { placed.cache->attend(batch, 0, bad, placed.stream); });
      EXPECT_EQ(current_device(), 0);
    };
    refused("q", &AttentionTensors<float>::q);
    refused("k", &AttentionTensors<float>::k);
    refused("v", &AttentionTensors<float>::v);
    refused("out", &AttentionTensors<float>::out);
    refused("lse", &AttentionTensors<float>::lse);
  };
  expect_all_refused();
  {
    const Capture capture(placed.stream);
    expect_all_refused();
  }
  expect_refused("q.device",
                 [&] { placed.cache->attend(placed.sequence, 0, theirs.q, good.out, placed.stream); });
  expect_refused("k.device",
                 [&] { placed.cache->append(placed.sequence, 0, theirs.k, good.v, placed.stream); });
  expect_refused("v.device", [&] {
    placed.cache->dequantize(placed.sequence, 0, placed.in->k.view(0, 151), other.in->v.view(0, 151));
  });
  EXPECT_EQ(placed.cache->length(placed.sequence), 151);
  for (Index token = 151; token < 300; ++token) placed.attend(token, 1);
  require(cudaStreamSynchronize(placed.stream));
  EXPECT_EQ(placed.in->out.read().elements, Placed(0).played());
}

TEST_F(TwoDevices, RefuseEachOthersStreams) {
  Placed placed(0);
  const Stream other(1);
  const auto good = placed.calls(placed.stream), bad = placed.calls(other);
  for (std::size_t i = 0; i < good.size(); ++i) {
    const MemoryReport before = placed.cache->memory_report();
    const Index length = placed.cache->length(placed.sequence);
    expect_refused("stream.device is 1", bad[i].second);
    EXPECT_EQ(placed.cache->length(placed.sequence), length) << good[i].first;
    EXPECT_EQ(placed.cache->memory_report().pages_used, before.pages_used) << good[i].first;
    EXPECT_EQ(current_device(), 0);
    EXPECT_NO_THROW(good[i].second()) << good[i].first;
  }
}

TEST_F(TwoDevices, RefuseEachOthersStreamsThatAreCaptured) {
  Placed placed(0);
  const Stream other(1);
  placed.attend(0, Placed::prompt);
  placed.attend(150, 1);
  const cuda::DeviceScope scope(1);
  const Capture capture(other);
  expect_refused("stream", [&] {
    placed.cache->attend(std::array{SequenceTokens{placed.sequence, 1}}, 0, placed.tensors(151, 1),
                         other);
  });
  EXPECT_EQ(placed.cache->length(placed.sequence), 151);
}

}  // namespace
}  // namespace squat::test
