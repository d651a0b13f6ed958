// Trellis codes: what they err on Gaussians, that rows are circular, that the search finds what there is
// to find, and that rows as no model should have them fare no worse than scalar codes.

#include "squat/coding/trellis.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "reference/trellis_oracle.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/symmetric.hpp"
#include "squat/coding/trellis_quantizer.hpp"
#include "squat/cpu/buffer.hpp"

namespace squat::test::trellis_test {
namespace {

using Rows = std::vector<std::vector<float>>;

Rows normal_rows(std::size_t rows, std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Rows x(rows, std::vector<float>(count));
  for (auto &row : x) std::generate(row.begin(), row.end(), [&] { return normal(random); });
  return x;
}

/// Rows as codes, and what the codes stand for by the oracle.
struct Coded {
  Coded(const Rows &rows, int bits, bool about_mean) {
    const std::size_t count = rows[0].size();
    std::vector<float> x;
    for (const auto &row : rows) x.insert(x.end(), row.begin(), row.end());
    std::vector<std::uint8_t> codes(x.size());
    std::vector<AffineScale> scales(rows.size());
    const auto longest = static_cast<Index>(count);
    const cpu::Buffer<std::byte> memory(static_cast<std::size_t>(TrellisQuantizer::bytes(longest)));
    TrellisQuantizer quantizer(memory.data(), longest);
    const auto row_count = static_cast<Index>(rows.size());
    error = about_mean ? quantizer.quantize_affine(x.data(), row_count, longest, bits, codes.data(),
                                                   scales.data())
                       : quantizer.quantize_symmetric(x.data(), row_count, longest, bits, codes.data(),
                                                      scales.data());
    for (std::size_t row = 0; row < rows.size(); ++row) {
      const auto first = codes.begin() + static_cast<std::ptrdiff_t>(row * count);
      row_codes.emplace_back(first, first + longest);
      std::vector<double> numbers;
      for (int level : decode_row(row_codes.back(), bits)) {
        const double code = (about_mean ? trellis_middle : 0) + level / double{trellis_unit};
        numbers.push_back(static_cast<double>(static_cast<float>(scales[row].zero)) +
                          static_cast<double>(static_cast<float>(scales[row].scale)) * code);
      }
      decoded.push_back(numbers);
    }
  }

  float error;  // that the quantizer says
  std::vector<std::vector<int>> row_codes;
  std::vector<std::vector<double>> decoded;
};

double squared_error(const std::vector<float> &x, const std::vector<double> &decoded) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum += (static_cast<double>(x[i]) - decoded[i]) * (static_cast<double>(x[i]) - decoded[i]);
  }
  return sum;
}

TEST(Trellis, ErrsOnGaussiansAsItsTablesWereTrainedTo) {
  for (int bits : {1, 2, 3}) {
    const auto expected = static_cast<double>(trellis_code(bits).error);
    for (const bool about_mean : {false, true}) {
      const Rows rows = normal_rows(1000, 128, 1);
      const Coded coded(rows, bits, about_mean);
      double error = 0, squares = 0;
      for (std::size_t row = 0; row < rows.size(); ++row) {
        error += squared_error(rows[row], coded.decoded[row]);
        for (float x : rows[row]) squares += static_cast<double>(x) * static_cast<double>(x);
      }
      EXPECT_NEAR(error / squares, expected, .03 * expected) << bits << " bits";
      EXPECT_NEAR(coded.error, error, 1e-4 * error);
    }
  }
}

TEST(Trellis, CodesAreAsWideAsTheyAreSaidToBe) {
  for (int bits : {1, 2, 3}) {
    std::vector<int> seen(8);
    for (const auto &row : Coded(normal_rows(20, 64, 2), bits, true).row_codes) {
      for (int code : row) ++seen[static_cast<std::size_t>(code)];
    }
    for (int code = 0; code < 8; ++code) {
      EXPECT_EQ(seen[static_cast<std::size_t>(code)] > 0, code < (1 << bits)) << bits << " bits";
    }
  }
}

TEST(Trellis, ErrorIsOrthogonalToTheRow) {
  for (int bits : {1, 2, 3}) {
    const Rows rows = normal_rows(50, 96, 3);
    const Coded coded(rows, bits, false);
    for (std::size_t row = 0; row < rows.size(); ++row) {
      double along = 0, squares = 0;
      for (std::size_t i = 0; i < rows[row].size(); ++i) {
        const auto x = static_cast<double>(rows[row][i]);
        along += x * (coded.decoded[row][i] - x);
        squares += x * x;
      }
      EXPECT_NEAR(along / squares, 0, 1e-3) << "what rounding its scale to float16 leaves";
    }
  }
}

