// A damaged GGUF file is refused with a message, whatever the damage; nothing of it is believed.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

#include "dequantize.hpp"
#include "engine.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "tokenizer.hpp"

namespace engine::test::damaged_file_test {
namespace {

enum class Outcome { runs, refused };

/// Loads a file and predicts a few tokens with it.
Outcome load_and_run(std::vector<std::byte> bytes) {
  try {
    const Gguf file(std::move(bytes));
    const Tokenizer tokenizer(file);
    const std::unique_ptr<Engine> engine = make_engine("cpu", file);
    const CacheSpec spec = parse_cache_spec("exact");
    const std::unique_ptr<ModelCache> cache = engine->make_cache(spec.options_for(engine->config()));
    const std::vector<int> tokens = tokenizer.encode("the inn, 42");
    if (tokens.empty()) return Outcome::refused;
    const SequenceRows rows{cache.get(), cache->add_sequence(),
                            static_cast<squat::Index>(tokens.size())};
    engine->forward(tokens, std::span(&rows, 1));
    return Outcome::runs;
  } catch (const FileError &) {
  } catch (const squat::Error &) {       // weights that make keys infinite
  } catch (const std::out_of_range &) {  // a token outside the vocabulary
  }
  return Outcome::refused;
}

/// One of each architecture, and each of the types that fit in its rows in one of them.
const std::vector<SmallModel> models = {
    {},
    {.architecture = "qwen2", .type = TensorType::q5_0},
    {.architecture = "qwen3", .type = TensorType::q8_0},
    {.architecture = "gemma2", .window = 8, .type = TensorType::q5_1},
    {.architecture = "gemma3", .window = 8, .type = TensorType::q4_0},
    {.type = TensorType::bf16},
    {.type = TensorType::q4_1}};

TEST(DamagedFile, TheUndamagedOneRuns) {
  for (const SmallModel &model : models)
    EXPECT_EQ(load_and_run(small_model(model)), Outcome::runs) << model.architecture;
}

TEST(DamagedFile, EveryTruncationIsRefused) {
  for (const SmallModel &model : {SmallModel(), SmallModel{.architecture = "gemma2", .window = 8}}) {
    const std::vector<std::byte> whole = small_model(model);
    for (std::size_t size = 0; size < whole.size(); size += size < 9000 ? 7 : 997) {
      EXPECT_EQ(load_and_run({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)}),
                Outcome::refused)
          << model.architecture << ' ' << size;
    }
  }
}

TEST(DamagedFile, TenThousandMutationsNeverCrash) {
  std::vector<std::vector<std::byte>> files;
  for (const SmallModel &model : models) files.push_back(small_model(model));
  std::mt19937 random(11);
  const std::array<std::uint64_t, 6> extremes = {
      0, 1, 0x7fffffff, 0xffffffff, std::numeric_limits<std::uint64_t>::max(), std::uint64_t{1} << 61};
  int refused = 0;
  for (int round = 0; round < 10000; ++round) {
    std::vector<std::byte> bytes = files[static_cast<std::size_t>(round) % files.size()];
    const std::size_t range = round % 4 == 0 ? bytes.size() - 8 : 11000;  // mostly metadata
    for (unsigned change = 0; change <= random() % 3; ++change) {
      const std::size_t at = random() % range;
      if (random() % 2 == 0) {
        bytes[at] = static_cast<std::byte>(random());
      } else {
        const std::size_t size = std::size_t{1} << random() % 4;
        std::memcpy(&bytes[at], &extremes[random() % extremes.size()], size);
      }
    }
    refused += load_and_run(std::move(bytes)) == Outcome::refused;
  }
  EXPECT_GT(refused, 1000);
  EXPECT_LT(refused, 10000);
}

}  // namespace
}  // namespace engine::test::damaged_file_test
