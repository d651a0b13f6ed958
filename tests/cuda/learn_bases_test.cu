// The bases that the device learns are what the host's mathematics asks of them, for the same
// statistics.

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <Eigen/LU>
#include <algorithm>
#include <cstddef>
#include <optional>
#include <random>
#include <vector>

#include "device_array.hpp"
#include "reference/rotary_table.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/moments.hpp"
#include "squat/coding/rounded_matrix.hpp"
#include "squat/coding/subspace_basis.hpp"
#include "squat/cuda/coding/basis_record.hpp"
#include "squat/cuda/coding/coding_tables.hpp"
#include "squat/cuda/coding/device_statistics.cuh"
#include "squat/cuda/coding/learn_bases.cuh"
#include "squat/cuda/coding/learnt_basis.cuh"
#include "squat/cuda/state/device_buffer.hpp"

namespace squat::test {
namespace {

struct BasesCase {
  Index frame = 256;  // 0: none
  RotaryPairs pairs = RotaryPairs::halves;
  int turning = 100;  // percent of the channels that turn
  float bias = 1;     // of keys before their rotary embedding
  bool queries = true;
  int tokens = 700;
};

template <int d>
class LearntBases {
 public:
  static constexpr int kv_heads = 3, group = 32;

  explicit LearntBases(const BasesCase &options) : case_(options) {
    table_ = rotary_table(1e4, d * case_.turning / 100, case_.pairs);
    if (case_.frame > 0) frame_.emplace(table_, case_.frame);
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const auto rows = [&](int count, float mean) {
      RowMatrix x(count, d);
      for (Index i = 0; i < count; ++i) {
        for (Index j = 0; j < d; ++j) {
          const float spread = 3.0f / (1.0f + static_cast<float>(j % 16));
          x(i, j) = mean * static_cast<float>(1 + j % 3) + spread * normal(random);
        }
      }
      return x;
    };
    for (int head = 0; head < kv_heads; ++head) {
      QueryStatistics &statistics = statistics_.emplace_back(d, group, frame_rows());
      const RowMatrix queries = rows(case_.tokens, .5f), values = rows(case_.tokens, 1);
      RowMatrix keys = rows(case_.tokens, case_.bias);
      if (case_.queries) add_queries(statistics, {queries.data(), case_.tokens, d});
      for (Index token = 0; token < case_.tokens; token += group) {
        const Index count = std::min<Index>(group, case_.tokens - token);
        for (Index i = token; frame_ && i < token + count; ++i)
          Turn(table_, i % frame_rows()).apply(keys.row(i).data());
        add_keys(statistics, {keys.row(token).data(), count, d}, token % frame_rows());
      }
      add_values(statistics, {values.data(), case_.tokens, d});
    }
  }

  void expect_bases() {
    const cuda::DeviceTiles tiles(case_.frame > 0 ? &table_ : nullptr, case_.frame, d);
    cuda::DeviceStatistics statistics(kv_heads, d, group, frame_rows(), 0, nullptr);
    std::vector<StatisticsRecord> records;
    for (const QueryStatistics &head : statistics_) records.push_back(head.record());
    statistics.adopt(records, nullptr);
    for (const bool bytes : {true, false}) {
      cuda::DeviceBuffer<std::byte> workspace;
      const auto found = statistics.learn_bases<d>(tiles.tables(), bytes, workspace, nullptr);
      ASSERT_EQ(found.size(), kv_heads);
      const cuda::LearningMemory<d> memory(workspace, kv_heads, frame_rows());
      for (std::size_t head = 0; head < kv_heads; ++head) {
        RowMatrix matrix(d, d);
        cuda::download<float>(memory.matrices + 2 * head * d * d,
                              {matrix.data(), static_cast<std::size_t>(d * d)}, nullptr);
        expect_basis(statistics_[head], found[head], matrix.template cast<double>(),
                     cuda::evidence_of(found[head], statistics.draws(), statistics.queries()));
        expect_rounded(found[head], matrix.template cast<double>(), bytes);
      }
    }
  }

 private:
  Index frame_rows() const { return case_.frame > 0 ? case_.frame : 1; }
  const TileFrame *frame() const { return frame_ ? &*frame_ : nullptr; }

