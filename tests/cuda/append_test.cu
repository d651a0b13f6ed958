// Exact rows on the device: what a decode step appends and counts, what copies and turns do, and which
// element the check at the door finds.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "device_array.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/cuda/kernels/append_step.cuh"
#include "squat/cuda/kernels/check_elements.cuh"
#include "squat/cuda/kernels/exact_rows.cuh"

namespace squat::test {
namespace {

constexpr int d = 96, heads = 3;
using Block = cuda::BlockLayout<d>;

/// A buffer of sink_blocks and tail_blocks blocks, and of some behind the ring, with garbage in it.
class Rows {
 public:
  Rows(int sink_blocks, int tail_blocks, int tail_first, int behind = 0)
      : exact_(std::vector<std::uint16_t>(
            static_cast<std::size_t>(heads * (sink_blocks + tail_blocks + behind) * Block::elements),
            0x1234)) {
    state.exact = exact_.data();
    state.overflow = exact_.data() + heads * (sink_blocks + tail_blocks) * Block::elements;
    state.sink_blocks = sink_blocks;
    state.tail_blocks = tail_blocks;
    state.tail_first = tail_first;
  }

  template <class T>
  float key(const cuda::ExactSlots &slots, int token, int head, int channel) const {
    return element<T>(slots, token, head, [&](int row) { return Block::key(row, channel); });
  }
  template <class T>
  float value(const cuda::ExactSlots &slots, int token, int head, int channel) const {
    return element<T>(slots, token, head, [&](int row) { return Block::value(row, channel); });
  }

  cuda::ExactSlots sinks() const { return cuda::sink_slots<d>(state, heads); }
  cuda::ExactSlots tail() const { return cuda::tail_slots<d>(state, heads); }

  cuda::LayerState state{};

 private:
  template <class T, class Place>
  float element(const cuda::ExactSlots &slots, int token, int head, Place &&place) const {
    const std::vector<std::uint16_t> elements = exact_.read();
    const auto offset = slots.block<d>(head, token) - exact_.data() + place(token % 16);
    const std::uint16_t bits = elements[static_cast<std::size_t>(offset)];
    return static_cast<float>(Eigen::numext::bit_cast<T>(bits));
  }

