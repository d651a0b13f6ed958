// The bits of a layer are shared out with the least error there is: as a search of all ways finds it.

#include "squat/coding/layer_allocation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

namespace squat::test::layer_allocation_test {
namespace {

double total_error(const std::vector<std::vector<Choice>> &items,
                   const std::vector<std::size_t> &chosen) {
  double error = 0;
  for (std::size_t i = 0; i < items.size(); ++i) error += items[i][chosen[i]].error;
  return error;
}

std::size_t total_bytes(const std::vector<std::vector<Choice>> &items,
                        const std::vector<std::size_t> &chosen) {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < items.size(); ++i) bytes += items[i][chosen[i]].bytes;
  return bytes;
}

/// The least error over all ways to choose within a budget; infinite where nothing fits.
double least_error(const std::vector<std::vector<Choice>> &items, std::size_t budget) {
  double least = std::numeric_limits<double>::infinity();
  std::vector<std::size_t> chosen(items.size());
  for (bool more = true; more;) {
    if (total_bytes(items, chosen) <= budget) least = std::min(least, total_error(items, chosen));
    more = false;
    for (std::size_t i = 0; i < items.size() && !more; ++i) {
      more = ++chosen[i] < items[i].size();
      if (!more) chosen[i] = 0;
    }
  }
  return least;
}

TEST(Knapsack, FindsTheLeastErrorAndNeverPassesTheBudget) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::vector<Choice>> items(1 + random() % 4);
    for (auto &choices : items) {
      choices.resize(1 + random() % 5);
      for (Choice &choice : choices) {
        choice = {64 * static_cast<std::size_t>(random() % 9), static_cast<double>(random() % 1000)};
      }
    }
    constexpr std::size_t most = 1500;
    const Knapsack knapsack(items, most);
    const std::size_t budget = random() % most;
    const double expected = least_error(items, budget);
    const std::vector<std::size_t> chosen = knapsack.choose(budget);
    EXPECT_EQ(knapsack.error(budget), expected) << "round " << round;
    if (std::isinf(expected)) {
      EXPECT_TRUE(chosen.empty());
      continue;
    }
    ASSERT_EQ(chosen.size(), items.size());
    EXPECT_LE(total_bytes(items, chosen), budget);
    EXPECT_EQ(total_error(items, chosen), expected) << "round " << round;
  }
}

std::vector<double> falling(Index d, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<double> variance(static_cast<std::size_t>(d));
  for (double &x : variance) x = std::exp(-static_cast<double>(random() % 1000) / 80);
  std::sort(variance.rbegin(), variance.rend());
  return variance;
}

double error_of(const BitAllocation &allocation, const std::vector<double> &variance) {
  double error = 0;
  std::vector<int> widths(variance.size(), 0);
  for (const CodeRun &run : allocation.runs()) {
    std::fill_n(widths.begin() + run.first, run.channels, run.bits);
  }
  for (std::size_t i = 0; i < variance.size(); ++i) error += affine_errors(widths[i]) * variance[i];
  return error;
}

/// Calls visit(allocation) for every one whose widths fall, from unit `first` on.
template <class Visit>
void for_each_allocation(Index d, Index first, int width, const BitAllocation &before, Visit &&visit) {
  visit(before);
  const Index unit = allocation_unit(d);
  for (int bits : {8, 4, 3, 2, 1}) {
    if (bits >= width) continue;
    for (Index count = 1; first + count <= d / unit; ++count) {
      BitAllocation next = before;
      next.add(bits, count * unit);
      for_each_allocation(d, first + count, bits, next, visit);
    }
  }
}

TEST(KeyChoices, AreTheBestAllocationsOfTheirBytes) {
  constexpr Index tokens = 32;
  for (Index d : {32, 48, 64, 128}) {
    const std::vector<double> variance = falling(d, static_cast<unsigned>(d));
    const KeyChoices keys = key_choices(variance, affine_errors, tokens, code_bytes(8, tokens, d));
    ASSERT_EQ(keys.choices.size(), keys.allocations.size());
    ASSERT_EQ(keys.choices.front().bytes, 0u);
    EXPECT_EQ(keys.choices.back().bytes, code_bytes(8, tokens, d));
    for (std::size_t i = 0; i < keys.choices.size(); ++i) {
      EXPECT_LE(keys.allocations[i].bytes(tokens), keys.choices[i].bytes);
      EXPECT_NEAR(keys.choices[i].error, error_of(keys.allocations[i], variance),
                  1e-9 * keys.choices[0].error);
      if (i == 0) continue;
      EXPECT_GT(keys.choices[i].bytes, keys.choices[i - 1].bytes);
      EXPECT_LT(keys.choices[i].error, keys.choices[i - 1].error);
    }
    Index seen = 0;
    for_each_allocation(d, 0, 9, {}, [&](const BitAllocation &allocation) {
      const std::size_t bytes = allocation.bytes(tokens);
      const auto dearer = std::find_if(keys.choices.rbegin(), keys.choices.rend(),
                                       [&](const Choice &choice) { return choice.bytes <= bytes; });
      EXPECT_LE(dearer->error, error_of(allocation, variance) * (1 + 1e-9));
      ++seen;
    });
    EXPECT_GT(seen, 100);
  }
}

TEST(KeyChoices, TakeNoMoreBytesThanTheyMay) {
  const std::vector<double> variance = falling(64, 3);
  const KeyChoices all = key_choices(variance, affine_errors, 128, code_bytes(8, 128, 64)),
                   some = key_choices(variance, affine_errors, 128, code_bytes(4, 128, 64));
  ASSERT_LT(some.choices.size(), all.choices.size());
  EXPECT_LE(some.choices.back().bytes, code_bytes(4, 128, 64));
  for (std::size_t i = 0; i < some.choices.size(); ++i) {
    EXPECT_EQ(some.choices[i].bytes, all.choices[i].bytes);
    EXPECT_EQ(some.choices[i].error, all.choices[i].error);
  }
  EXPECT_GT(all.choices[some.choices.size()].bytes, code_bytes(4, 128, 64));
}

TEST(KeyChoices, OfKeysThatDoNotVaryIsNoCodeAtAll) {
  const KeyChoices keys =
      key_choices(std::vector<double>(64, 0.0), affine_errors, 128, code_bytes(8, 128, 64));
  ASSERT_EQ(keys.choices.size(), 1u);
  EXPECT_EQ(keys.allocations[0].coded_channels(), 0);
}

TEST(ValueChoices, ErrLessTheWiderTheyAre) {
  const std::vector<Choice> values = value_choices(3, symmetric_errors, 64, 128);
  ASSERT_EQ(values.size(), 4u);
  for (std::size_t i = 1; i < values.size(); ++i) {
    EXPECT_EQ(values[i].bytes, (i + 1) * values[0].bytes);
    EXPECT_LT(values[i].error, values[i - 1].error / 3);
  }
}

}  // namespace
}  // namespace squat::test::layer_allocation_test
