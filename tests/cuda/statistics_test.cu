// Statistics gathered on the device are those of the CPU backend.

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "device_array.hpp"
#include "reference/rotary_table.hpp"
#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/exact_store.hpp"
#include "squat/cpu/layer_coding.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/workspace.hpp"
#include "squat/cuda/coding/coding_tables.hpp"
#include "squat/cuda/coding/device_statistics.cuh"

namespace squat::test {
namespace {

struct StatisticsCase {
  int frame = 256;  // 0: none
  RotaryPairs pairs = RotaryPairs::halves;
  int turning = 100;  // percent of the channels that turn
  int query_heads = 6;
  long long position = 100;  // of the first token
  std::vector<int> pieces = {700};
  bool queries = true;
  int padding = 0;  // elements between rows
};

template <int d, class S>
class Observed {
 public:
  static constexpr int kv_heads = 2, group = 32, sinks = 5;

  explicit Observed(const StatisticsCase &options) : case_(options) {
    for (int piece : case_.pieces) tokens_ += piece;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<S> &x, int heads) {
      x.resize(static_cast<std::size_t>(tokens_ * token_stride(heads)));
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto channel = static_cast<float>(i % static_cast<std::size_t>(d + case_.padding));
        x[i] = static_cast<S>((normal(random) + .5f) * 3 / (1 + channel / 16));
      }
    };
    fill(q_, case_.query_heads);
    fill(k_, kv_heads);
  }

  /// The largest difference of each of QueryStatistics' sums, as a share of its largest number.
  double difference() const {
    const std::vector<QueryStatistics> found = on_device();
    double largest = 0;
    for (int head = 0; head < kv_heads; ++head) {
      const QueryStatistics expected = on_cpu(head);
      const auto compare = [&](auto array) {
        const auto values = [&](const QueryStatistics &statistics) {
          const auto sums = statistics.sums(array);
          return Eigen::ArrayXd(Eigen::Map<const Eigen::ArrayX<typename decltype(sums)::value_type>>(
                                    sums.data(), static_cast<Index>(sums.size()))
                                    .template cast<double>());
        };
        const Eigen::ArrayXd x = values(expected);
        const double off = (values(found[static_cast<std::size_t>(head)]) - x).abs().maxCoeff();
        largest = std::max(largest, off / std::max(1e-9, x.abs().maxCoeff()));
      };
      compare(&HeadSums::queries);
      compare(&HeadSums::query_moment);
      compare(&HeadSums::key_moment);
      compare(&HeadSums::key_sum);
      compare(&HeadSums::row_sums);
      compare(&HeadSums::row_counts);
      compare(&HeadSums::values);
      compare(&HeadSums::value_sum);
      if (case_.frame > 0) continue;  // ranges are not gathered
      compare(&HeadSums::groups);
      compare(&HeadSums::key_range);
    }
    return largest;
  }

 private:
  int token_stride(int heads) const { return heads * (d + case_.padding); }

  RotaryTable rotary() const {
    const int pairs = d / 2 * case_.turning / 100;
    return rotary_table(1e4, 2 * pairs, case_.pairs);
  }

  std::vector<QueryStatistics> on_device() const {
    const RotaryTable table = rotary();
    DeviceArray<float> frequencies(table.inverse_frequencies);
    DeviceArray<std::uint64_t> turns(cuda::table_turns(table.inverse_frequencies));
    cuda::TileTables tables{};
    tables.inverse_frequencies = frequencies.data();
    tables.turns = turns.data();
    tables.pairs = static_cast<int>(table.pair_count());
    tables.interleaved = table.pairs == RotaryPairs::interleaved;
    tables.frame = case_.frame;
    DeviceArray<S> q(q_), k(k_);
    cuda::DeviceStatistics statistics(kv_heads, d, group, std::max(1, case_.frame), sinks, nullptr);
    cuda::DeviceBuffer<std::byte> workspace;
    const auto tensor = [&](const DeviceArray<S> &array, int heads) {
      return cuda::DeviceTensor<const S>{array.data(), token_stride(heads), d + case_.padding};
    };
    long long first = 0;
    for (int piece : case_.pieces) {
      cuda::ObservedRows<S> rows{};
      if (case_.queries) rows.q = tensor(q, case_.query_heads);
      rows.k = rows.v = tensor(k, kv_heads);
      rows.heads_per_kv_head = case_.query_heads / kv_heads;
      rows.first = first;
      rows.tokens = piece;
      rows.index = first;
      rows.position = case_.position + first;
      statistics.observe<d>(rows, tables, workspace, nullptr);
      first += piece;
    }
    return statistics.read(nullptr);
  }

