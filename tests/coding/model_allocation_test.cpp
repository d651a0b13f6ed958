// The bytes of pages are shared out among layers with the least relative error there is: as a search of
// all ways finds it.

#include "squat/coding/model_allocation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace squat::test::model_allocation_test {
namespace {

constexpr std::size_t unit = 64, equal = 16 * unit, step = equal / 8;

/// A layer of one item, whose error falls by `factor` with every unit.
LayerChoices falling_layer(double error, double factor, double output_square) {
  LayerChoices layer;
  layer.output_square = output_square;
  std::vector<Choice> &choices = layer.items.emplace_back();
  for (std::size_t bytes = 0; bytes <= 8 * equal; bytes += unit, error *= factor)
    choices.push_back({bytes, error});
  return layer;
}

double error_of(const LayerChoices &layer, std::size_t bytes) {
  return layer.relative(layer.items.front()[bytes / unit].error);
}

TEST(LayerSizes, MakeTheErrorLeastInTheBytesOfEqualSizes) {
  std::mt19937 random(1);
  const auto uniform = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  for (int round = 0; round < 100; ++round) {
    std::vector<LayerChoices> layers;
    for (int layer = 0; layer < 3; ++layer)
      layers.push_back(falling_layer(uniform(0, 1), uniform(.7, .99), uniform(.5, 50)));
    const std::vector<std::size_t> sizes = layer_sizes(layers, equal);
    ASSERT_EQ(sizes.size(), layers.size());
    double found = 0, least = std::numeric_limits<double>::infinity();
    for (std::size_t layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(sizes[layer] % step, 0u);
      EXPECT_GE(sizes[layer], 3 * step);
      found += error_of(layers[layer], sizes[layer]);
    }
    EXPECT_LE(std::accumulate(sizes.begin(), sizes.end(), std::size_t{0}), 3 * equal);
    for (std::size_t a = 3 * step; a <= 18 * step; a += step) {
      for (std::size_t b = 3 * step; a + b <= 21 * step; b += step) {
        least = std::min(least, error_of(layers[0], a) + error_of(layers[1], b) +
                                    error_of(layers[2], 3 * equal - a - b));
      }
    }
    EXPECT_NEAR(found, least, 1e-12) << "round " << round;
  }
}

TEST(LayerSizes, CountErrorsBesideTheOutputs) {
  // The same layer twice, in other units.
  const std::vector<LayerChoices> layers = {falling_layer(1, .9, 10), falling_layer(1e6, .9, 1e7)};
  EXPECT_EQ(layer_sizes(layers, equal), (std::vector<std::size_t>{equal, equal}));
}

TEST(LayerSizes, AreThreeEighthsAtLeast) {
  const std::vector<LayerChoices> layers = {falling_layer(1, .8, 10), falling_layer(1e-9, .8, 10)};
  EXPECT_EQ(layer_sizes(layers, equal), (std::vector<std::size_t>{13 * step, 3 * step}));
}

TEST(LayerSizes, MoveOnlyWhatThereIsToChooseFrom) {
  std::vector<LayerChoices> layers = {falling_layer(1, .8, 10), falling_layer(1e-9, .8, 10)};
  for (LayerChoices &layer : layers) layer.items.push_back({{8 * equal, 0}});
  EXPECT_EQ(layer_sizes(layers, 9 * equal)[1], 8 * equal + 3 * step);
}

}  // namespace
}  // namespace squat::test::model_allocation_test
