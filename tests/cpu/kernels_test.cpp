// Every kernel of the instruction set this is compiled for against double precision: random inputs, odd
// sizes, every number of rows.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "squat/cpu/buffer.hpp"
#include "squat/cpu/kernels/bend_scores.hpp"
#include "squat/cpu/kernels/byte_matrix.hpp"
#include "squat/cpu/kernels/dot_codes.hpp"
#include "squat/cpu/kernels/exact_attention.hpp"
#include "squat/cpu/kernels/float_product.hpp"
#include "squat/cpu/kernels/integer_matrix.hpp"
#include "squat/cpu/kernels/round_weights.hpp"
#include "squat/cpu/kernels/softmax.hpp"
#include "squat/cpu/kernels/vector.hpp"
#include "squat/cpu/kernels/weighted_codes.hpp"

namespace squat::cpu::test::kernels_test {
namespace {

constexpr std::size_t size(Index count) { return static_cast<std::size_t>(count); }

/// Numbers, and memory of their own for what runs over the end of them to be found.
template <class Scalar = float>
std::vector<Scalar> normal(Index count, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<Scalar> x(size(count));
  for (Scalar &element : x) element = static_cast<Scalar>(distribution(random));
  return x;
}

template <class Scalar>
RowView<const Scalar> rows(const std::vector<Scalar> &x, Index stride) {
  return {x.data(), stride};
}
template <class Scalar>
RowView<Scalar> rows(std::vector<Scalar> &x, Index stride) {
  return {x.data(), stride};
}

struct Codes {
  Codes(int width, Index lane_count, Index inner_count, unsigned seed)
      : bits(width),
        lanes_of(lane_count),
        inner(inner_count),
        codes(size(lane_count * inner_count)),
        packed(code_bytes(width, lane_count, inner_count)) {
    std::mt19937 random(seed);
    for (std::uint8_t &code : codes) code = static_cast<std::uint8_t>(random() % (1u << bits));
    pack_codes(bits, codes.data(), lanes_of, lanes_of, inner, packed.data());
  }
  PackedCodes view() const { return {bits, packed.data(), lanes_of, inner}; }
  int at(Index lane, Index i) const { return codes[size(lane + i * lanes_of)]; }

  int bits;
  Index lanes_of, inner;
  std::vector<std::uint8_t> codes, packed;
};

constexpr CodeKernels kernels = code_kernels<2, 3, 4, 8>();

/// Codes of that width, weights from -`most` or 0 to `most`.
template <class Weight>
void expect_exact_sums(int bits, int most) {
  std::mt19937 random(1);
  for (Index inner : {4, 8, 16, 20, 24, 48, 64, 128, 256, 1024}) {
    for (Index row_count : {1, 2, 3, 4, 5, 7, 8, 11}) {
      const Codes codes(bits, 16 * (1 + static_cast<Index>(random() % 9)), inner,
                        static_cast<unsigned>(random()));
      // The largest weights there are, of one sign in the first row.
      const int least = std::is_signed_v<Weight> ? -most : 0;
      std::vector<Weight> weights(size(row_count * inner));
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const int weight = least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1));
        weights[i] = static_cast<Weight>(i < size(inner) ? most : weight);
      }
      std::vector<float> multipliers(size(row_count), 1.0f);
      const Index first = codes.lanes_of > 32 ? 16 : 0, count = codes.lanes_of - first;
      std::vector<float> sums(size(row_count * count), 1.0f);
      const auto planes = [] {
        if constexpr (std::is_signed_v<Weight>)
          return kernels.signed_weights;
        else
          return kernels.unsigned_weights;
      }();
      accumulate_codes(planes, codes.view(), first, count, row_count,
                       rows(std::as_const(weights), inner), {multipliers.data(), nullptr},
                       {rows(sums, count), row_count});
      for (Index row = 0; row < row_count; ++row) {
        for (Index lane = 0; lane < count; ++lane) {
          double expected = 1;
          for (Index i = 0; i < inner; ++i) {
            expected += weights[size(row * inner + i)] * codes.at(first + lane, i);
          }
          // Sums beyond 2^24 are rounded when they become floats, once a plane.
          ASSERT_NEAR(static_cast<double>(sums[size(row * count + lane)]), expected,
                      2e-7 * std::abs(expected))
              << bits << " bits, inner " << inner << ", " << row_count << " rows";
        }
      }
    }
  }
}

