#include "gguf.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>

namespace engine {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are read in place");

/// Reads forward through the file and refuses to leave it.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class Scalar>
  Scalar take() {
    Scalar scalar;
    std::memcpy(&scalar, skip(sizeof scalar).data(), sizeof scalar);
    return scalar;
  }

  std::string take_string() {
    const auto text = skip(take<std::uint64_t>());
    return {reinterpret_cast<const char *>(text.data()), text.size()};
  }

  /// A count of things of at least `least_bytes` bytes each, all of which are still to come.
  std::size_t take_count(std::size_t least_bytes, const char *what) {
    const auto count = take<std::uint64_t>();
    if (count > (bytes_.size() - position_) / least_bytes) {
      throw FileError(std::string("the file is shorter than its ") + what + " say");
    }
    return static_cast<std::size_t>(count);
  }

  std::span<const std::byte> skip(std::uint64_t count) {
    if (count > bytes_.size() - position_) throw FileError("the file is truncated");
    const auto piece = bytes_.subspan(position_, static_cast<std::size_t>(count));
    position_ += piece.size();
    return piece;
  }

  std::size_t position() const { return position_; }

 private:
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

constexpr std::uint32_t string_type = 8, array_type = 9;

/// A scalar of metadata type `type` as a number.
double take_number(Reader &reader, std::uint32_t type) {
  switch (type) {
    case 0:
    case 7:
      return reader.take<std::uint8_t>();
    case 1:
      return reader.take<std::int8_t>();
    case 2:
      return reader.take<std::uint16_t>();
    case 3:
      return reader.take<std::int16_t>();
    case 4:
      return reader.take<std::uint32_t>();
    case 5:
      return reader.take<std::int32_t>();
    case 6:
      return static_cast<double>(reader.take<float>());
    case 10:
      return static_cast<double>(reader.take<std::uint64_t>());
    case 11:
      return static_cast<double>(reader.take<std::int64_t>());
    case 12:
      return reader.take<double>();
    default:
      throw FileError("metadata type " + std::to_string(type) + " is unknown");
  }
}

Value take_value(Reader &reader) {
  const auto type = reader.take<std::uint32_t>();
  if (type == string_type) return reader.take_string();
  if (type != array_type) return take_number(reader, type);
  const auto element_type = reader.take<std::uint32_t>();
  if (element_type == array_type) throw FileError("metadata holds an array of arrays");
  if (element_type == string_type) {
    Strings strings(reader.take_count(sizeof(std::uint64_t), "strings"));
    for (std::string &string : strings) string = reader.take_string();
    return strings;
  }
  Numbers numbers(reader.take_count(1, "arrays"));
  for (double &number : numbers) number = take_number(reader, element_type);
  return numbers;
}

struct TensorEntry {
  std::string name;
  Tensor tensor;
  std::uint64_t offset = 0;
};

TensorEntry take_tensor(Reader &reader) {
  TensorEntry entry;
  entry.name = reader.take_string();
  const auto dimensions = reader.take<std::uint32_t>();
  if (dimensions < 1 || dimensions > 4) {
    throw FileError("tensor " + entry.name + " has " + std::to_string(dimensions) +
                    " dimensions, must have 1 to 4");
  }
  for (std::uint32_t i = 0; i < dimensions; ++i)
    entry.tensor.shape.push_back(reader.take<std::uint64_t>());
  entry.tensor.type = static_cast<TensorType>(reader.take<std::uint32_t>());
  entry.offset = reader.take<std::uint64_t>();
  return entry;
}

/// The size of a tensor in bytes, of which there cannot be more than `most`.
std::size_t checked_bytes(const TensorEntry &entry, std::size_t most) {
  const Block block = block_of(entry.tensor.type);
  std::uint64_t elements = 1;
  for (std::uint64_t extent : entry.tensor.shape) {
    if (extent == 0 || extent > std::numeric_limits<std::uint32_t>::max() ||
        elements > std::numeric_limits<std::uint64_t>::max() / extent) {
      throw FileError("tensor " + entry.name + " has an impossible shape");
    }
    elements *= extent;
  }
  if (entry.tensor.shape[0] % block.elements != 0) {
    throw FileError("tensor " + entry.name + " has rows of " + std::to_string(entry.tensor.shape[0]) +
                    " elements, must be a multiple of " + std::to_string(block.elements));
  }
  if (elements / block.elements > most / block.bytes)
    throw FileError("tensor " + entry.name + " is truncated");
  return static_cast<std::size_t>(elements / block.elements * block.bytes);
}

}  // namespace