/// The least squared distance of x, in levels, from the levels of a circular row: from every state in
/// turn.
double least_distance(const std::vector<double> &x, int bits) {
  const int step = bits == 1 ? 1 : 2, choices = 1 << step, states = 256 >> step;
  std::vector<double> squares;  // of every window's distance from every number
  for (double number : x) {
    for (unsigned window = 0; window < 256; ++window) {
      const std::size_t index = trellis_index(window);
      double distance = std::abs(number - trellis_code(bits).levels[index]);
      if (bits == 3)
        distance = std::min(distance, std::abs(number - trellis_code(3).levels[index + 16]));
      squares.push_back(distance * distance);
    }
  }
  double least = std::numeric_limits<double>::infinity();
  for (int begin = 0; begin < states; ++begin) {
    std::vector<double> cost(static_cast<std::size_t>(states), std::numeric_limits<double>::infinity());
    cost[static_cast<std::size_t>(begin)] = 0;
    for (std::size_t first = 0; first < squares.size(); first += 256) {
      std::vector<double> next(cost.size(), std::numeric_limits<double>::infinity());
      const double *square = squares.data() + first;
      for (int window = 0; window < 256; ++window) {
        const double sum = cost[static_cast<std::size_t>(window >> step)] + square[window];
        double &after = next[static_cast<std::size_t>(window % states)];
        if (sum < after) after = sum;
      }
      cost.swap(next);
    }
    least = std::min(least, cost[static_cast<std::size_t>(begin)]);
  }
  EXPECT_EQ(choices * states, 256);
  return least;
}

/// What a search finds beyond that, over `search_rows` Gaussian rows.
template <int Bits>
double excess_distance(std::size_t count) {
  const auto longest = static_cast<Index>(count);
  const cpu::Buffer<std::byte> memory(static_cast<std::size_t>(TrellisSearch::bytes(longest)));
  TrellisSearch search(memory.data(), longest);
  const Rows rows = normal_rows(search_rows, count, 5);
  const auto in_levels = [](float x) { return x * trellis_code(Bits).deviation; };
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (std::size_t i = 0; i < count; ++i) {
      search.set<Bits>(static_cast<Index>(row), static_cast<Index>(i), in_levels(rows[row][i]));
    }
  }
  std::vector<std::uint8_t> codes(rows.size() * count);
  std::vector<std::int8_t> levels(codes.size());
  search.run<Bits>(search_rows, longest, codes.data(), levels.data());
  double found = 0, least = 0;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto first = codes.begin() + static_cast<std::ptrdiff_t>(row * count);
    const std::vector<int> decoded = decode_row({first, first + longest}, Bits);
    std::vector<double> x;
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(decoded[i], levels[row * count + i]);
      x.push_back(static_cast<double>(in_levels(rows[row][i])));
      found += (x[i] - decoded[i]) * (x[i] - decoded[i]);
    }
    least += least_distance(x, Bits);
  }
  return found / least - 1;
}

TEST(Trellis, SearchFindsAlmostTheNearestCircularRow) {
  for (std::size_t count : {32u, 64u, 128u}) {
    // Where a row ends is found by a search that does not know how it begins.
    const double most = count == 32 ? .15 : count == 64 ? .06 : .03;
    for (const double excess :
         {excess_distance<1>(count), excess_distance<2>(count), excess_distance<3>(count)}) {
      EXPECT_LT(excess, most) << count << " elements";
      EXPECT_GT(excess, -1e-6);
    }
  }
}

/// A row that is not Gaussian at all.
struct Odd {
  const char *name;
  std::function<float(int i, std::mt19937 &random)> element;
};

const Odd odd_rows[] = {
    {"zeros", [](int, std::mt19937 &) { return 0.0f; }},
    {"constant", [](int, std::mt19937 &) { return 3.7f; }},
    {"large constant", [](int, std::mt19937 &) { return -6e4f; }},
    {"tiny",
     [](int, std::mt19937 &random) { return 1e-30f * std::normal_distribution<float>()(random); }},
    {"small",
     [](int, std::mt19937 &random) { return 1e-5f * std::normal_distribution<float>()(random); }},
    {"huge", [](int, std::mt19937 &random) { return 1e4f * std::normal_distribution<float>()(random); }},
    {"uniform",
     [](int, std::mt19937 &random) { return std::uniform_real_distribution<float>(0, 1)(random); }},
    {"heavy tails",
     [](int, std::mt19937 &random) { return std::student_t_distribution<float>(3)(random); }},
    {"spike", [](int i, std::mt19937 &) { return i == 17 ? 1e4f : 0.0f; }},
    {"few values",
     [](int, std::mt19937 &random) { return static_cast<float>(static_cast<int>(random() % 3)); }},
};

