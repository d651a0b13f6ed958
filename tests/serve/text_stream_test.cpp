// Text is shown in whole characters, and not beyond a text that it ends before.

#include "text_stream.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace engine::serve::test::text_stream_test {
namespace {

std::vector<std::string> shown(std::vector<std::string> stops, const std::vector<std::string> &pieces) {
  TextStream stream(std::move(stops));
  std::vector<std::string> text;
  for (const std::string &piece : pieces) text.push_back(stream.push(piece));
  text.push_back(stream.rest());
  return text;
}

using Texts = std::vector<std::string>;

TEST(TextStreams, HoldBackWhatIsNoCharacterYet) {
  EXPECT_EQ(shown({}, {"a\xc3", "\xa9", "\xf0\x9f", "\x99\x82!", "\xe2\x82"}),
            (Texts{"a", "\xc3\xa9", "", "\xf0\x9f\x99\x82!", "", "\xe2\x82"}));
}

TEST(TextStreams, PassOnBytesThatAreNoCharacter) {
  EXPECT_EQ(shown({}, {"\x80\x80\x80\x80", "\xff", "x"}), (Texts{"\x80\x80\x80\x80", "\xff", "x", ""}));
}

TEST(TextStreams, HoldBackWhatMayBeAStop) {
  EXPECT_EQ(shown({"###", "END"}, {"one #", "# two E", "N", "D three"}),
            (Texts{"one ", "## two ", "", "", ""}));
  EXPECT_EQ(shown({"###"}, {"one ##"}), (Texts{"one ", "##"}));
}

TEST(TextStreams, EndBeforeTheFirstStop) {
  TextStream stream({"b", "ab"});
  EXPECT_EQ(stream.push("xxab"), "xx");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.push("more"), "");
  EXPECT_EQ(stream.rest(), "");
}

}  // namespace
}  // namespace engine::serve::test::text_stream_test
