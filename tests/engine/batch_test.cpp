// Sequences that share a call do not see each other: each gets the logits it gets alone.

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "tokenizer.hpp"

namespace engine::test::batch_test {
namespace {

class Batches : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<ModelCache> make_cache() {
    return engine_->make_cache(spec_.options_for(engine_->config()));
  }

  std::vector<int> text(const std::string &lead) const {
    std::string bytes = lead;
    while (bytes.size() < 200) bytes += lead + "0123456789";
    return tokenizer_.encode(bytes);
  }

  /// Logits behind `tokens`, the next of a sequence.
  Eigen::RowVectorXf feed(ModelCache &cache, squat::SequenceId sequence, std::span<const int> tokens) {
    const SequenceRows rows{&cache, sequence, static_cast<squat::Index>(tokens.size())};
    return engine_->forward(tokens, std::span(&rows, 1)).row(0);
  }

  const Gguf file_{small_model()};
  const Tokenizer tokenizer_{file_};
  const CacheSpec spec_ = parse_cache_spec(GetParam());
  const std::unique_ptr<Engine> engine_ = make_engine("cpu", file_);
};

TEST_P(Batches, SequencesGetTheLogitsTheyGetAlone) {
  const std::vector<std::vector<int>> texts = {text("one"), text("two "), text("three")};
  // Pieces of each call: prompts, steps, and a prompt in chunks beside the steps of others.
  const std::vector<std::vector<int>> calls = {
      {40, 40, 0}, {1, 1, 30}, {1, 1, 30}, {1, 0, 7}, {1, 1, 1}};
  for (const bool one_cache : {true, false}) {
    std::vector<std::unique_ptr<ModelCache>> caches, alone;
    std::vector<SequenceRows> sequences, sequences_alone;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (i == 0 || !one_cache) caches.push_back(make_cache());
      sequences.push_back({caches.back().get(), caches.back()->add_sequence()});
      alone.push_back(make_cache());
      sequences_alone.push_back({alone.back().get(), alone.back()->add_sequence()});
    }
    std::vector<std::size_t> fed(texts.size(), 0);
    for (const std::vector<int> &pieces : calls) {
      std::vector<int> tokens;
      std::vector<SequenceRows> rows;
      std::vector<Eigen::RowVectorXf> expected;
      for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto count = static_cast<std::size_t>(pieces[i]);
        if (count == 0) continue;
        const auto next = std::span(texts[i]).subspan(fed[i], count);
        fed[i] += count;
        tokens.insert(tokens.end(), next.begin(), next.end());
        rows.push_back({sequences[i].cache, sequences[i].sequence, pieces[i]});
        expected.push_back(feed(*sequences_alone[i].cache, sequences_alone[i].sequence, next));
      }
      const RowMatrix logits = engine_->forward(tokens, rows);
      ASSERT_EQ(logits.rows(), static_cast<Eigen::Index>(expected.size()));
      for (std::size_t i = 0; i < expected.size(); ++i)
        EXPECT_EQ(logits.row(static_cast<Eigen::Index>(i)), expected[i]) << i;
    }
  }
}

TEST_P(Batches, ForkedCutAndLoadedSequencesGoOnAlike) {
  const std::vector<int> tokens = text("the inn ");
  const std::span all(tokens);
  const std::unique_ptr<ModelCache> cache = make_cache();
  const squat::SequenceId whole = cache->add_sequence();
  feed(*cache, whole, all.first(90));
  const squat::SequenceId fork = cache->fork(whole, 70);
  std::stringstream file;
  cache->save(whole, file);
  const squat::SequenceId loaded = cache->load(file);
  EXPECT_EQ(cache->length(loaded), 90);
  const Eigen::RowVectorXf expected = feed(*cache, whole, all.subspan(90, 1));
  EXPECT_EQ(feed(*cache, loaded, all.subspan(90, 1)), expected);
  cache->truncate(loaded, 70);
  EXPECT_EQ(cache->length(fork), 70);
  EXPECT_EQ(feed(*cache, fork, all.subspan(70, 5)), feed(*cache, loaded, all.subspan(70, 5)));
}

TEST_P(Batches, TokensAreThoseOfTheSequences) {
  const std::unique_ptr<ModelCache> cache = make_cache();
  const squat::SequenceId one = cache->add_sequence(), other = cache->add_sequence();
  const std::vector<int> tokens = {1, 2, 3};
  for (const std::vector<squat::Index> &counts :
       {std::vector<squat::Index>{1, 1}, {2, 2}, {3, 0}, {-1, 4}, {4, 1}}) {
    const std::vector<SequenceRows> rows = {{cache.get(), one, counts[0]},
                                            {cache.get(), other, counts[1]}};
    EXPECT_THROW(engine_->forward(tokens, rows), std::invalid_argument);
  }
  EXPECT_EQ(cache->length(one), 0);
}

INSTANTIATE_TEST_SUITE_P(Codings, Batches, testing::Values("exact", "plain:k2v2:g16:w16"),
                         [](const auto &coding) { return coding.index == 0 ? "Exact" : "TwoBits"; });

}  // namespace
}  // namespace engine::test::batch_test