  QueryStatistics on_cpu(int head) const {
    Options options{.layers = 1, .query_heads = case_.query_heads, .kv_heads = kv_heads, .head_dim = d};
    options.coding = Coding::subspace;
    options.fit = AffineFit::minmax;
    options.values = ValueCoding::symmetric;
    options.allocation = Allocation::head;
    options.sinks = sinks;
    options.page_tokens = group;
    const cpu::TileTables tiles(rotary(), std::max(1, case_.frame), d);
    cpu::LayerCoding coding(options, cpu::PageLayout(options, 2, 2), 0,
                            case_.frame > 0 ? &tiles : nullptr);
    const int shared = case_.query_heads / kv_heads;
    const cpu::Buffer<std::byte> scratch(cpu::LayerCoding::scratch_bytes(options, shared));
    const auto tensor = [&](const std::vector<S> &x, int heads) {
      return TensorView<const S>(x.data(), tokens_, heads, d, token_stride(heads), d + case_.padding);
    };
    TensorView<const S> q;
    if (case_.queries) q = tensor(q_, case_.query_heads);
    cpu::ExactStore<S> nothing;
    const SequenceCall<cpu::ExactStore<S>> call{
        .exact = &nothing, .tokens = tokens_, .position = case_.position};
    const TensorView<const S> k = tensor(k_, kv_heads), v = k;
    coding.observe(head, shared, call, q, k, v, 0, tokens_, nullptr,
                   cpu::Scratch(scratch.data(), scratch.size()));
    return *coding.statistics(head);
  }

  StatisticsCase case_;
  int tokens_ = 0;
  std::vector<S> q_, k_;
};

template <int d, class S>
void expect_statistics(const StatisticsCase &options) {
  EXPECT_LE((Observed<d, S>(options).difference()), 3e-4);
}

class DeviceStatistics : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(DeviceStatistics, InATileFrame) {
  expect_statistics<128, half>({});
  expect_statistics<64, float>({.pairs = RotaryPairs::interleaved});
  expect_statistics<96, bfloat16>({.turning = 50, .query_heads = 2});
  expect_statistics<256, half>({.pairs = RotaryPairs::interleaved, .turning = 50, .pieces = {300}});
  expect_statistics<576, half>({.pieces = {200}, .padding = 8});
}

TEST_F(DeviceStatistics, InTheFrameKeysComeIn) {
  expect_statistics<128, half>({.frame = 0});
  expect_statistics<64, float>({.frame = 0, .query_heads = 32});
}

TEST_F(DeviceStatistics, OfTokensThatComeInPieces) {
  expect_statistics<64, half>({.pieces = {3, 1, 1, 1, 1, 90, 200, 33, 1, 500}});
  expect_statistics<64, half>({.frame = 0, .pieces = {3, 1, 1, 1, 1, 90, 200, 33, 1, 500}});
}

TEST_F(DeviceStatistics, OfMoreRunsThanALaunchTakes) {
  expect_statistics<64, half>({.frame = 32, .position = 1237, .pieces = {1500}});
}

TEST_F(DeviceStatistics, OfKeysAlone) {
  expect_statistics<64, half>({.queries = false});
  expect_statistics<64, half>({.frame = 0, .queries = false});
}

TEST_F(DeviceStatistics, OfRowsThatAreNotAligned) {
  expect_statistics<64, half>({.padding = 3});
  expect_statistics<64, float>({.frame = 0, .padding = 1});
}

}  // namespace
}  // namespace squat::test