TEST(DotCodes, IsTheSumOfIntegerProductsToTheLastBit) {
  for (int bits : {1, 2, 3, 4, 8}) expect_exact_sums<std::int8_t>(bits, most_weight(bits));
}

TEST(DotCodes, TakesWeightsWithoutASign) {
  for (int bits : {1, 2, 3, 4}) expect_exact_sums<std::uint8_t>(bits, most_unsigned_weight);
}

TEST(WeightedCodes, ErrByAFractionOfTheLargestWeight) {
  for (int bits : {2, 3, 4, 8}) {
    for (Index row_count : {1, 3, 6}) {
      constexpr Index inner = 128, lane_count = 48;
      const Codes codes(bits, lane_count, inner, 3);
      const Buffer<std::byte> memory(CodeWeights::scratch_bytes(row_count, inner));
      Scratch scratch(memory.data(), memory.size());
      CodeWeights weights(kernels, row_count, inner, scratch);
      const std::vector<float> exact = normal(row_count * inner, 5, 1e-3f);
      std::copy(exact.begin(), exact.end(), weights.weights.data);
      std::fill_n(weights.constants, row_count, 0.0f);
      std::vector<float> sums(size(row_count * lane_count), 0.0f);
      weights.round<WeightSign::any>(0, 0, bits, inner);
      weights.accumulate<WeightSign::any>(0, 0, codes.view(), 0, lane_count, rows(sums, lane_count));
      for (Index row = 0; row < row_count; ++row) {
        double largest = 0;
        for (Index i = 0; i < inner; ++i) {
          largest = std::max(largest, std::abs(static_cast<double>(exact[size(row * inner + i)])));
        }
        for (Index lane = 0; lane < lane_count; ++lane) {
          double expected = 0;
          for (Index i = 0; i < inner; ++i) {
            expected += static_cast<double>(exact[size(row * inner + i)]) * codes.at(lane, i);
          }
          // Rounding errors of half a step at most, times codes' distance from their middle; five of
          // their standard deviations.
          const double step = largest / most_weight(bits) / (weight_terms(bits) == 2 ? 128 : 1);
          const double deviation =
              step / std::sqrt(12.) * std::sqrt(inner) * (1 << bits) / std::sqrt(12.);
          ASSERT_NEAR(static_cast<double>(sums[size(row * lane_count + lane)]), expected,
                      5 * deviation + 1e-6 * largest * (1 << bits));
        }
      }
    }
  }
}

TEST(PowerOfTwo, ErrsByThreeTenMillionthsAtMost) {
  std::vector<float> power(size(float_lanes));
  for (int step = 0; step < 125'000; ++step) {
    const float x = -0.001f * static_cast<float>(step);
    store_floats(power.data(), power_of_two(broadcast(x)));
    const double expected = std::exp2(static_cast<double>(x));
    for (float lane : power) ASSERT_NEAR(static_cast<double>(lane), expected, 3e-7 * expected) << x;
  }
}

TEST(PowerOfTwo, IsNextToNothingFarBelow) {
  std::vector<float> power(size(float_lanes));
  for (float x : {-125.5f, -126.0f, -150.0f, -1e6f, std::numeric_limits<float>::lowest() / 2}) {
    store_floats(power.data(), power_of_two(broadcast(x)));
    for (float lane : power) EXPECT_TRUE(lane >= 0 && lane <= 1.000001f * std::exp2(-125.0f)) << x;
  }
}

TEST(BendScores, CapsAndLowersThemAsDoublesDo) {
  constexpr float slope = .37f;
  constexpr Index distance = 70'001;
  for (const float cap : {0.0f, 1.0f, 50.0f}) {
    for (const bool lowers : {false, true}) {
      for (const Index count : {1, 3, 16, 37, 130}) {
        std::vector<float> scores = normal(count, 1, 40);
        if (count > 3) scores[0] = 1e9f, scores[1] = -1e9f, scores[2] = 0;
        std::vector<float> bent = scores;
        bend_scores({.soft_cap = cap, .slopes = lowers ? &slope : nullptr}, slope, distance, bent.data(),
                    count);
        for (Index i = 0; i < count; ++i) {
          const double score = scores[size(i)],
                       capped = cap > 0 ? cap * std::tanh(score / static_cast<double>(cap)) : score,
                       lower = lowers ? slope * static_cast<double>(distance - i) : 0;
          const double tolerance = 5e-7 * static_cast<double>(cap) + 2e-7 * (std::abs(capped) + lower);
          EXPECT_NEAR(bent[size(i)], capped - lower, tolerance) << cap << " " << count << " " << i;
        }
      }
    }
  }
}

