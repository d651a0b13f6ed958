// Every field of a GGUF header that lies is named in the refusal.

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "dequantize.hpp"
#include "engine/small_model.hpp"
#include "gguf.hpp"

namespace engine::test::header_test {
namespace {

/// The fields of a file with one value and one tensor.
struct Fields {
  std::uint32_t magic = 0x46554747, version = 3;
  std::uint64_t tensors = 1, values = 1;
  std::uint64_t key_size = 17;
  std::uint32_t value_type = 4, alignment = 32;
  std::uint32_t dimensions = 2;
  std::uint64_t inputs = 32, outputs = 3;
  std::uint32_t tensor_type = 0;
  std::uint64_t offset = 0;
};

std::vector<std::byte> file_of(const Fields &f) {
  GgufWriter file;
  file.put(f.magic);
  file.put(f.version);
  file.put(f.tensors);
  file.put(f.values);
  file.put(f.key_size);
  for (char c : std::string("general.alignment")) file.put(c);
  file.put(f.value_type);
  file.put(f.alignment);
  file.put_string("w");
  file.put(f.dimensions);
  file.put(f.inputs);
  file.put(f.outputs);
  file.put(f.tensor_type);
  file.put(f.offset);
  file.align(32);
  for (int i = 0; i < 96; ++i) file.put(static_cast<float>(i));
  return file.take();
}

/// What a file is refused with; empty where it is not.
std::string refusal(const Fields &fields) {
  try {
    const Gguf file(file_of(fields));
    return {};
  } catch (const FileError &error) {
    return error.what();
  }
}

constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();

TEST(GgufHeader, AnHonestOneIsRead) {
  const Gguf file(file_of({}));
  const std::vector<float> w = dequantize(file.tensor("w", {32, 3}));
  ASSERT_EQ(w.size(), 96u);
  EXPECT_EQ(w[95], 95);
  EXPECT_THROW(file.tensor("w", {3, 32}), FileError);
  EXPECT_THROW(file.tensor("v", {32, 3}), FileError);
  EXPECT_THROW(file.string("general.alignment"), FileError);
  EXPECT_THROW(file.number("general.name"), FileError);
  EXPECT_THROW(file.integer("general.alignment", 64, 128), FileError);
}

TEST(GgufHeader, LyingFieldsAreNamed) {
  EXPECT_EQ(refusal({.magic = 0x47475546}), "not a GGUF file");
  EXPECT_EQ(refusal({.version = 1}), "GGUF version 1 is not supported (2 and 3 are)");
  EXPECT_EQ(refusal({.tensors = huge}), "the file is shorter than its tensors say");
  EXPECT_EQ(refusal({.values = huge}), "the file is shorter than its metadata say");
  EXPECT_EQ(refusal({.key_size = huge}), "the file is truncated");
  EXPECT_EQ(refusal({.value_type = 13}), "metadata type 13 is unknown");
  EXPECT_NE(refusal({.alignment = 0}).find("general.alignment is 0"), std::string::npos);
  EXPECT_EQ(refusal({.dimensions = 0}), "tensor w has 0 dimensions, must have 1 to 4");
  EXPECT_EQ(refusal({.dimensions = 5}), "tensor w has 5 dimensions, must have 1 to 4");
  EXPECT_EQ(refusal({.inputs = 0}), "tensor w has an impossible shape");
  EXPECT_EQ(refusal({.outputs = huge}), "tensor w has an impossible shape");
  EXPECT_EQ(refusal({.inputs = 0xffffffff, .outputs = 0xffffffff}), "tensor w is truncated");
  EXPECT_EQ(refusal({.outputs = 4}), "tensor w is truncated");
  EXPECT_NE(refusal({.tensor_type = 31}).find("tensor type 31 is not supported"), std::string::npos);
  EXPECT_NE(refusal({.inputs = 33, .tensor_type = 8}).find("must be a multiple of 32"),
            std::string::npos);
  EXPECT_EQ(refusal({.offset = huge}), "tensor w begins behind the end of the file");
}

TEST(GgufHeader, AFolderIsNoFile) {
  EXPECT_THROW(Gguf::open(std::filesystem::temp_directory_path().string()), FileError);
  EXPECT_THROW(Gguf::open(""), FileError);
}

}  // namespace
}  // namespace engine::test::header_test
