// Pages that the device packs agree with the CPU's quantizers on the same tokens, except where a number
// lies so near a tie that the order of a sum decides.

#include <gtest/gtest.h>

#include <iostream>

#include "packed_tail.hpp"

namespace squat::test {
namespace {

void expect_agreement(const Difference &difference) {
  constexpr double allowed = 2e-3;  // of the numbers: choices between two that are as good
  EXPECT_GT(difference.codes, 0);
  EXPECT_LE(static_cast<double>(difference.codes_off), allowed * static_cast<double>(difference.codes))
      << difference.codes_off << " of " << difference.codes << " codes";
  EXPECT_LE(static_cast<double>(difference.scales_off), allowed * static_cast<double>(difference.scales))
      << difference.scales_off << " of " << difference.scales << " zeros and scales";
  EXPECT_LE(difference.largest, 1);
  EXPECT_EQ(difference.spaces_off, 0);
  std::cout << "  " << difference.codes_off << " of " << difference.codes << " codes differ, "
            << difference.scales_off << " of " << difference.scales << " zeros and scales\n";
}

template <class Layout>
void expect_pages(const PackCase &options) {
  PackedTail<Layout> tail(options);
  EXPECT_LT(tail.unpacked_off(), 1e-3);
  const Difference keys = tail.keys();
  if (options.coding == Coding::subspace && Layout::KeyBits < 8) {
    EXPECT_EQ(keys.in_basis, (tail.pages - options.strange) * tail.heads);
  }
  expect_agreement(keys);
  const Difference values = tail.values();
  if (options.values == ValueCoding::symmetric) EXPECT_EQ(values.about_mean, tail.pages);
  expect_agreement(values);
}

class Pack : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
};

using Pages2 = cuda::PageLayout<128, 128, 2, 2>;
using Pages3 = cuda::PageLayout<64, 32, 3, 3>;
using Pages4 = cuda::PageLayout<96, 64, 4, 4>;
using Pages8 = cuda::PageLayout<64, 128, 8, 8>;
using SmallPages2 = cuda::PageLayout<64, 32, 2, 2>;
using WidePages = cuda::PageLayout<256, 128, 2, 4>;

TEST_F(Pack, SubspaceInATileFrame) {
  expect_pages<Pages2>({});
  expect_pages<Pages3>({.tile_pages = 4});
  expect_pages<Pages4>({});
  expect_pages<Pages8>({});
  expect_pages<WidePages>({});
}

TEST_F(Pack, SubspaceOfInterleavedPairsAndPartOfTheChannels) {
  expect_pages<Pages2>({.pairs = RotaryPairs::interleaved});
  expect_pages<SmallPages2>({.pairs = RotaryPairs::interleaved, .turning = 50});
  expect_pages<SmallPages2>({.turning = 75});
}

TEST_F(Pack, SubspaceInTheFrameKeysComeIn) {
  expect_pages<Pages2>({.tile_pages = 0});
  expect_pages<SmallPages2>({.fit = AffineFit::minmax, .tile_pages = 0});
}

TEST_F(Pack, PagesThatTheBasisDoesNotSuitAreCodedInChannels) {
  expect_pages<Pages2>({.strange = true});
  expect_pages<SmallPages2>({.tile_pages = 0, .strange = true});
}

TEST_F(Pack, Plain) {
  const PackCase kivi{
      .coding = Coding::plain, .fit = AffineFit::minmax, .values = ValueCoding::plain, .tile_pages = 0};
  expect_pages<Pages2>(kivi);
  expect_pages<Pages3>(kivi);
  expect_pages<Pages4>(kivi);
  expect_pages<Pages8>(kivi);
  expect_pages<Pages2>({.coding = Coding::plain, .values = ValueCoding::plain});
}

TEST_F(Pack, Orthogonal) {
  expect_pages<Pages2>({.coding = Coding::orthogonal, .tile_pages = 0});
  expect_pages<Pages2>({.coding = Coding::orthogonal});
  expect_pages<Pages3>({.coding = Coding::orthogonal, .orthogonal = {.block = 2}});
  expect_pages<Pages4>({.coding = Coding::orthogonal, .orthogonal = {.block = 8}});
  expect_pages<SmallPages2>({.coding = Coding::orthogonal,
                             .fit = AffineFit::minmax,
                             .tile_pages = 0,
                             .orthogonal = {.rank = 32, .block = 32, .order = false}});
  expect_pages<Pages8>({.coding = Coding::orthogonal, .orthogonal = {.block = 64}});
}

TEST_F(Pack, SixteenBitsAreWhatWasAppended) {
  const PackCase exact{.coding = Coding::plain, .tile_pages = 0};
  const PackedTail<cuda::PageLayout<128, 128, 16, 16>> wide(exact);
  EXPECT_EQ(wide.exact_off(), 0);
  const PackedTail<cuda::PageLayout<96, 32, 16, 16>> narrow(exact);
  EXPECT_EQ(narrow.exact_off(), 0);
}

TEST_F(Pack, CountsWhatItPacked) {
  const PackedTail<SmallPages2> tail({});
  const cuda::LayerState &state = tail.state();
  EXPECT_EQ(state.page_count, tail.pages);
  EXPECT_EQ(state.paged_tokens, tail.pages * tail.group);
  EXPECT_EQ(state.tail, tail.window);
  const int ring = state.tail_blocks * 16;
  EXPECT_EQ(state.tail_first, (ring - 48 + tail.pages * tail.group) % ring);
}

}  // namespace
}  // namespace squat::test