TEST(RoundWeights, TakesNothingAndTheLeastNumbersForZero) {
  std::vector<float> x(32, 0.0f);
  x[17] = 1e-38f;
  std::vector<std::int8_t> rounded(32, 1);
  std::vector<float> multipliers(2), rests(2);
  round_weights(rows(x, 16), 2, 16, 127, rows(rounded, 16), nullptr, multipliers.data(), rests.data());
  EXPECT_EQ(rounded, std::vector<std::int8_t>(32, 0));
  EXPECT_EQ(multipliers, std::vector<float>(2, 0.0f));
}

Eigen::MatrixXd random_matrix(Index outputs, Index inputs, unsigned seed) {
  const std::vector<float> x = normal(outputs * inputs, seed);
  return Eigen::Map<const RowMatrix>(x.data(), outputs, inputs).cast<double>();
}

TEST(IntegerMatrix, ErrsByThreeThousandthsAtMostWhateverTheScale) {
  for (auto [outputs, inputs] :
       {std::pair<Index, Index>{1, 16}, {17, 48}, {128, 128}, {176, 128}, {37, 256}}) {
    for (Index row_count : {1, 2, 3, 4, 5, 8, 13}) {
      Eigen::MatrixXd m = random_matrix(outputs, inputs, 7);
      m.row(0) *= 1e6;  // every output has a scale of its own
      m.col(1).setZero();
      const IntegerMatrix matrix(m);
      std::vector<float> x = normal(row_count * inputs, 9, 1e-4f);
      std::vector<std::int16_t> integers(size(row_count * inputs));
      std::vector<float> steps(size(row_count));
      std::vector<float> result(size(row_count * matrix.outputs()));
      round_rows(rows(x, inputs), row_count, inputs, rows(integers, inputs), steps.data());
      matrix.multiply({rows(integers, inputs), steps.data()}, row_count, 0, matrix.outputs(),
                      rows(result, matrix.outputs()));
      for (Index row = 0; row < row_count; ++row) {
        const Eigen::VectorXd input =
            Eigen::Map<const Eigen::VectorXf>(x.data() + row * inputs, inputs).cast<double>();
        for (Index o = 0; o < outputs; ++o) {
          const double usual = m.row(o).norm() * input.norm() / std::sqrt(static_cast<double>(inputs));
          ASSERT_NEAR(static_cast<double>(result[size(row * matrix.outputs() + o)]), m.row(o).dot(input),
                      3e-3 * usual * std::sqrt(static_cast<double>(inputs) / 128) + 1e-30)
              << outputs << " x " << inputs << ", " << row_count << " rows";
        }
      }
    }
  }
}

TEST(IntegerMatrix, LargestSumsDoNotOverflow) {
  constexpr Index inputs = 512;
  const IntegerMatrix matrix(Eigen::MatrixXd::Ones(16, inputs));
  const std::vector<std::int16_t> x(inputs, 32767);
  const float step = 1;
  std::vector<float> result(16);
  matrix.multiply({{const_cast<std::int16_t *>(x.data()), inputs}, const_cast<float *>(&step)}, 1, 0, 16,
                  rows(result, 16));
  for (float sum : result) EXPECT_NEAR(sum, 32767.0f * inputs, 5e-3f * 32767 * inputs);
}

