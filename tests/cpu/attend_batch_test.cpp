// How the attention of a batch is cut.

#include "squat/cpu/attend_batch.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>

namespace squat::test::attend_batch_test {
namespace {

struct Call {
  Index tokens = 0;
  std::span<const PageView> pages{};
};

/// Few rows take more pages together than many, and may ask for more memory.
TEST(AttendBatch, MakesRoomForTheBlockThatAsksForMost) {
  const auto bytes = [](Index rows) {
    return static_cast<std::size_t>(rows > cpu::few_rows ? rows : 1000 - 20 * rows);
  };
  cpu::AttendBatch<Call> batch;
  batch.cut(std::array{Call{100}, Call{40}}, 2, 1);
  EXPECT_EQ(batch.most_bytes(bytes), 100u);
  batch.cut(std::array{Call{100}, Call{20}, Call{5}, Call{7}}, 2, 1);
  EXPECT_EQ(batch.most_bytes(bytes), 900u);
  batch.cut(std::array{Call{130}}, 2, 1);  // whose last block has two rows
  EXPECT_EQ(batch.most_bytes(bytes), 960u);
  batch.cut(std::array{Call{8}, Call{3}}, 2, 4);
  EXPECT_EQ(batch.most_bytes(bytes), 760u);
  batch.cut({}, 2, 4);
  EXPECT_EQ(batch.most_bytes(bytes), 0u);
}

}  // namespace
}  // namespace squat::test::attend_batch_test
