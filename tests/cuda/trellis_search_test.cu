// Rows that warps code as trellis codes: what they say they err is what their codes err, and the codes
// are the CPU's, except where a number lies so near a tie that the order of a sum decides.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "device_array.hpp"
#include "reference/trellis_oracle.hpp"
#include "squat/coding/trellis_quantizer.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cuda/kernels/trellis_search.cuh"

namespace squat::test::trellis_search_test {
namespace {

/// A row of device memory and what came of it.
struct Fit {
  float zero, scale, error;
};

constexpr int warps = 2, rows = 96;

/// By blocks of `warps` warps, of which each codes two rows.
template <int Bits, int Count, bool AboutMean>
__global__ void code_rows(const float *x, std::uint8_t *codes, Fit *fits) {
  __shared__ __align__(16) float shared_rows[warps][2][Count];
  __shared__ std::uint8_t shared_codes[warps][2][Count];
  __shared__ __align__(16) cuda::Word scratch[warps][cuda::trellis_scratch_words<Count>];
  const int warp = cuda::warp_index(), lane = cuda::lane_index();
  const int row = (static_cast<int>(blockIdx.x) * warps + warp) * 2;
  for (int i = lane; i < 2 * Count; i += 32)
    shared_rows[warp][i / Count][i % Count] = x[row * Count + i];
  __syncwarp();
  const int half = lane / 16;
  const auto fit = cuda::quantize_two_trellises<Bits, Count, AboutMean>(
      shared_rows[warp][half], shared_codes[warp][half], scratch[warp]);
  if (lane % 16 == 0)
    fits[row + half] = {__half2float(fit.scale.zero), __half2float(fit.scale.scale), fit.error};
  __syncwarp();
  for (int i = lane; i < 2 * Count; i += 32)
    codes[row * Count + i] = shared_codes[warp][i / Count][i % Count];
}

/// Rows of one kind: element(row, i).
struct Kind {
  const char *name;
  std::function<double(int row, int i, std::mt19937 &random)> element;
};

double normal(std::mt19937 &random) { return std::normal_distribution<double>()(random); }

const Kind kinds[] = {
    {"Gaussians", [](int, int, std::mt19937 &random) { return normal(random); }},
    {"every third a Gaussian, and heavy tails",
     [](int row, int, std::mt19937 &random) {
       return row % 3 == 1 ? normal(random) : std::student_t_distribution<double>(2)(random);
     }},
    {"zeros", [](int, int, std::mt19937 &) { return 0.0; }},
    {"constants", [](int row, int, std::mt19937 &) { return row % 2 == 0 ? 3.7 : -6e4; }},
    {"tiny",
     [](int row, int, std::mt19937 &random) { return (row % 2 == 0 ? 1e-30 : 1e-5) * normal(random); }},
    {"huge",
     [](int row, int, std::mt19937 &random) { return (row % 2 == 0 ? 1e15 : 1e4) * normal(random); }},
    {"spikes", [](int row, int i, std::mt19937 &) { return i == row % 32 ? 1e4 : 0.0; }},
    {"few values", [](int, int, std::mt19937 &random) { return static_cast<double>(random() % 3); }},
};

template <int Bits, int Count, bool AboutMean>
void expect_rows_as_on_the_cpu(const Kind &kind) {
  SCOPED_TRACE(testing::Message() << kind.name << ", " << Bits << " bits, " << Count << " elements");
  std::mt19937 random(3);
  std::vector<float> x;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < Count; ++i) x.push_back(static_cast<float>(kind.element(row, i, random)));
  }
  const DeviceArray<float> device_x(x);
  const DeviceArray<std::uint8_t> device_codes(x.size());
  const DeviceArray<Fit> device_fits(rows);
  code_rows<Bits, Count, AboutMean>
      <<<rows / (2 * warps), warps * 32>>>(device_x.data(), device_codes.data(), device_fits.data());
  finish();
  const std::vector<std::uint8_t> codes = device_codes.read();
  const std::vector<Fit> fits = device_fits.read();

  const cpu::Buffer<std::byte> memory(static_cast<std::size_t>(TrellisQuantizer::bytes(Count)));
  TrellisQuantizer quantizer(memory.data(), Count);
  std::vector<std::uint8_t> cpu_codes(x.size());
  std::vector<AffineScale> cpu_fits(rows);
  const float cpu_error =
      AboutMean
          ? quantizer.quantize_affine(x.data(), rows, Count, Bits, cpu_codes.data(), cpu_fits.data())
          : quantizer.quantize_symmetric(x.data(), rows, Count, Bits, cpu_codes.data(), cpu_fits.data());
  double error = 0, rounding = 0;
  int same = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    const auto first = codes.begin() + static_cast<std::ptrdiff_t>(row * Count);
    const std::vector<int> levels = decode_row({first, first + Count}, Bits);
    double row_error = 0, squares = 0;
    for (std::size_t i = 0; i < Count; ++i) {
      ASSERT_LT(first[static_cast<std::ptrdiff_t>(i)], 1 << Bits);
      const double code = (AboutMean ? trellis_middle : 0) + levels[i] / double{trellis_unit};
      const auto number = static_cast<double>(x[row * Count + i]);
      const double difference =
          static_cast<double>(fits[row].zero) + static_cast<double>(fits[row].scale) * code - number;
      row_error += difference * difference;
      squares += number * number;
    }
    const auto said = static_cast<double>(fits[row].error);
    EXPECT_TRUE(std::isfinite(said));
    EXPECT_NEAR(said, row_error, 1e-3 * row_error + 1e-9 * squares + 1e-40) << "row " << row;
    error += said;
    rounding += 1e-9 * squares;
    if (std::equal(first, first + Count, cpu_codes.begin() + static_cast<std::ptrdiff_t>(row * Count))) {
      ++same;
    }
  }
  const auto expected = static_cast<double>(cpu_error);
  EXPECT_NEAR(error, expected, 1e-3 * expected + rounding + 1e-40);
  EXPECT_GE(same, rows * 9 / 10) << "rows with the CPU's codes";
}

class TrellisRows : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(TrellisRows, AreCodedAsOnTheCpu) {
  for (const Kind &kind : kinds) {
    expect_rows_as_on_the_cpu<1, 128, true>(kind);
    expect_rows_as_on_the_cpu<1, 256, false>(kind);
    expect_rows_as_on_the_cpu<2, 128, true>(kind);
    expect_rows_as_on_the_cpu<2, 64, false>(kind);
    expect_rows_as_on_the_cpu<3, 192, false>(kind);
    expect_rows_as_on_the_cpu<3, 128, true>(kind);
  }
}

}  // namespace
}  // namespace squat::test::trellis_search_test