TEST(ByteMatrix, ErrsByThreePerCentOfTheUsualResult) {
  for (Index d : {16, 48, 64, 80, 128, 256}) {
    for (Index row_count : {1, 3, 4, 9}) {
      Eigen::MatrixXd m = random_matrix(d, d, 11);
      Eigen::ArrayXd widths = Eigen::ArrayXd::LinSpaced(d, .01, 5);  // as uneven as queries are
      const ByteMatrix matrix(m * widths.inverse().matrix().asDiagonal(),
                              std::vector<double>(widths.begin(), widths.end()));
      std::vector<float> x = normal(row_count * d, 13);
      std::vector<float> scaled = x;
      for (Index i = 0; i < row_count * d; ++i) scaled[size(i)] *= static_cast<float>(widths[i % d]);
      std::vector<float> result(size(row_count * d));
      const Buffer<std::byte> memory(ByteMatrix::scratch_bytes(row_count, d));
      matrix.multiply(rows(std::as_const(scaled), d), row_count, rows(result, d),
                      Scratch(memory.data(), memory.size()));
      double squares = 0, norm = 0;
      for (Index row = 0; row < row_count; ++row) {
        const Eigen::VectorXd input =
            Eigen::Map<const Eigen::VectorXf>(x.data() + row * d, d).cast<double>();
        const Eigen::VectorXd expected = m * input;
        squares +=
            (Eigen::Map<const Eigen::VectorXf>(result.data() + row * d, d).cast<double>() - expected)
                .squaredNorm();
        norm += expected.squaredNorm();
      }
      EXPECT_LT(std::sqrt(squares / norm), .03) << d << ", " << row_count << " rows";
    }
  }
}

template <class Scalar>
class ExactRows : public testing::Test {};
using Elements = testing::Types<float, half, bfloat16>;
TYPED_TEST_SUITE(ExactRows, Elements);

TYPED_TEST(ExactRows, ScoreAndSumAsInDoublePrecision) {
  for (Index d : {16, 32, 48, 80, 128, 144, 256}) {
    for (Index tokens : {1, 2, 3, 5, 31, 33, 128}) {
      for (Index row_count : {1, 2, 3, 4, 6, 8, 13}) {
        const Index stride = d + 16, padded = tokens + row_padding;
        const std::vector<TypeParam> keys = normal<TypeParam>(tokens * stride, 17);
        const std::vector<float> queries = normal(row_count * d, 19),
                                 weights = normal(row_count * tokens, 23);
        const auto expect = [&](const std::vector<float> &scores, const std::vector<float> &sums) {
          const auto key = [&](Index token, Index i) {
            return static_cast<double>(static_cast<float>(keys[size(token * stride + i)]));
          };
          for (Index row = 0; row < row_count; ++row) {
            for (Index token = 0; token < tokens; ++token) {
              double expected = 0;
              for (Index i = 0; i < d; ++i)
                expected += static_cast<double>(queries[size(row * d + i)]) * key(token, i);
              ASSERT_NEAR(static_cast<double>(scores[size(row * padded + token)]), expected, 1e-4);
            }
            for (Index i = 0; i < d; ++i) {
              double expected = 2;
              for (Index token = 0; token < tokens; ++token)
                expected += static_cast<double>(weights[size(row * tokens + token)]) * key(token, i);
              ASSERT_NEAR(static_cast<double>(sums[size(row * d + i)]), expected, 1e-4);
            }
          }
        };
        std::vector<float> scores(size(row_count * padded)), sums(size(row_count * d), 2.0f);
        score_rows(rows(queries, d), row_count, d, rows(keys, stride), tokens, rows(scores, padded));
        sum_rows(rows(weights, tokens), row_count, rows(keys, stride), tokens, d, rows(sums, d));
        expect(scores, sums);

        // The same in matrix products.
        std::vector<float> columns(size(d * padded)), values(size(tokens * d));
        for (Index token = 0; token < tokens; ++token)
          convert_row(keys.data() + token * stride, d, values.data() + token * d);
        std::fill(scores.begin(), scores.end(), 0.0f);
        std::fill(sums.begin(), sums.end(), 2.0f);
        transpose_rows(rows(keys, stride), tokens, d, rows(columns, padded));
        multiply_rows<false>(rows(queries, d), row_count, rows(std::as_const(columns), padded), d,
                             tokens, rows(scores, padded));
        multiply_rows<true>(rows(weights, tokens), row_count, rows(std::as_const(values), d), tokens, d,
                            rows(sums, d));
        expect(scores, sums);
      }
    }
  }
}

}  // namespace
}  // namespace squat::cpu::test::kernels_test
