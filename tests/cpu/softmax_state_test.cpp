// Softmax over runs of scores is softmax over all of them.

#include "squat/cpu/softmax_state.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "squat/cpu/kernels/softmax.hpp"

namespace squat::test::softmax_state_test {
namespace {

TEST(SoftmaxState, RunsOfAnyLengthGiveTheSameSoftmax) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 20);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> scores(1 + random() % 300);
    for (float &score : scores) score = normal(random);
    double most = -1e300, total = 0, expected = 0;
    for (float score : scores) most = std::max<double>(most, score);
    for (std::size_t i = 0; i < scores.size(); ++i) total += std::exp(scores[i] - most);
    for (std::size_t i = 0; i < scores.size(); ++i)
      expected += std::exp(scores[i] - most) / total * static_cast<double>(i);

    SoftmaxState state;
    float output = 0;
    for (std::size_t first = 0; first < scores.size();) {
      const std::size_t count = random() % (scores.size() - first + 1);  // runs of no score too
      // Behind scores that do not count, in a row that is longer.
      const std::size_t before = random() % 20, capacity = (before + count + 40) / 16 * 16;
      std::vector<float> row(capacity, 1e9f);
      for (std::size_t i = 0; i < count; ++i) row[before + i] = scores[first + i];
      const auto stride = static_cast<Index>(capacity);
      float factor;
      cpu::exponentiate<1>(&state, {row.data(), stride}, static_cast<Index>(before),
                           static_cast<Index>(count), stride, &factor);
      output *= factor;
      for (std::size_t i = 0; i < capacity; ++i) {
        if (i < before || i >= before + count) {
          EXPECT_EQ(row[i], 0);
        } else {
          output += row[i] * static_cast<float>(first + i - before);
        }
      }
      first += count;
    }
    EXPECT_NEAR(output / state.sum, expected, 1e-4 * std::abs(expected) + 1e-3);
    EXPECT_FLOAT_EQ(state.maximum, static_cast<float>(most));
  }
}

TEST(Exponentiate, RowsSideBySideAreAsOneByOne) {
  constexpr Index first = 3, count = 50, capacity = 64;
  std::vector<float> together(4 * capacity);
  std::mt19937 random(7);
  for (float &score : together) score = std::normal_distribution<float>(0, 9)(random);
  std::vector<float> alone = together;
  SoftmaxState states[4] = {{1, 2}, {}, {40, 1}, {-5, 3}},
               single_states[4] = {{1, 2}, {}, {40, 1}, {-5, 3}};
  float factors[4];
  cpu::exponentiate<4>(states, {together.data(), capacity}, first, count, capacity, factors);
  for (int row = 0; row < 4; ++row) {
    float factor;
    cpu::exponentiate<1>(single_states + row, {alone.data() + row * capacity, capacity}, first, count,
                         capacity, &factor);
    EXPECT_EQ(factors[row], factor);
    EXPECT_EQ(states[row].maximum, single_states[row].maximum);
    EXPECT_FLOAT_EQ(states[row].sum, single_states[row].sum);
  }
  EXPECT_EQ(together, alone);
}

TEST(SoftmaxState, MergedStatesAreThatOfAllScores) {
  SoftmaxState parts, empty;
  float output = 0;
  for (float score : {1.0f, -3.0f, 80.0f, 79.0f, -100.0f}) {
    SoftmaxState one{score, 1};
    const auto [own, others] = parts.merge(one);
    output = output * own + score * others;
    EXPECT_EQ(parts.merge(empty), std::pair(1.0f, 0.0f)) << "who saw nothing changes nothing";
  }
  EXPECT_FLOAT_EQ(parts.sum, 1 + std::exp(-1.0f));
  EXPECT_FLOAT_EQ(parts.maximum, 80);
  EXPECT_NEAR(output / parts.sum, (80 + 79 * std::exp(-1.0f)) / (1 + std::exp(-1.0f)), 1e-4);
}

}  // namespace
}  // namespace squat::test::softmax_state_test
