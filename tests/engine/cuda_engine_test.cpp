// Models of every architecture predict on the GPU what they do on the CPU.

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <vector>

#include "engine.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"
#ifdef ENGINE_CUDA_HEAD_DIM
#include <cuda_runtime_api.h>
#endif

namespace engine::test::cuda_engine_test {
namespace {

#ifdef ENGINE_CUDA_HEAD_DIM
constexpr int head_dim = ENGINE_CUDA_HEAD_DIM;
bool has_gpu() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}
#else
constexpr int head_dim = 64;
bool has_gpu() { return false; }
#endif

// Of the widths that every build for CUDA has; the tail keeps all tokens of these texts exact.
constexpr const char *coding = "plain:k2v2:g32:w128:t16";

const std::vector<SmallModel> models = {
    {.head_dim = head_dim},
    {.architecture = "qwen2", .head_dim = head_dim},
    {.architecture = "qwen3", .head_dim = head_dim},
    {.architecture = "gemma2", .layers = 4, .window = 24, .head_dim = head_dim},
    {.architecture = "gemma3", .layers = 7, .window = 24, .head_dim = head_dim}};

class CudaEngine : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no CUDA device, or built without CUDA";
  }

  /// A prompt and the tokens behind it.
  static std::vector<int> random_tokens() {
    std::mt19937 random(2);
    std::vector<int> tokens;
    while (tokens.size() < 120) tokens.push_back(static_cast<int>(1 + random() % 256));
    return tokens;
  }

  /// Logits behind each piece of a text: a prompt, steps, and a chunk.
  static std::vector<Eigen::RowVectorXf> logits(const char *device, const Gguf &file) {
    const std::vector<int> tokens = random_tokens();
    const std::unique_ptr<Engine> engine = make_engine(device, file);
    const CacheSpec spec = parse_cache_spec(coding);
    const std::unique_ptr<ModelCache> cache = engine->make_cache(spec.options_for(engine->config()));
    SequenceRows rows{cache.get(), cache->add_sequence()};
    std::vector<Eigen::RowVectorXf> behind;
    std::size_t fed = 0;
    for (const int piece : {90, 1, 1, 28}) {
      rows.tokens = piece;
      const auto next = std::span(tokens).subspan(fed, static_cast<std::size_t>(piece));
      behind.emplace_back(engine->forward(next, std::span(&rows, 1)).row(0));
      fed += next.size();
      if (piece == 1) rows.sequence = cache->fork(rows.sequence);  // in order with the engine's steps
    }
    return behind;
  }
};

TEST_F(CudaEngine, PredictsWhatTheCpuDoes) {
  for (const SmallModel &model : models) {
    const Gguf file(small_model(model));
    const auto expected = logits("cpu", file), actual = logits("cuda", file);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LT((actual[i] - expected[i]).norm(), 1e-2f * expected[i].norm())  // of float16 products
          << model.architecture << ", piece " << i;
    }
  }
}

}  // namespace
}  // namespace engine::test::cuda_engine_test
