// Softmax over runs of scores is softmax over all of them.

#include "squat/attention/softmax_state.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace squat::test {
namespace {

TEST(SoftmaxState, RunsOfAnyLengthGiveTheSameSoftmax) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 20);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> scores(1 + random() % 300);
    for (float& score : scores) score = normal(random);
    double most = -1e300, total = 0, expected = 0;
    for (float score : scores) most = std::max<double>(most, score);
    for (std::size_t i = 0; i < scores.size(); ++i) total += std::exp(scores[i] - most);
    for (std::size_t i = 0; i < scores.size(); ++i)
      expected += std::exp(scores[i] - most) / total * static_cast<double>(i);

    SoftmaxState state;
    float output = 0;
    for (std::size_t first = 0; first < scores.size();) {
      const std::size_t count = random() % (scores.size() - first + 1);  // runs of no score too
      output *= state.update(scores.data() + first, static_cast<Index>(count));
      for (std::size_t i = first; i < first + count; ++i) output += scores[i] * static_cast<float>(i);
      first += count;
    }
    EXPECT_NEAR(output / state.sum, expected, 1e-4 * std::abs(expected) + 1e-3);
    EXPECT_FLOAT_EQ(state.maximum, static_cast<float>(most));
  }
}

}  // namespace
}  // namespace squat::test
