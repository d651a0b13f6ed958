#pragma once

// A CodingRecord as the bytes of a snapshot, see cache/snapshot.hpp, and back.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "squat/cache/snapshot/sections.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/core/config.hpp"

namespace squat::detail {

/// Writes numbers one after another.
class BytesOut {
 public:
  std::vector<std::byte> bytes;

  template <class File, class Number>
  void number(Number value) {
    const auto in_file = static_cast<File>(value);
    append(std::as_bytes(std::span(&in_file, 1)));
  }
  template <class Number>
  void array(const std::vector<Number> &numbers, std::size_t) {
    append(std::as_bytes(std::span(numbers)));
  }
  void flag(bool value) { number<std::uint32_t>(value); }
  /// Whether a part is there.
  bool part(bool there) {
    flag(there);
    return there;
  }

 private:
  void append(std::span<const std::byte> more) { bytes.insert(bytes.end(), more.begin(), more.end()); }
};

/// Reads them. Arrays are made as large as they should be once the bytes for them are there.
class BytesIn {
 public:
  explicit BytesIn(std::span<const std::byte> bytes) : left_(bytes) {}

  template <class File, class Number>
  void number(Number &value) {
    File in_file;
    std::memcpy(&in_file, take(sizeof in_file), sizeof in_file);
    value = static_cast<Number>(in_file);
  }
  template <class Number>
  void array(std::vector<Number> &numbers, std::size_t count) {
    const std::byte *from = take(count * sizeof(Number));
    numbers.resize(count);
    if (count > 0) std::memcpy(numbers.data(), from, count * sizeof(Number));
  }
  void flag(bool &value) {
    std::uint32_t in_file = 0;
    number<std::uint32_t>(in_file);
    if (in_file > 1) throw_damaged(Section::coding, "what is yes or no is neither");
    value = in_file == 1;
  }
  bool part(bool there) {
    flag(there);
    return there;
  }
  void end() const {
    if (!left_.empty()) throw_damaged(Section::coding, "it is too long");
  }

 private:
  const std::byte *take(std::size_t size) {
    if (size > left_.size()) throw_damaged(Section::coding, "it is too short");
    const std::byte *from = left_.data();
    left_ = left_.subspan(size);
    return from;
  }

  std::span<const std::byte> left_;
};

/// The sizes of a layer's coding.
struct CodingSizes {
  std::size_t kv_heads;
  std::size_t head_dim;
  std::size_t doubles;  ///< of statistics, see HeadSums
  std::size_t floats;

  /// No coding has more bytes.
  std::size_t most_bytes() const {
    const std::size_t d = head_dim;
    const std::size_t of_head =
        8 * d + 2 * d * d + 8 * d + 12 * d + 4 * d + 2 * d * d + 8 * doubles + 4 * floats + 8 * d + 256;
    return kv_heads * (of_head + 8) + 256;
  }
};

/// Visits all that a head's record holds, in the order of the file.
template <class Bytes, class Head>
void visit_head(Bytes &bytes, Head &head, const CodingSizes &sizes) {
  const std::size_t d = sizes.head_dim;
  if (bytes.part(!head.mean.empty())) bytes.array(head.mean, d);
  if (bytes.part(!head.value_mean.empty())) bytes.array(head.value_mean, d);
  if (bytes.part(!head.matrix.empty())) {
    auto &matrix = head.matrix;
    bytes.flag(matrix.bytes);
    if constexpr (!std::is_const_v<Head>) matrix.outputs = matrix.inputs = static_cast<Index>(d);
    bytes.array(matrix.codes, d * d);
    bytes.array(matrix.scales, d);
    if (matrix.bytes) bytes.array(matrix.input_scales, d);
    bytes.array(head.metric, d);
    bytes.template number<double>(head.weight);
    if (bytes.part(!head.variance.empty())) bytes.array(head.variance, d);
    auto runs = static_cast<std::uint32_t>(head.widths.size());
    bytes.template number<std::uint32_t>(runs);
    if (runs > 5) throw_damaged(Section::coding, "it has too many widths");
    bytes.array(head.widths, runs);
    bytes.template number<std::uint32_t>(head.value_bits);
  }
  if (bytes.part(!head.order.empty())) {
    bytes.template number<std::uint32_t>(head.block);
    bytes.array(head.order, d);
    bytes.array(head.feedback, d * (d - 1) / 2);
  }
  if (bytes.part(!head.statistics.empty())) {
    bytes.array(head.statistics.doubles, sizes.doubles);
    bytes.array(head.statistics.floats, sizes.floats);
    bytes.template number<std::uint64_t>(head.statistics.in_group);
    bytes.array(head.statistics.low, d);
    bytes.array(head.statistics.high, d);
  }
}

/// The same of a layer's.
template <class Bytes, class Record>
void visit_record(Bytes &bytes, Record &record, const CodingSizes &sizes) {
  bytes.flag(record.learnt);
  bytes.template number<std::uint64_t>(record.code_bytes);
  if (bytes.part(record.shared)) {
    if constexpr (!std::is_const_v<Record>) record.shared = true;
    bytes.template number<std::uint32_t>(record.plain_key_bits);
    bytes.template number<std::uint32_t>(record.plain_value_bits);
    bytes.template number<double>(record.value_gain);
  }
  if (bytes.part(!record.value_weights.empty())) {
    bytes.array(record.value_weights, sizes.kv_heads);
    bytes.template number<double>(record.output_square);
  }
  if constexpr (!std::is_const_v<Record>) record.heads.resize(sizes.kv_heads);
  for (auto &head : record.heads) visit_head(bytes, head, sizes);
}

inline std::vector<std::byte> coding_bytes(const CodingRecord &record, const CodingSizes &sizes) {
  BytesOut out;
  visit_record(out, record, sizes);
  return std::move(out.bytes);
}

/// Throws Error for bytes that are no record of these sizes. What its numbers mean is not looked at.
inline CodingRecord coding_record(std::span<const std::byte> bytes, const CodingSizes &sizes) {
  BytesIn in(bytes);
  CodingRecord record;
  visit_record(in, record, sizes);
  in.end();
  return record;
}

inline std::uint64_t coding_fingerprint(std::span<const std::byte> bytes) {
  Fingerprint fingerprint;
  fingerprint.add(bytes);
  return fingerprint.value();
}

}  // namespace squat::detail
