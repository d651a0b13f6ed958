// The small model as a file, for the tests of programs.

#include "engine/small_model.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "gguf.hpp"

namespace engine::serve::test::small_model_test {
namespace {

TEST(SmallModel, IsWrittenForPrograms) {
  const char *path = std::getenv("SQUAT_SMALL_MODEL");
  if (path == nullptr) GTEST_SKIP() << "SQUAT_SMALL_MODEL names no file";
  const std::vector<std::byte> bytes = engine::test::small_model();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  EXPECT_NO_THROW(Gguf::open(path).tensor("output_norm.weight", {32}));
}

}  // namespace
}  // namespace engine::serve::test::small_model_test