  DeviceArray<std::uint16_t> exact_;
};

template <class S>
std::vector<S> random_rows(int tokens) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<S> x(static_cast<std::size_t>(tokens * heads * d));
  for (S &element : x) element = static_cast<S>(normal(random));
  return x;
}

template <class S>
cuda::DeviceTensor<const S> tensor(const DeviceArray<S> &array) {
  return {array.data(), heads * d, d};
}

std::size_t at(int token, int head, int channel) {
  return static_cast<std::size_t>((token * heads + head) * d + channel);
}

class Append : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(Append, AStepAppendsATokenToEverySequenceAndCountsIt) {
  const std::vector<float> k = random_rows<float>(2), v = random_rows<float>(3);
  DeviceArray<float> keys(k), values(v);
  Rows first(1, 3, 32), second(0, 2, 0);
  first.state.tail = 20;
  first.state.position = 77;
  DeviceArray<cuda::LayerState> states(std::vector<cuda::LayerState>{first.state, second.state});
  DeviceArray<cuda::BatchEntry> batch(
      std::vector<cuda::BatchEntry>{{states.data(), 1, 1}, {states.data() + 1, 0, 1}});
  DeviceArray<std::uint32_t> errors(1);
  cuda::launch_append_step<d, half, float>(batch.data(), 2, heads, tensor(keys), tensor(values),
                                           errors.data(), nullptr);
  finish();
  const std::vector<cuda::LayerState> after = states.read();
  EXPECT_EQ(after[0].tail, 21);
  EXPECT_EQ(after[0].position, 78);
  EXPECT_EQ(after[1].tail, 1);
  EXPECT_EQ(errors.read()[0], 0u);
  for (int head = 0; head < heads; ++head) {
    for (int i = 0; i < d; i += 7) {
      EXPECT_EQ(first.key<half>(first.tail(), 20, head, i), half(k[at(1, head, i)]));
      EXPECT_EQ(first.value<half>(first.tail(), 20, head, i), half(v[at(1, head, i)]));
      EXPECT_EQ(second.key<half>(second.tail(), 0, head, i), half(k[at(0, head, i)]));
    }
  }
}

TEST_F(Append, AStepSaysThatAnElementIsBadAndTakesZero) {
  std::vector<bfloat16> k = random_rows<bfloat16>(1), v = k;
  k[at(0, 1, 5)] = std::numeric_limits<bfloat16>::quiet_NaN();
  v[at(0, 2, 8)] = bfloat16(1e6f);
  DeviceArray<bfloat16> keys(k), values(v);
  Rows rows(1, 2, 0);
  DeviceArray<cuda::LayerState> states(std::vector<cuda::LayerState>{rows.state});
  DeviceArray<cuda::BatchEntry> batch(std::vector<cuda::BatchEntry>{{states.data(), 0, 1}});
  DeviceArray<std::uint32_t> errors(1);
  cuda::launch_append_step<d, bfloat16, bfloat16>(batch.data(), 1, heads, tensor(keys), tensor(values),
                                                  errors.data(), nullptr);
  finish();
  EXPECT_EQ(errors.read()[0], cuda::bad_element);
  const cuda::ExactSlots tail = rows.tail();
  EXPECT_EQ(rows.key<bfloat16>(tail, 0, 1, 5), 0);
  EXPECT_EQ(rows.value<bfloat16>(tail, 0, 2, 8), 0);
  EXPECT_EQ(rows.key<bfloat16>(tail, 0, 1, 4), static_cast<float>(k[at(0, 1, 4)]));
}

TEST_F(Append, AStepDropsATokenThatHasNoSlot) {
  DeviceArray<half> keys(random_rows<half>(1));
  Rows rows(0, 2, 16);
  rows.state.tail = 32;
  const cuda::ExactSlots tail = rows.tail();
  const float oldest = rows.key<half>(tail, 0, 0, 0);
  DeviceArray<cuda::LayerState> states(std::vector<cuda::LayerState>{rows.state});
  DeviceArray<cuda::BatchEntry> batch(std::vector<cuda::BatchEntry>{{states.data(), 0, 1}});
  DeviceArray<std::uint32_t> errors(1);
  cuda::launch_append_step<d, half, half>(batch.data(), 1, heads, tensor(keys), tensor(keys),
                                          errors.data(), nullptr);
  finish();
  EXPECT_EQ(errors.read()[0], cuda::tail_full);
  EXPECT_EQ(states.read()[0].tail, 32);
  EXPECT_EQ(rows.key<half>(tail, 0, 0, 0), oldest);
}

/// Appends rows to one sequence, whose state counts them already.
template <class S>
void append(const Rows &rows, const DeviceArray<S> &k, const DeviceArray<S> &v, int first_row,
            int tokens, int sinks) {
  DeviceArray<cuda::LayerState> states(std::vector<cuda::LayerState>{rows.state});
  DeviceArray<cuda::BatchEntry> batch(
      std::vector<cuda::BatchEntry>{{states.data(), first_row, tokens, sinks}});
  cuda::launch_append_rows<d, half, S>(batch.data(), 1, tokens, heads, tensor(k), tensor(v), nullptr);
  finish();
}

TEST_F(Append, RowsAndCopiesOfThemGoToAnySlots) {
  constexpr int tokens = 50;
  const std::vector<half> k = random_rows<half>(tokens), v = random_rows<half>(tokens + 1);
  DeviceArray<half> keys(k), values(v);
  Rows ring(2, 5, 64), copy(1, 4, 0);
  const cuda::ExactSlots from = ring.tail(), to = copy.tail();
  // Rows 3 to 49 to tokens 9 to 55 of a ring that wraps behind 16 of them, tokens 12 to 49 of it to 5
  // to 42.
  ring.state.tail = 9 + 47;
  append(ring, keys, values, 3, 47, 0);
  cuda::launch_copy_rows<d>(from, 12, 38, heads, to, 5, nullptr);
  finish();
  const float untouched = copy.key<half>(to, 4, 0, 0);
  for (int token = 0; token < 47; ++token) {
    const int i = (token * 13) % d, head = token % heads;
    EXPECT_EQ(ring.key<half>(from, 9 + token, head, i), k[at(3 + token, head, i)]);
    EXPECT_EQ(ring.value<half>(from, 9 + token, head, i), v[at(3 + token, head, i)]);
    if (token < 3 || token >= 41) continue;
    EXPECT_EQ(copy.key<half>(to, 5 + token - 3, head, i), k[at(3 + token, head, i)]);
    EXPECT_EQ(copy.value<half>(to, 5 + token - 3, head, i), v[at(3 + token, head, i)]);
  }
  for (const int token : {0, 4, 43, 63}) EXPECT_EQ(copy.key<half>(to, token, 1, 9), untouched);
  for (const int token : {8, 56, 79}) EXPECT_EQ(ring.value<half>(from, token, 2, 9), untouched);
}

TEST_F(Append, RowsFillSinksAndRingAndGoBehindIt) {
  constexpr int tokens = 150, sinks = 19;
  const std::vector<half> k = random_rows<half>(tokens), v = random_rows<half>(tokens + 1);
  DeviceArray<half> keys(k), values(v);
  Rows rows(2, 4, 32, 5);
  rows.state.sinks = 3 + sinks;  // of which 3 were there
  rows.state.tail = tokens - sinks;
  append(rows, keys, values, 0, tokens, sinks);
  for (int token = 0; token < tokens; ++token) {
    const int i = (token * 13) % d, head = token % heads;
    const bool sink = token < sinks;
    const cuda::ExactSlots slots = sink ? rows.sinks() : rows.tail();
    const int place = sink ? 3 + token : token - sinks;
    EXPECT_EQ(rows.key<half>(slots, place, head, i), k[at(token, head, i)]) << token;
    EXPECT_EQ(rows.value<half>(slots, place, head, i), v[at(token, head, i)]) << token;
  }
}

TEST_F(Append, WhatPackingLeavesBehindTheRingMovesIntoIt) {
  constexpr int tokens = 150, group = 32, residual = 24;  // 3 pages, and 54 tokens of a ring for 64
  const std::vector<half> k = random_rows<half>(tokens);
  DeviceArray<half> keys(k);
  Rows rows(1, 4, 16, 6);
  rows.state.tail = tokens;
  append(rows, keys, keys, 0, tokens, 0);
  std::vector<std::uint8_t> memory(3);
  std::vector<cuda::PageEntry> entries(4);
  for (int page = 0; page < 3; ++page) entries[static_cast<std::size_t>(page)].data = memory.data();
  DeviceArray<cuda::PageEntry> table(entries);
  rows.state.pages = table.data();
  rows.state.page_capacity = 4;
  DeviceArray<cuda::LayerState> states(std::vector<cuda::LayerState>{rows.state});
  DeviceArray<cuda::BatchEntry> batch(std::vector<cuda::BatchEntry>{{states.data(), 0, tokens, 0}});
  cuda::CodingTables learnt{};
  learnt.learnt = 1;
  DeviceArray<cuda::CodingTables> codings(std::vector<cuda::CodingTables>{learnt});
  const cuda::PackCall call{.batch = batch.data(),
                            .entries = 1,
                            .most_pages = 3,
                            .kv_heads = heads,
                            .residual = residual,
                            .codings = codings.data(),
                            .coding = Coding::plain,
                            .fit = AffineFit::minmax,
                            .values = ValueCoding::plain};
  cuda::launch_keep_overflow<d, group>(call, 6, nullptr);
  cuda::launch_finish_call<group>(call, nullptr);
  finish();
  rows.state = states.read()[0];
  EXPECT_EQ(rows.state.tail, tokens - 3 * group);
  EXPECT_EQ(rows.state.paged_tokens, 3 * group);
  for (int token = 0; token < rows.state.tail; ++token) {
    for (int head = 0; head < heads; ++head) {
      EXPECT_EQ(rows.key<half>(rows.tail(), token, head, token % d),
                k[at(3 * group + token, head, token % d)])
          << token;
    }
  }
}

TEST_F(Append, TurnsTheKeysOfSomeTokens) {
  for (const RotaryPairs pairs : {RotaryPairs::halves, RotaryPairs::interleaved}) {
    RotaryTable table{.pairs = pairs};
    for (int i = 0; i < 40; ++i)
      table.inverse_frequencies.push_back(std::pow(1e4f, -static_cast<float>(i) / 40));
    DeviceArray<float> frequencies(table.inverse_frequencies);
    cuda::TileTables tables{};
    tables.inverse_frequencies = frequencies.data();
    tables.pairs = 40;
    tables.interleaved = pairs == RotaryPairs::interleaved;
    const std::vector<half> k = random_rows<half>(30);
    DeviceArray<half> keys(k);
    Rows rows(1, 2, 16);
    const cuda::ExactSlots tail = rows.tail();
    rows.state.tail = 30;
    append(rows, keys, keys, 0, 30, 0);
    cuda::launch_turn_rows<d, half>(tail, 4, 20, heads, tables, -98765, nullptr);
    finish();
    for (const int token : {0, 3, 4, 15, 16, 23, 24}) {
      std::vector<float> row(d);
      for (int i = 0; i < d; ++i)
        row[static_cast<std::size_t>(i)] = static_cast<float>(k[at(token, 1, i)]);
      if (token >= 4 && token < 24) Turn(table, -98765).apply(row.data());
      for (int i = 0; i < d; ++i) {
        EXPECT_NEAR(rows.key<half>(tail, token, 1, i), row[static_cast<std::size_t>(i)], 2e-3);
      }
      EXPECT_EQ(rows.value<half>(tail, token, 1, 3), k[at(token, 1, 3)]);
    }
  }
}

template <class S>
unsigned long long first_bad(const std::vector<S> &elements, int offset) {
  std::vector<S> moved(static_cast<std::size_t>(offset), S(0));
  moved.insert(moved.end(), elements.begin(), elements.end());
  DeviceArray<S> array(moved);
  DeviceArray<unsigned long long> found(std::vector<unsigned long long>{cuda::none_bad});
  const cuda::DeviceTensor<const S> view{array.data() + offset, heads * d, d};
  cuda::launch_count_bad<S>(view, static_cast<long long>(elements.size()) / (heads * d), heads, d,
                            found.data(), nullptr);
  finish();
  return found.read()[0];
}

TEST_F(Append, TheFirstBadElementIsFound) {
  for (const int offset : {0, 1}) {  // rows that are aligned to 16 bytes, and not
    std::vector<float> x = random_rows<float>(100);
    EXPECT_EQ(first_bad(x, offset), cuda::none_bad);
    x[at(99, 2, d - 1)] = -std::numeric_limits<float>::infinity();
    EXPECT_EQ(first_bad(x, offset), at(99, 2, d - 1));
    x[at(40, 1, 3)] = 65505.0f;
    x[at(40, 1, 4)] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(first_bad(x, offset), at(40, 1, 3));
    std::vector<half> y = random_rows<half>(10);
    y[at(1, 0, 0)] = half(65504.0f);
    EXPECT_EQ(first_bad(y, offset), cuda::none_bad);
    y[at(7, 2, 50)] = std::numeric_limits<half>::infinity();
    EXPECT_EQ(first_bad(y, offset), at(7, 2, 50));
    std::vector<bfloat16> z = random_rows<bfloat16>(10);
    z[at(2, 2, 2)] = bfloat16(1e5f);
    EXPECT_EQ(first_bad(z, offset), at(2, 2, 2));
  }
}

}  // namespace
}  // namespace squat::test