Block block_of(TensorType type) {
  switch (type) {
    case TensorType::f32:
      return {1, 4};
    case TensorType::f16:
    case TensorType::bf16:
      return {1, 2};
    case TensorType::q4_0:
      return {32, 18};
    case TensorType::q4_1:
      return {32, 20};
    case TensorType::q5_0:
      return {32, 22};
    case TensorType::q5_1:
      return {32, 24};
    case TensorType::q8_0:
      return {32, 34};
    case TensorType::q4_k:
      return {256, 144};
    case TensorType::q5_k:
      return {256, 176};
    case TensorType::q6_k:
      return {256, 210};
  }
  throw FileError("tensor type " + std::to_string(static_cast<std::uint32_t>(type)) +
                  " is not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K "
                  "are)");
}

std::size_t Tensor::elements() const {
  std::size_t product = 1;
  for (std::uint64_t extent : shape) product *= static_cast<std::size_t>(extent);
  return product;
}

Gguf Gguf::open(const std::string &path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);  // refuses a directory
  if (error) throw FileError("cannot open " + path + ": " + error.message());
  std::ifstream in(path, std::ios::binary);
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  if (!in.read(reinterpret_cast<char *>(bytes.data()), static_cast<std::streamsize>(size))) {
    throw FileError("cannot read " + path);
  }
  try {
    return Gguf(std::move(bytes));
  } catch (const FileError &damage) {
    throw FileError(path + ": " + damage.what());
  }
}

Gguf::Gguf(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) { read(); }

void Gguf::read() {
  Reader reader(bytes_);
  if (reader.take<std::uint32_t>() != 0x46554747u) throw FileError("not a GGUF file");
  const auto version = reader.take<std::uint32_t>();
  if (version != 2 && version != 3) {
    throw FileError("GGUF version " + std::to_string(version) + " is not supported (2 and 3 are)");
  }
  const auto tensor_count = reader.take_count(1, "tensors");
  const auto value_count = reader.take_count(1, "metadata");
  for (std::size_t i = 0; i < value_count; ++i) {
    std::string key = reader.take_string();
    values_.insert_or_assign(std::move(key), take_value(reader));
  }
  std::vector<TensorEntry> entries;
  for (std::size_t i = 0; i < tensor_count; ++i) entries.push_back(take_tensor(reader));

  const auto alignment = static_cast<std::size_t>(integer_or("general.alignment", 32, 1, 1 << 20));
  const std::size_t data = (reader.position() + alignment - 1) / alignment * alignment;
  for (TensorEntry &entry : entries) {
    if (data > bytes_.size() || entry.offset > bytes_.size() - data) {
      throw FileError("tensor " + entry.name + " begins behind the end of the file");
    }
    const std::size_t first = data + static_cast<std::size_t>(entry.offset);
    const std::size_t size = checked_bytes(entry, bytes_.size() - first);
    entry.tensor.bytes = std::span<const std::byte>(bytes_).subspan(first, size);
    tensors_.insert_or_assign(std::move(entry.name), std::move(entry.tensor));
  }
}

namespace {

template <class Kind>
const Kind &value_as(const std::map<std::string, Value> &values, const std::string &key) {
  const auto found = values.find(key);
  if (found == values.end()) throw FileError("metadata " + key + " is missing");
  const auto *value = std::get_if<Kind>(&found->second);
  if (value == nullptr) throw FileError("metadata " + key + " is of another kind than expected");
  return *value;
}

}  // namespace

double Gguf::number(const std::string &key) const { return value_as<double>(values_, key); }
const std::string &Gguf::string(const std::string &key) const {
  return value_as<std::string>(values_, key);
}
const Numbers &Gguf::numbers(const std::string &key) const { return value_as<Numbers>(values_, key); }
const Strings &Gguf::strings(const std::string &key) const { return value_as<Strings>(values_, key); }

int Gguf::integer(const std::string &key, int least, int most) const {
  const double value = number(key);
  if (!(value >= least && value <= most) || value != std::floor(value)) {
    throw FileError("metadata " + key + " is " + std::to_string(value) + ", must be " +
                    std::to_string(least) + " to " + std::to_string(most));
  }
  return static_cast<int>(value);
}

double Gguf::number_or(const std::string &key, double otherwise) const {
  return has(key) ? number(key) : otherwise;
}

int Gguf::integer_or(const std::string &key, int otherwise, int least, int most) const {
  return has(key) ? integer(key, least, most) : otherwise;
}

const Tensor &Gguf::tensor(const std::string &name, const std::vector<std::uint64_t> &shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw FileError("tensor " + name + " is missing");
  if (found->second.shape != shape) throw FileError("tensor " + name + " has an unexpected shape");
  return found->second;
}

}  // namespace engine
