// Blocks of quantised weights mean what their formulas say; engine/weight_types_as_gguf asks the Python
// package too.

#include "dequantize.hpp"

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "gguf.hpp"

namespace engine::test::dequantize_test {
namespace {

/// A block of bytes without a pattern, but for float16 scales at the places given.
struct Bytes {
  Bytes(std::size_t size, std::initializer_list<std::size_t> scales) : bytes(size) {
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * i * 37 + i * 11 + 5);
    for (std::size_t at : scales) {
      const Eigen::half scale(.25f + .001f * static_cast<float>(at));
      std::memcpy(&bytes[at], &scale, 2);
    }
  }

  int at(std::size_t place) const { return std::to_integer<int>(bytes[place]); }
  float signed_at(std::size_t place) const {
    return static_cast<float>(static_cast<std::int8_t>(at(place)));
  }
  float half_at(std::size_t place) const {
    Eigen::half value;
    std::memcpy(&value, &bytes[place], 2);
    return static_cast<float>(value);
  }
  /// `count` bits from bit `first` of the bytes that begin at `place`.
  float bits(std::size_t place, std::size_t first, int count) const {
    int value = 0;
    for (int i = 0; i < count; ++i) {
      const std::size_t bit = first + static_cast<std::size_t>(i);
      value |= (at(place + bit / 8) >> bit % 8 & 1) << i;
    }
    return static_cast<float>(value);
  }

  std::vector<std::byte> bytes;
};

void expect_elements(TensorType type, const Bytes &block,
                     const std::function<float(std::size_t)> &expected) {
  const Block size = block_of(type);
  ASSERT_EQ(block.bytes.size(), size.bytes);
  // Two blocks alike: the second begins where the first ends.
  std::vector<std::byte> twice = block.bytes;
  twice.insert(twice.end(), block.bytes.begin(), block.bytes.end());
  const Tensor tensor{type, {2 * size.elements}, twice};
  const std::vector<float> all = dequantize(tensor);
  ASSERT_EQ(all.size(), 2 * size.elements);
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_FLOAT_EQ(all[i], expected(i % size.elements)) << i;
  std::vector<float> second(size.elements);
  dequantize(tensor, size.elements, second);
  EXPECT_TRUE(std::equal(second.begin(), second.end(), all.begin()));
}

TEST(Dequantize, HalvesAreExact) {
  const std::vector<float> values = {0, -1.5f, 65504, 0x1p-24f};
  std::vector<std::byte> bytes(2 * values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Eigen::half value(values[i]);
    std::memcpy(&bytes[2 * i], &value, 2);
  }
  EXPECT_EQ(dequantize({TensorType::f16, {values.size()}, bytes}), values);
}

TEST(Dequantize, BrainFloatsAreUpperHalvesOfFloats) {
  const std::vector<float> values = {0, -1.5f, 0x1.02p100f, 0x1p-126f};
  std::vector<std::byte> bytes(2 * values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    std::memcpy(&bytes[2 * i], reinterpret_cast<const std::byte *>(&values[i]) + 2, 2);
  EXPECT_EQ(dequantize({TensorType::bf16, {values.size()}, bytes}), values);
}

/// Elements i and i + 16 of 32 share byte i.
float nibble(const Bytes &block, std::size_t place, std::size_t i) {
  return block.bits(place, i % 16 * 8 + i / 16 * 4, 4);
}

TEST(Dequantize, BlocksOfThirtyTwo) {
  const Bytes a(18, {0}), b(20, {0, 2}), c(22, {0}), d(24, {0, 2}), e(34, {0});
  expect_elements(TensorType::q4_0, a,
                  [&](std::size_t i) { return a.half_at(0) * (nibble(a, 2, i) - 8); });
  expect_elements(TensorType::q4_1, b,
                  [&](std::size_t i) { return b.half_at(0) * nibble(b, 4, i) + b.half_at(2); });
  expect_elements(TensorType::q5_0, c, [&](std::size_t i) {
    return c.half_at(0) * (nibble(c, 6, i) + 16 * c.bits(2, i, 1) - 16);
  });
  expect_elements(TensorType::q5_1, d, [&](std::size_t i) {
    return d.half_at(0) * (nibble(d, 8, i) + 16 * d.bits(4, i, 1)) + d.half_at(2);
  });
  expect_elements(TensorType::q8_0, e, [&](std::size_t i) { return e.half_at(0) * e.signed_at(2 + i); });
}

/// The 6 bits of run `run`'s scale (`which` 0) or least value (1), in the 12 bytes from 4 on.
float run_range(const Bytes &block, std::size_t run, std::size_t which) {
  const std::size_t place = 4 + 4 * which;
  if (run < 4) return block.bits(place + run, 0, 6);
  return block.bits(4 + 4 + run, 4 * which, 4) + 16 * block.bits(place + run - 4, 6, 2);
}

/// Elements of run r of 32: nibble r % 2 of the bytes of pair r / 2.
float run_nibble(const Bytes &block, std::size_t place, std::size_t i) {
  return block.bits(place + i / 64 * 32 + i % 32, i / 32 % 2 * 4, 4);
}

TEST(Dequantize, BlocksOfTwoHundredAndFiftySix) {
  const Bytes a(144, {0, 2}), b(176, {0, 2}), c(210, {208});
  const auto ranged = [](const Bytes &block, std::size_t i, float code) {
    return block.half_at(0) * run_range(block, i / 32, 0) * code -
           block.half_at(2) * run_range(block, i / 32, 1);
  };
  expect_elements(TensorType::q4_k, a,
                  [&](std::size_t i) { return ranged(a, i, run_nibble(a, 16, i)); });
  expect_elements(TensorType::q5_k, b, [&](std::size_t i) {
    return ranged(b, i, run_nibble(b, 48, i) + 16 * b.bits(16 + i % 32, i / 32, 1));
  });
  expect_elements(TensorType::q6_k, c, [&](std::size_t i) {
    // half i / 128, run r = i / 32 % 4, column i % 32
    const std::size_t part = i / 128, run = i / 32 % 4, column = i % 32;
    const float low = c.bits(part * 64 + run % 2 * 32 + column, run / 2 * 4, 4);
    const float upper = c.bits(128 + part * 32 + column, 2 * run, 2);
    return c.half_at(208) * c.signed_at(192 + part * 8 + run * 2 + column / 16) *
           (low + 16 * upper - 32);
  });
}

TEST(WeightTypes, AreWhatAnotherReaderMakesOfThem) {
  const char *path = std::getenv("SQUAT_WEIGHT_TYPES"), *names = std::getenv("SQUAT_WEIGHT_TYPE_NAMES");
  if (path == nullptr || names == nullptr) GTEST_SKIP() << "SQUAT_WEIGHT_TYPES names no file";
  const Gguf file = Gguf::open(path);
  std::istringstream list(names);
  for (std::string name; std::getline(list, name, ',');) {
    const std::vector<float> read = dequantize(file.tensor(name, {512, 8}));
    const std::vector<float> expected = dequantize(file.tensor(name + ".expected", {512, 8}));
    for (std::size_t i = 0; i < read.size(); ++i)
      ASSERT_NEAR(read[i], expected[i], 1e-6f * std::abs(expected[i]) + 1e-6f) << name << ' ' << i;
  }
}

}  // namespace
}  // namespace engine::test::dequantize_test
