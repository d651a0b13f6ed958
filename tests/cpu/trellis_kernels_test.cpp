// The kernels of trellis codes of the instruction set this is compiled for, against levels decoded one
// element at a time: random codes, every width, number of rows and of lanes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <type_traits>
#include <vector>

#include "reference/trellis_oracle.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/kernels/dot_trellis.hpp"
#include "squat/cpu/kernels/unpack_page.hpp"
#include "squat/cpu/kernels/weighted_codes.hpp"

namespace squat::cpu::test::trellis_kernels_test {
namespace {

constexpr std::size_t size(Index count) { return static_cast<std::size_t>(count); }

/// Random codes, in memory of exactly their size, for what reads beyond it to be found.
struct TrellisCodes {
  TrellisCodes(int width, Index row_count, Index inner_count, unsigned seed)
      : bits(width),
        rows(row_count),
        inner(inner_count),
        packed(size(bits == 3 ? Index(plane_bytes(2, rows, inner)) + rows * inner / 8
                              : rows * inner * bits / 8)) {
    std::mt19937 random(seed);
    std::vector<std::uint8_t> codes(size(rows * inner));
    for (std::uint8_t &code : codes) code = static_cast<std::uint8_t>(random() % (1u << bits));
    pack_trellis(bits, codes.data(), rows, rows, inner, packed.data());
    for (Index i = 0; i < inner; ++i) {
      const auto first = codes.begin() + i * rows;
      levels.push_back(squat::test::decode_row({first, first + rows}, bits));
    }
  }
  int level(Index row, Index i) const { return levels[size(i)][size(row)]; }

  int bits;
  Index rows, inner;
  std::vector<std::uint8_t> packed;
  std::vector<std::vector<int>> levels;  // [inner][rows]
};

template <class Weight>
constexpr DotTrellis<Weight> every_width() {
  DotTrellis<Weight> kernels;
  kernels.template add<1, 2, 3>();
  return kernels;
}

/// Weights from -`most` or 0 to `most`.
template <class Weight>
void expect_exact_sums(int bits, int most) {
  std::mt19937 random(1);
  for (Index inner : {8, 16, 24, 64, 128, 512}) {
    for (Index rows : {32, 64, 96, 128, 160, 256}) {
      const TrellisCodes codes(bits, rows, inner, static_cast<unsigned>(random()));
      const Index row_count = 1 + static_cast<Index>(random() % 9);
      const int least = std::is_signed_v<Weight> ? -most : 0;
      std::vector<Weight> weights(size(row_count * inner));
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const int weight = least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1));
        weights[i] =
            static_cast<Weight>(i < size(inner) ? most : weight);  // the largest sums in the first row
      }
      const std::vector<float> multipliers(size(row_count), trellis_unit),
          offsets(size(row_count), 3.0f);
      std::vector<float> sums(size(row_count * rows), 1.0f);
      every_width<Weight>()[bits]({codes.packed.data(), rows, inner}, row_count, {weights.data(), inner},
                                  multipliers.data(), offsets.data(), {sums.data(), rows});
      for (Index r = 0; r < row_count; ++r) {
        for (Index row = 0; row < rows; ++row) {
          double expected = 4;
          for (Index i = 0; i < inner; ++i) {
            expected += weights[size(r * inner + i)] * (codes.level(row, i) - level_origin<Weight>);
          }
          ASSERT_FLOAT_EQ(sums[size(r * rows + row)], static_cast<float>(expected))
              << bits << " bits, inner " << inner << ", rows " << rows << ", " << row_count << " sums";
        }
      }
    }
  }
}

TEST(DotTrellis, IsTheSumOfIntegerProductsToTheLastBit) {
  for (int bits : {1, 2, 3}) expect_exact_sums<std::int8_t>(bits, most_weight(bits));
}

TEST(DotTrellis, TakesWeightsWithoutASign) {
  for (int bits : {1, 2, 3}) expect_exact_sums<std::uint8_t>(bits, most_unsigned_weight);
}

