// Where codes lie in a page: every code has bits of its own, and together they fill their plane. Needs
// no device.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "squat/cuda/page/code_places.cuh"
#include "squat/cuda/page/page_layout.cuh"

namespace squat::cuda {
namespace {

/// Which bits of a plane codes have taken.
class TakenBits {
 public:
  explicit TakenBits(int bytes) : taken_(static_cast<std::size_t>(bytes) * 8, false) {}

  /// Whether all of the code's bits are in one byte of the plane, and nobody's yet.
  bool take(CodePlace at, int bits) {
    if (at.byte < 0 || at.bit < 0 || at.bit + bits > 8) return false;
    for (int i = 0; i < bits; ++i) {
      const auto bit = static_cast<std::size_t>(at.byte * 8 + at.bit + i);
      if (bit >= taken_.size() || taken_[bit]) return false;
      taken_[bit] = true;
    }
    return true;
  }
  bool full() const { return std::find(taken_.begin(), taken_.end(), false) == taken_.end(); }

 private:
  std::vector<bool> taken_;
};

TEST(CodePlaces, OfKeysAreAllDifferentAndFillThePlane) {
  for (int bits : {1, 2, 4, 8}) {
    for (int columns : {8, 16}) {
      for (int tokens : {32, 64, 128}) {
        SCOPED_TRACE(testing::Message() << bits << " bits, " << columns << " columns, " << tokens);
        TakenBits plane(tokens * columns * bits / 8);
        for (int token = 0; token < tokens; ++token) {
          for (int column = 0; column < columns; ++column) {
            ASSERT_TRUE(plane.take(key_place(bits, columns, token, column), bits))
                << "token " << token << ", column " << column;
          }
        }
        EXPECT_TRUE(plane.full());
      }
    }
  }
}

TEST(CodePlaces, OfValuesAreAllDifferentAndFillThePlane) {
  for (int bits : {1, 2, 4, 8}) {
    for (int tiles : {2, 4, 6, 8, 10, 12, 14, 16}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, " << tiles << " tiles");
      TakenBits plane(value_plane_bytes(bits, tiles));
      for (int channel = 0; channel < 16 * tiles; ++channel) {
        for (int token = 0; token < 16; ++token) {
          ASSERT_TRUE(plane.take(value_place(bits, tiles, channel, token), bits))
              << "channel " << channel << ", token " << token;
        }
      }
      EXPECT_EQ(plane.full(), tiles * bits % 4 == 0) << "only whole words of a lane have no gaps";
    }
  }
}

TEST(CodePlaces, OfScalesAreAllDifferent) {
  for (int count : {32, 64, 96, 128, 256}) {
    std::vector<bool> keys(static_cast<std::size_t>(count), false), values(keys);
    for (int i = 0; i < count; ++i) {
      keys.at(static_cast<std::size_t>(key_element(i))) = true;
      values.at(static_cast<std::size_t>(value_element(i))) = true;
    }
    EXPECT_EQ(std::count(keys.begin(), keys.end(), false), 0);
    EXPECT_EQ(std::count(values.begin(), values.end(), false), 0);
  }
  EXPECT_EQ(key_element(0), 0) << "the sign of the first scale names the KeySpace";
}

}  // namespace
}  // namespace squat::cuda
