// Symmetric values of rows that are not like noise: alike from token to token, or from channel to
// channel.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "reference/reference_attention.hpp"
#include "reference/sanitized.hpp"
#include "squat/coding/hadamard.hpp"
#include "squat/squat.hpp"

namespace squat::test::values_test {
namespace {

/// A number of a row; channel -1: what all of its channels share.
using Draw = std::function<float(Index channel, std::mt19937 &)>;

float normal(std::mt19937 &generator) { return std::normal_distribution<float>()(generator); }

/// The distance of the packed values from those given, a channel's root mean square.
template <int Bits>
double error_of(int head_dim, Coding coding, const Draw &draw, Index first_drawn = 0) {
  Options options{.layers = 1, .query_heads = 2, .kv_heads = 2, .head_dim = head_dim};
  options.coding = coding;
  options.values = ValueCoding::symmetric;
  KVCache<float, Bits> cache(options);
  const SequenceId sequence = cache.add_sequence();
  constexpr Index tokens = 708;
  Inputs<> in(options, tokens, 5);
  std::mt19937 generator(7);
  for (Index token = first_drawn; token < tokens; ++token) {
    for (Index head = 0; head < 2; ++head) {
      float *row = in.v.view().row(token, head);
      const float shared = draw(-1, generator);
      for (Index i = 0; i < head_dim; ++i) row[i] = shared + draw(i, generator);
    }
  }
  cache.append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
  const Contents kept = contents(cache, sequence);
  double sum = 0;
  Index count = 0;
  for (Index token = std::max<Index>(4, first_drawn); token < 4 + 4 * 128; ++token) {
    for (Index head = 0; head < 2; ++head) {
      for (Index i = 0; i < head_dim; ++i, ++count) {
        sum += std::pow(
            static_cast<double>(kept.v.view().row(token, head)[i] - in.v.view().row(token, head)[i]), 2);
      }
    }
  }
  return std::sqrt(sum / static_cast<double>(count));
}

double error_of(int bits, int head_dim, Coding coding, const Draw &draw, Index first_drawn = 0) {
  switch (bits) {
    case 2:
      return error_of<2>(head_dim, coding, draw, first_drawn);
    case 3:
      return error_of<3>(head_dim, coding, draw, first_drawn);
    case 4:
      return error_of<4>(head_dim, coding, draw, first_drawn);
    default:
      return error_of<8>(head_dim, coding, draw, first_drawn);
  }
}

const Draw noise = [](Index channel, std::mt19937 &generator) {
  return channel < 0 ? 0.0f : normal(generator);
};

class Values : public testing::TestWithParam<std::tuple<int, int>> {
 protected:
  int bits() const { return std::get<0>(GetParam()); }
  int head_dim() const { return std::get<1>(GetParam()); }
};
/// Powers of two, and one that is none.
const std::vector<int> head_dims = sanitized ? std::vector{64, 96} : std::vector{64, 96, 128, 256};
INSTANTIATE_TEST_SUITE_P(BitsAndHeadDims, Values,
                         testing::Combine(testing::Values(2, 3, 4, 8), testing::ValuesIn(head_dims)),
                         [](const auto &named) {
                           return "k" + std::to_string(std::get<0>(named.param)) + "d" +
                                  std::to_string(std::get<1>(named.param));
                         });

TEST_P(Values, AboutACommonMeanErrAsTheirDeviationsDo) {
  const double of_noise = error_of(bits(), head_dim(), Coding::subspace, noise);
  const auto error = [&](const Draw &draw) {
    return error_of(bits(), head_dim(), Coding::subspace, draw);
  };
  const auto shifted = [](float mean) {
    return [mean](Index channel, std::mt19937 &generator) {
      return channel < 0 ? mean : normal(generator);
    };
  };
  // Half a step of the tail: of 127 to the largest magnitude, see hadamard.hpp.
  EXPECT_LT(error([](Index channel, std::mt19937 &) { return channel < 0 ? 1.0f : 0.0f; }), .006);
  EXPECT_LT(error(shifted(.5f)), 1.2 * of_noise);
  EXPECT_LT(error(shifted(2)), 1.05 * of_noise);
  EXPECT_LT(error([](Index channel, std::mt19937 &generator) {
              return channel < 0 ? 5 : std::uniform_real_distribution<float>()(generator);
            }),
            1.2 * of_noise / std::sqrt(12.0));
  EXPECT_LT(error([](Index channel, std::mt19937 &generator) {
              return channel < 0 ? 0 : static_cast<float>(channel % 7) - 3 + normal(generator);
            }),
            1.05 * of_noise);
}

TEST_P(Values, OfOneChannelOrOneNumberErrNoMoreThanNoise) {
  const double of_noise = error_of(bits(), head_dim(), Coding::subspace, noise);
  const double blocks = std::sqrt(head_dim() / static_cast<double>(hadamard_block(head_dim())));
  for (const Coding coding : {Coding::plain, Coding::subspace}) {
    EXPECT_LT(error_of(bits(), head_dim(), coding,
                       [](Index channel, std::mt19937 &generator) {
                         return channel == 3 ? normal(generator) : 0.0f;
                       }),
              1.05 * of_noise * blocks / std::sqrt(head_dim()));
    // A token's number is its own: no mean helps.
    EXPECT_LT(error_of(bits(), head_dim(), coding,
                       [](Index channel, std::mt19937 &generator) {
                         return channel < 0 ? normal(generator) : 0.0f;
                       }),
              1.05 * of_noise);
  }
}

TEST_P(Values, ErrAsTheirDistanceFromTheMeanThatWasLearnt) {
  const double of_noise = error_of(bits(), head_dim(), Coding::subspace, noise, 260);
  // The mean of the first 512 tokens is 10: that of the last 252 is 20.
  EXPECT_LT(
      error_of(
          bits(), head_dim(), Coding::subspace,
          [](Index channel, std::mt19937 &generator) { return channel < 0 ? 20.0f : normal(generator); },
          260),
      1.05 * std::sqrt(101.0) * of_noise);
}

}  // namespace
}  // namespace squat::test::values_test
