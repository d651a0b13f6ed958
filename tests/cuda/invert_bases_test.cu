// The tables that the device makes of a rounded basis are its entries as float16, and its inverse as the
// host finds it.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "device_array.hpp"
#include "squat/coding/inverse.hpp"
#include "squat/coding/rounded_matrix.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/coding/basis_record.hpp"
#include "squat/cuda/coding/coding_tables.hpp"
#include "squat/cuda/coding/invert_bases.cuh"
#include "squat/cuda/coding/learnt_basis.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::test {
namespace {

/// A matrix of some condition: rotations of pairs of channels, stretched.
Eigen::MatrixXd regular_matrix(Index d, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> angle(0, 6.28);
  Eigen::MatrixXd matrix = Eigen::MatrixXd::Zero(d, d);
  for (Index i = 0; i < d; ++i) matrix(i, (5 * i + 3) % d) = 3.0 / static_cast<double>(1 + i % 10);
  for (Index step = 1; step < d; ++step) {
    for (Index i = 0; i + step < d; i += 2 * step) {
      const double turn = angle(random), c = std::cos(turn), s = std::sin(turn);
      const Eigen::RowVectorXd a = matrix.row(i), b = matrix.row(i + step);
      matrix.row(i) = c * a - s * b;
      matrix.row(i + step) = s * a + c * b;
    }
  }
  return matrix;
}

template <int d>
void expect_tables(bool bytes) {
  constexpr std::size_t heads = 3, entries = d * d;
  std::vector<RoundedMatrix> matrices;
  std::vector<cuda::LearntBasis<d>> bases(heads);
  const DeviceArray<squat::half> tiles(heads * entries);
  const DeviceArray<float> inverses(heads * entries);
  std::vector<cuda::HeadTables> tables(heads);
  for (std::size_t head = 0; head < heads; ++head) {
    const Eigen::MatrixXd matrix = regular_matrix(d, static_cast<unsigned>(head));
    const std::vector<double> widths(d, 1 + .5 * static_cast<double>(head));
    matrices.push_back(bytes ? round_to_bytes(matrix, widths) : round_to_words(matrix));
    cuda::take_matrix(matrices[head], bases[head]);
    if (head == 1) continue;  // has no basis
    tables[head].basis = reinterpret_cast<const uint4 *>(tiles.data() + head * entries);
    tables[head].to_basis = inverses.data() + head * entries;
  }
  const DeviceArray<cuda::LearntBasis<d>> on_device(bases);
  const DeviceArray<cuda::HeadTables> head_tables(tables);
  cuda::launch_invert_bases<d>({.bases = on_device.data(), .heads = head_tables.data(), .bytes = bytes},
                               heads, nullptr);
  finish();
  const std::vector<squat::half> found_tiles = tiles.read();
  const std::vector<float> found = inverses.read();
  for (std::size_t head = 0; head < heads; ++head) {
    SCOPED_TRACE(testing::Message() << "head " << head << " of " << d << ", bytes " << bytes);
    const auto first = static_cast<std::ptrdiff_t>(head * entries);
    const std::vector<float> of_head(found.begin() + first, found.begin() + first + entries);
    if (head == 1) {
      EXPECT_EQ(of_head, std::vector<float>(entries));
      continue;
    }
    const RoundedMatrix &rounded = matrices[head];
    Eigen::MatrixXd matrix(d, d);
    for (Index i = 0; i < d; ++i) {
      for (Index j = 0; j < d; ++j) matrix(i, j) = static_cast<double>(rounded.entry(i, j));
    }
    const std::vector<squat::half> expected_tiles = cuda::matrix_tiles(matrix, 1, cuda::TileOrder::rows);
    for (std::size_t i = 0; i < entries; ++i) {
      ASSERT_EQ(static_cast<float>(found_tiles[head * entries + i]),
                static_cast<float>(expected_tiles[i]))
          << i;
    }
    Eigen::MatrixXd product =
        Eigen::Map<const RowMatrix>(of_head.data(), d, d).template cast<double>() * matrix.transpose();
    product -= Eigen::MatrixXd::Identity(d, d);
    EXPECT_LT(product.cwiseAbs().maxCoeff(), 1e-4);
    std::vector<float> expected(entries);
    std::vector<Index> pivots(d);
    rounded.write_transposed(expected.data());
    invert(expected.data(), Index{d}, pivots.data());
    for (std::size_t i = 0; i < entries; ++i) ASSERT_NEAR(of_head[i], expected[i], 1e-4) << i;
  }
}

TEST(InvertBases, OfBytesAndOfWords) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  for (const bool bytes : {true, false}) {
    expect_tables<32>(bytes);
    expect_tables<64>(bytes);
    expect_tables<96>(bytes);
    expect_tables<128>(bytes);
  }
}

}  // namespace
}  // namespace squat::test