  void expect_basis(const QueryStatistics &statistics, const cuda::LearntBasis<d> &found,
                    const Eigen::MatrixXd &matrix, const Evidence &evidence) const {
    const KeySums keys(statistics, frame());
    const Eigen::MatrixXd S = key_covariance(statistics, frame(), keys), C = query_moment(statistics);
    const auto expected = learn_subspace_basis(C, S, 2);
    ASSERT_TRUE(expected);
    const double weight = C.trace() > 0 ? C.trace() / d : 1;
    EXPECT_NEAR(found.weight, weight, 1e-6 * weight);
    const Eigen::MatrixXd identity = Eigen::MatrixXd::Identity(d, d);
    const Eigen::MatrixXd metric = C / weight + (C.trace() > 0 ? .1 : 1) * identity;
    for (int i = 0; i < d; ++i) EXPECT_NEAR(found.metric[i], metric(i, i), 1e-5 * metric(i, i)) << i;

    EXPECT_LT((matrix.transpose() * matrix * metric - identity).norm(), 1e-3);
    const Eigen::MatrixXd A = matrix.inverse().transpose();
    Eigen::MatrixXd covariance = A * S * A.transpose();
    const double most = expected->variance[0];
    for (int i = 0; i < d; ++i) {
      EXPECT_NEAR(found.variance[i], expected->variance[static_cast<std::size_t>(i)], 1e-5 * most) << i;
      if (i > 0) EXPECT_LE(found.variance[i], found.variance[i - 1]);
      covariance(i, i) -= found.variance[i];
    }
    EXPECT_LT(covariance.norm(), 1e-4 * most);

    for (std::size_t i = 0; i < d; ++i)
      EXPECT_NEAR(found.mean[i], keys.mean[i], 1e-6 * (1 + case_.bias));
    const Evidence known = evidence_of(statistics, frame(), keys, S);
    EXPECT_NEAR(evidence.key_rank, known.key_rank, 1e-4 * known.key_rank);
    EXPECT_NEAR(evidence.key_directions, known.key_directions, 1e-4 * known.key_directions);
    EXPECT_NEAR(evidence.query_rank, known.query_rank, 1e-4 * known.query_rank);
    EXPECT_EQ(evidence.draws, known.draws);
    EXPECT_EQ(evidence.queries, known.queries);
  }

  /// To the same numbers as the host would, but where sums of other order round a code elsewhere.
  void expect_rounded(const cuda::LearntBasis<d> &found, const Eigen::MatrixXd &matrix,
                      bool bytes) const {
    const int bits = bytes ? 2 : 4;
    ASSERT_EQ(KeyQuantizer::rounds_to_bytes(bits), bytes);
    const HeadRecord record = cuda::record_of(found, bits, bytes, frame() != nullptr, case_.tokens);
    const RoundedMatrix expected = KeyQuantizer::rounded_basis(matrix, found.metric, bits);
    ASSERT_EQ(record.matrix.codes.size(), expected.codes.size());
    for (std::size_t i = 0; i < expected.codes.size(); ++i)
      EXPECT_NEAR(record.matrix.codes[i], expected.codes[i], 1) << i;
    ASSERT_EQ(record.matrix.scales.size(), expected.scales.size());
    for (std::size_t i = 0; i < expected.scales.size(); ++i)
      EXPECT_FLOAT_EQ(record.matrix.scales[i], expected.scales[i]) << i;
    ASSERT_EQ(record.matrix.input_scales.size(), expected.input_scales.size());
    for (std::size_t i = 0; i < expected.input_scales.size(); ++i)
      EXPECT_FLOAT_EQ(record.matrix.input_scales[i], expected.input_scales[i]) << i;
    EXPECT_EQ(record.value_mean.size(), d);
    EXPECT_EQ(record.mean.empty(), frame() == nullptr);
    EXPECT_EQ(record.variance.size(), d);
  }

  BasesCase case_;
  RotaryTable table_;
  std::optional<TileFrame> frame_;
  std::vector<QueryStatistics> statistics_;
};

class LearnBases : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
    if (!cuda::can_learn_bases<128>()) GTEST_SKIP() << "no room in shared memory";
  }
};

TEST_F(LearnBases, OfKeysInATileFrame) {
  LearntBases<64>({}).expect_bases();
  LearntBases<96>({.frame = 96}).expect_bases();
  LearntBases<128>({}).expect_bases();
  LearntBases<128>({.frame = 768, .tokens = 500}).expect_bases();
}

TEST_F(LearnBases, OfKeysInTheFrameTheyComeIn) {
  LearntBases<64>({.frame = 0}).expect_bases();
  LearntBases<128>({.frame = 0}).expect_bases();
}

TEST_F(LearnBases, OfInterleavedPairsAndPartOfTheChannels) {
  LearntBases<64>({.pairs = RotaryPairs::interleaved, .turning = 50}).expect_bases();
  LearntBases<128>({.frame = 32, .turning = 75}).expect_bases();
}

TEST_F(LearnBases, BesideAMeanAHundredTimesTheDeviation) {
  LearntBases<128>({.bias = 100}).expect_bases();
}

TEST_F(LearnBases, OfKeysAlone) { LearntBases<64>({.queries = false}).expect_bases(); }

TEST_F(LearnBases, OfNothing) {
  constexpr int d = 64;
  const cuda::DeviceTiles tiles(nullptr, 0, 128);
  const cuda::DeviceStatistics statistics(2, d, 32, 1, 0, nullptr);
  cuda::DeviceBuffer<std::byte> workspace;
  for (const auto &found : statistics.learn_bases<d>(tiles.tables(), true, workspace, nullptr)) {
    const HeadRecord record = cuda::record_of(found, 2, true, false, 0);
    EXPECT_TRUE(record.matrix.empty());
    EXPECT_TRUE(record.value_mean.empty());
    EXPECT_EQ(cuda::evidence_of(found, 0, 0).key_directions, 0);
  }
}

}  // namespace
}  // namespace squat::test
