#pragma once

// Reads GGUF files (version 2 and 3, little endian). A file is never trusted: every count, length,
// offset and type is checked against what the file holds before it is used.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace engine {

/// What is wrong with a model file.
class FileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Element types of tensors, numbered as in the file.
enum class TensorType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  bf16 = 30
};

/// What a type stores together: so many elements of a row in so many bytes.
struct Block {
  std::size_t elements;
  std::size_t bytes;
};

/// Throws FileError for a type that is none of TensorType's.
Block block_of(TensorType type);

struct Tensor {
  TensorType type{};
  std::vector<std::uint64_t> shape;  // fastest extent first
  std::span<const std::byte> bytes;  // of the file

  std::size_t elements() const;
};

using Strings = std::vector<std::string>;
using Numbers = std::vector<double>;
using Value = std::variant<double, std::string, Numbers, Strings>;

class Gguf {
 public:
  /// Reads a file into memory. Throws FileError.
  static Gguf open(const std::string &path);

  /// Takes the bytes of a file. Throws FileError.
  explicit Gguf(std::vector<std::byte> bytes);

  // Tensors refer to the bytes: moved, never copied.
  Gguf(Gguf &&) = default;
  Gguf &operator=(Gguf &&) = default;

  bool has(const std::string &key) const { return values_.contains(key); }

  /// A metadata value of that kind; throws FileError where it is missing or of another kind.
  double number(const std::string &key) const;
  const std::string &string(const std::string &key) const;
  const Numbers &numbers(const std::string &key) const;
  const Strings &strings(const std::string &key) const;

  /// A number that has to be a whole one from `least` to `most`.
  int integer(const std::string &key, int least, int most) const;
  double number_or(const std::string &key, double otherwise) const;
  int integer_or(const std::string &key, int otherwise, int least, int most) const;

  /// A tensor of that name and shape (fastest extent first); throws FileError.
  const Tensor &tensor(const std::string &name, const std::vector<std::uint64_t> &shape) const;
  bool has_tensor(const std::string &name) const { return tensors_.contains(name); }

 private:
  void read();

  std::vector<std::byte> bytes_;
  std::map<std::string, Value> values_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace engine
