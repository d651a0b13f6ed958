// What a rotary embedding, a tile frame and a basis become on the device.

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cmath>
#include <string>
#include <vector>

#include "squat/coding/rotary.hpp"
#include "squat/core/error.hpp"
#include "squat/cuda/coding/coding_tables.hpp"

namespace squat::test {
namespace {

// Refused before anything is allocated: needs no device.
TEST(DeviceTiles, AFrameOfMoreModesThanKernelsHoldIsRefused) {
  RotaryTable table;
  for (int i = 0; i < 128; ++i) {
    table.inverse_frequencies.push_back(std::pow(1e4f, -static_cast<float>(i) / 128));
  }
  try {
    cuda::DeviceTiles tiles(&table, 1024, 128);
    FAIL() << "1024 rows of head_dim 256 have more than 64 modes";
  } catch (const Error &error) {
    EXPECT_NE(std::string(error.what()).find("tile_tokens is 1024"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("64"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace squat::test
