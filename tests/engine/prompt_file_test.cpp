// A prompt is the start of a text file.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/small_model.hpp"
#include "gguf.hpp"
#include "tokenizer.hpp"

namespace engine::test::prompt_file_test {
namespace {

/// A file that is there as long as the test runs.
class PromptFile : public testing::Test {
 protected:
  ~PromptFile() override { std::filesystem::remove(path_); }

  void write(const std::string &text) { std::ofstream(path_, std::ios::binary) << text; }

  std::string refusal(const std::string &path) const {
    try {
      encode_file(path, tokenizer_);
    } catch (const std::invalid_argument &error) {
      return error.what();
    }
    return {};
  }

  const Gguf file_{small_model()};
  const Tokenizer tokenizer_{file_};
  const std::string path_ =
      testing::TempDir() + testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(PromptFile, IsCutToItsFirstTokens) {
  write("then the inn");
  const std::vector<int> whole = tokenizer_.encode("then the inn");
  ASSERT_EQ(whole.size(), 6u);
  EXPECT_EQ(encode_file(path_, tokenizer_), whole);
  EXPECT_EQ(encode_file(path_, tokenizer_, 4), std::vector<int>(whole.begin(), whole.begin() + 4));
  EXPECT_EQ(encode_file(path_, tokenizer_, 1000), whole);
}

TEST_F(PromptFile, IsNamedWhereItCannotBeUsed) {
  EXPECT_EQ(refusal(path_), "cannot open " + path_);
  write("");
  EXPECT_EQ(refusal(path_), path_ + " is empty");
}

}  // namespace
}  // namespace engine::test::prompt_file_test
