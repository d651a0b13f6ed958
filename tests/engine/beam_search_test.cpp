// Beams that share a cache and are reordered are those of an engine that computes each anew.

#include "beam_search.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "tokenizer.hpp"

namespace engine::test::beam_search_test {
namespace {

constexpr std::size_t width = 4;

class BeamSearch : public testing::Test {
 protected:
  squat::ModelOptions options() const { return spec_.options_for(engine_->config()); }

  /// Logits behind the prompt and a beam's tokens, of a sequence of its own that is fed them as beams
  /// are: the prompt, and then one by one.
  Eigen::RowVectorXf recomputed(const Beam &beam) {
    const std::unique_ptr<ModelCache> cache = engine_->make_cache(options());
    SequenceRows rows{cache.get(), cache->add_sequence(), static_cast<squat::Index>(prompt_.size())};
    Eigen::RowVectorXf logits = engine_->forward(prompt_, std::span(&rows, 1)).row(0);
    rows.tokens = 1;
    for (int token : beam.tokens)
      logits = engine_->forward(std::span(&token, 1), std::span(&rows, 1)).row(0);
    return logits;
  }

  std::vector<Beam> search_anew(int length) {
    std::vector<Beam> beams(1);
    for (int step = 0; step < length; ++step) {
      RowMatrix logits;
      for (std::size_t i = 0; i < beams.size(); ++i) {
        const Eigen::RowVectorXf row = recomputed(beams[i]);
        logits.conservativeResize(static_cast<Eigen::Index>(i) + 1, row.cols());
        logits.row(static_cast<Eigen::Index>(i)) = row;
      }
      std::vector<Beam> longer;
      for (const Extension &extension : extend(beams, logits, width)) {
        longer.push_back({beams[extension.parent].tokens, extension.log_probability});
        longer.back().tokens.push_back(extension.token);
      }
      beams = std::move(longer);
    }
    return beams;
  }

  const Gguf file_{small_model()};
  const std::vector<int> prompt_ =
      Tokenizer(file_).encode("some sixty bytes of text that no vocabulary merges, 0123456789");
  const CacheSpec spec_ = parse_cache_spec("exact:g16:w16");
  const std::unique_ptr<Engine> engine_ = make_engine("cpu", file_);
};

TEST_F(BeamSearch, IsRecomputingEachBeamTokenForToken) {
  constexpr int length = 40;  // beyond the pages of the prompt
  const std::vector<Beam> beams = search_beams(*engine_, options(), prompt_, width, length),
                          anew = search_anew(length);
  ASSERT_EQ(beams.size(), width);
  ASSERT_EQ(anew.size(), width);
  for (std::size_t i = 0; i < width; ++i) {
    EXPECT_EQ(beams[i].tokens, anew[i].tokens) << "beam " << i;
    EXPECT_NEAR(beams[i].log_probability, anew[i].log_probability, 1e-3);
  }
}

}  // namespace
}  // namespace engine::test::beam_search_test