/// The squared error of trellis codes over 30 rows, at most 1.1 times that of scalar codes, or a quarter
/// more than that of Gaussian rows. scalar_error: of a row.
void expect_no_worse(const Odd &odd, int bits, bool about_mean,
                     const std::function<double(const std::vector<float> &)> &scalar_error) {
  std::mt19937 random(9);
  double error = 0, scalar = 0, squares = 0;
  for (int repeat = 0; repeat < 30; ++repeat) {
    Rows row(1, std::vector<float>(128));
    for (int i = 0; i < 128; ++i) row[0][static_cast<std::size_t>(i)] = odd.element(i, random);
    error += squared_error(row[0], Coded(row, bits, about_mean).decoded[0]);
    scalar += scalar_error(row[0]);
    const double mean = about_mean ? std::accumulate(row[0].begin(), row[0].end(), 0.0) / 128 : 0;
    for (float x : row[0]) squares += (static_cast<double>(x) - mean) * (static_cast<double>(x) - mean);
  }
  const double usual = 1.25 * static_cast<double>(trellis_code(bits).error) * squares;
  EXPECT_LE(error, std::max(1.1 * scalar, usual) + 1e-9) << odd.name << ", " << bits << " bits";
}

TEST(Trellis, SymmetricRowsFareNoWorseThanWithScalarCodesWhateverTheyAre) {
  for (int bits : {2, 3}) {
    for (const Odd &odd : odd_rows) {
      expect_no_worse(odd, bits, false, [&](const std::vector<float> &row) {
        std::vector<std::uint8_t> codes(row.size());
        const auto scale = static_cast<float>(quantize_symmetric(row.data(), 128, bits, codes.data()));
        std::vector<double> decoded;
        for (std::uint8_t code : codes) {
          const float level = static_cast<float>(code) - middle_code(bits);
          decoded.push_back(static_cast<double>(scale * level));
        }
        return squared_error(row, decoded);
      });
    }
  }
}

TEST(Trellis, GroupsFareNoWorseThanWithScalarCodesButForSpikes) {
  for (int bits : {2, 3}) {
    for (const Odd &odd : odd_rows) {
      if (odd.name == std::string("spike")) continue;
      expect_no_worse(odd, bits, true, [&](const std::vector<float> &row) {
        std::vector<std::uint8_t> codes(row.size());
        const AffineScale fit =
            quantize_affine(row.data(), 128, bits, AffineFit::clip_and_gain, codes.data());
        return static_cast<double>(affine_error(row.data(), 128, codes.data(), fit));
      });
    }
  }
}

/// A quantizer that has learnt from Gaussian queries and keys of 32 channels.
KeyQuantizer learnt_quantizer() {
  constexpr Index d = 32, tokens = 256;
  QueryStatistics statistics(d, 32, 1);
  const auto flat = [](unsigned seed) {
    std::vector<float> x;
    for (const auto &row : normal_rows(tokens, d, seed)) x.insert(x.end(), row.begin(), row.end());
    return x;
  };
  const std::vector<float> queries = flat(1), keys = flat(2);
  add_queries(statistics, {queries.data(), tokens, d});
  add_keys(statistics, {keys.data(), tokens, d}, 0);
  KeyQuantizer quantizer(Coding::subspace, AffineFit::clip_and_gain, {}, 2, d);
  quantizer.learn(statistics, nullptr);
  return quantizer;
}

/// How it codes a page of keys, channel-major.
CodedKeys codes_of_page(const Rows &channels) {
  constexpr Index tokens = 64;
  std::vector<float> keys;
  for (const auto &channel : channels) keys.insert(keys.end(), channel.begin(), channel.end());
  std::vector<float> scratch(keys.size());
  std::vector<std::uint8_t> codes(keys.size());
  std::vector<AffineScale> scales(channels.size());
  const cpu::Buffer<std::byte> memory(static_cast<std::size_t>(TrellisQuantizer::bytes(tokens)));
  TrellisQuantizer trellis(memory.data(), tokens);
  return learnt_quantizer().quantize(keys.data(), tokens, scratch.data(), codes.data(), scales.data(),
                                     &trellis);
}

TEST(Trellis, PagesOfKeysWithSpikesAreCodedAsScalars) {
  Rows channels = normal_rows(32, 64, 7);
  const CodedKeys usual = codes_of_page(channels);
  EXPECT_EQ(usual.space, KeySpace::basis);
  EXPECT_EQ(usual.kind, Codes::trellis);
  for (auto &channel : channels) channel[9] = 1e4f;
  EXPECT_EQ(codes_of_page(channels).kind, Codes::scalar);
}

}  // namespace
}  // namespace squat::test::trellis_test
