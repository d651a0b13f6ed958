// Models of every architecture over one cache or, where some layers attend through a window, over two.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "engine.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"

namespace engine::test::architectures_test {
namespace {

const std::vector<SmallModel> models = {{},
                                        {.architecture = "qwen2"},
                                        {.architecture = "qwen3"},
                                        {.architecture = "gemma2", .layers = 4, .window = 24},
                                        {.architecture = "gemma3", .layers = 7, .window = 24}};

std::vector<int> random_tokens(std::size_t count) {
  std::mt19937 random(2);
  std::vector<int> tokens;
  while (tokens.size() < count) tokens.push_back(static_cast<int>(1 + random() % 256));
  return tokens;
}

struct Running {
  explicit Running(const SmallModel &model, const char *coding = "exact")
      : file(small_model(model)), engine(make_engine("cpu", file)) {
    const CacheSpec spec = parse_cache_spec(coding);
    cache = engine->make_cache(spec.options_for(engine->config()));
    sequence = cache->add_sequence();
  }
  Eigen::RowVectorXf forward(std::span<const int> tokens) { return forward(tokens, sequence); }
  Eigen::RowVectorXf forward(std::span<const int> tokens, squat::SequenceId of) {
    const SequenceRows rows{cache.get(), of, static_cast<squat::Index>(tokens.size())};
    return engine->forward(tokens, std::span(&rows, 1)).row(0);
  }

  Gguf file;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<ModelCache> cache;
  squat::SequenceId sequence;
};

TEST(Architectures, GiveTheSameLogitsForATextInPieces) {
  const std::vector<int> tokens = random_tokens(90);
  for (const SmallModel &model : models) {
    Running whole(model), pieces(model);
    const Eigen::RowVectorXf expected = whole.forward(tokens);
    pieces.forward(std::span(tokens).first(50));
    Eigen::RowVectorXf logits;
    for (std::size_t i = 50; i < tokens.size(); ++i)
      logits = pieces.forward(std::span(tokens).subspan(i, 1));
    // The exact cache keeps float16 rows.
    EXPECT_LT((logits - expected).norm(), 2e-3f * expected.norm()) << model.architecture;
  }
}

TEST(Architectures, ForkSaveAndLoadAllLayers) {
  const std::vector<int> tokens = random_tokens(60);
  for (const SmallModel &model : models) {
    Running running(model);
    running.forward(std::span(tokens).first(40));
    const squat::SequenceId fork = running.cache->fork(running.sequence, 40);
    std::stringstream saved;
    running.cache->save(running.sequence, saved);
    const squat::SequenceId loaded = running.cache->load(saved);
    const auto rest = std::span(tokens).subspan(40);
    const Eigen::RowVectorXf expected = running.forward(rest);
    EXPECT_EQ(running.forward(rest, fork), expected) << model.architecture;
    EXPECT_EQ(running.forward(rest, loaded), expected) << model.architecture;
    EXPECT_EQ(running.cache->length(fork), 60);
    running.cache->remove_sequence(fork);
    EXPECT_THROW(running.forward(rest, fork), squat::Error) << model.architecture;
    std::stringstream cut(saved.str().substr(0, saved.str().size() - 9));
    EXPECT_THROW(running.cache->load(cut), squat::Error) << model.architecture;
  }
}

/// How far the first token of a text changes what its last one predicts.
float reach_of_first_token(const SmallModel &model) {
  std::vector<int> tokens = random_tokens(60);
  const Eigen::RowVectorXf before = Running(model).forward(tokens);
  tokens[0] = tokens[0] == 1 ? 2 : 1;
  return (Running(model).forward(tokens) - before).norm() / before.norm();
}

TEST(Architectures, SeeNoFartherThanTheirWindows) {
  // Five local layers of 8 tokens reach 35 back; the sixth layer of Gemma 3 and the second of Gemma 2
  // see all.
  EXPECT_EQ(reach_of_first_token({.architecture = "gemma3", .layers = 5, .window = 8}), 0);
  EXPECT_GT(reach_of_first_token({.architecture = "gemma3", .layers = 6, .window = 8}), 1e-5f);
  EXPECT_EQ(reach_of_first_token({.architecture = "gemma2", .layers = 1, .window = 8}), 0);
  EXPECT_GT(reach_of_first_token({.architecture = "gemma2", .layers = 2, .window = 8}), 1e-5f);
}

TEST(Architectures, GiveBackThePagesBehindAWindow) {
  const std::vector<int> tokens = random_tokens(400);
  Running all({.architecture = "gemma3", .layers = 7, .window = 0}, "plain:k4v4:g16:w16"),
      windowed({.architecture = "gemma3", .layers = 7, .window = 32}, "plain:k4v4:g16:w16");
  for (Running *running : {&all, &windowed})
    for (std::size_t i = 0; i < tokens.size(); i += 20)
      running->forward(std::span(tokens).subspan(i, 20));
  const squat::MemoryReport most = all.cache->memory_report(), least = windowed.cache->memory_report();
  EXPECT_LT(least.pages_used, most.pages_used / 3);  // one layer of seven keeps all of its pages
  EXPECT_GT(least.pages_used, most.pages_used / 7);
  EXPECT_GT(least.packed_tokens, 0);
  EXPECT_NEAR(least.packed_bits_per_element, most.packed_bits_per_element, 1e-9);
}

TEST(Architectures, UnknownOnesAreNamed) {
  try {
    const Gguf file(small_model({.architecture = "mamba"}));
    make_engine("cpu", file);
    ADD_FAILURE();
  } catch (const FileError &error) {
    EXPECT_STREQ(error.what(),
                 "architecture mamba is not supported (llama, qwen2, qwen3, gemma2, gemma3 are)");
  }
}

/// For compare_with_transformers.py, by hand: SQUAT_SMALL_MODELS names a folder.
TEST(Architectures, AreWrittenForAnotherEngine) {
  const char *folder = std::getenv("SQUAT_SMALL_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "SQUAT_SMALL_MODELS names no folder";
  for (const SmallModel &model : models) {
    const std::vector<std::byte> bytes = small_model(model);
    const std::string path = folder + ("/" + model.architecture) + ".gguf";
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    EXPECT_NO_THROW(Gguf::open(path)) << path;
  }
}

}  // namespace
}  // namespace engine::test::architectures_test