TEST(DotTrellis, SumsUpToNineRows) {
  constexpr Index inner = 32, rows = 96;
  const TrellisCodes codes(2, rows, inner, 5);
  const std::vector<std::int8_t> weights(9 * inner, 1);
  const std::vector<float> multipliers(9, trellis_unit), offsets(9, 0.0f);
  for (Index row_count = 1; row_count <= 9; ++row_count) {
    std::vector<float> sums(10 * rows, 0.0f);
    every_width<std::int8_t>()[2]({codes.packed.data(), rows, inner}, row_count, {weights.data(), inner},
                                  multipliers.data(), offsets.data(), {sums.data(), rows});
    for (Index row = 0; row < rows; ++row) {
      int expected = 0;
      for (Index i = 0; i < inner; ++i) expected += codes.level(row, i) + 32;
      for (Index r = 0; r < 10; ++r) {
        ASSERT_EQ(sums[size(r * rows + row)], r < row_count ? static_cast<float>(expected) : 0.0f);
      }
    }
  }
}

template <WeightSign Sign>
void expect_small_errors(int bits, const CodeKernels &kernels) {
  constexpr Index inner = 128, rows = 96, row_count = 3;
  const TrellisCodes codes(bits, rows, inner, 3);
  const Buffer<std::byte> memory(CodeWeights::scratch_bytes(row_count, inner));
  Scratch scratch(memory.data(), memory.size());
  CodeWeights weights(kernels, row_count, inner, scratch);
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 1e-3f);
  std::vector<float> exact(size(row_count * inner));
  for (float &x : exact) x = Sign == WeightSign::any ? normal(random) : std::abs(normal(random));
  std::copy(exact.begin(), exact.end(), weights.weights.data);
  std::vector<float> sums(size(row_count * rows), 0.0f);
  weights.round<Sign>(0, 0, bits, inner, nullptr, Codes::trellis);
  weights.accumulate<Sign>(0, 0, {bits, codes.packed.data(), rows, inner, 0, Codes::trellis}, 0, rows,
                           {sums.data(), rows});
  for (Index r = 0; r < row_count; ++r) {
    const auto first = exact.begin() + r * inner;
    const double largest = std::abs(*std::max_element(
        first, first + inner, [](float a, float b) { return std::abs(a) < std::abs(b); }));
    for (Index row = 0; row < rows; ++row) {
      double expected = 0;
      for (Index i = 0; i < inner; ++i) {
        const double level = codes.level(row, i) / double{trellis_unit};
        expected += static_cast<double>(exact[size(r * inner + i)]) *
                    (level + double{middle_of(Codes::trellis, bits, Sign)});
      }
      // Rounding errors of half a step at most, times levels of deviation about 1; five of their
      // deviations.
      const double step = largest / (Sign == WeightSign::any ? most_weight(bits) : most_unsigned_weight);
      ASSERT_NEAR(static_cast<double>(sums[size(r * rows + row)]), expected,
                  5 * step * std::sqrt(inner / 12.) + 1e-5 * largest);
    }
  }
}

TEST(WeightedTrellisCodes, ErrByAFractionOfTheLargestWeight) {
  CodeKernels kernels;
  kernels.signed_trellis.add<1, 2, 3>();
  kernels.unsigned_trellis.add<1, 2, 3>();
  for (int bits : {1, 2, 3}) {
    expect_small_errors<WeightSign::any>(bits, kernels);
    expect_small_errors<WeightSign::none>(bits, kernels);
  }
}

TEST(ExpandTrellis, GivesEveryLevelAboutTheMiddle) {
  for (int bits : {1, 2, 3}) {
    for (Index rows : {32, 96, 128}) {
      constexpr Index inner = 24;
      const TrellisCodes codes(bits, rows, inner, 11);
      std::vector<float> expanded(size(rows * inner));
      expand_codes({bits, codes.packed.data(), rows, inner, 0, Codes::trellis}, expanded.data());
      for (Index i = 0; i < inner; ++i) {
        for (Index row = 0; row < rows; ++row) {
          ASSERT_EQ(expanded[size(i * rows + row)],
                    trellis_middle + static_cast<float>(codes.level(row, i)) / trellis_unit);
        }
      }
    }
  }
}

}  // namespace
}  // namespace squat::cpu::test::trellis_kernels_test
