#pragma once

// Statistics of queries, keys and values that outlive a cache: saved from one run, they
// teach the codings of another before its first token.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <istream>
#include <ostream>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "squat/coding/query_statistics.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Whether sums are such that statistics can have them.
inline bool possible_sums(const QueryStatistics &statistics) {
  bool possible = true;
  QueryStatistics::visit_sums(statistics, [&](auto sums) {
    possible &= std::all_of(sums.begin(), sums.end(), [](auto sum) { return std::isfinite(sum); });
  });
  possible &=
      statistics.queries() >= 0 && statistics.keys() >= 0 && statistics.sums(&HeadSums::values)[0] >= 0;
  for (const auto weights : {&HeadSums::far_queries, &HeadSums::key_weight, &HeadSums::value_weight,
                             &HeadSums::output_square}) {
    possible &= statistics.sums(weights)[0] >= 0;
  }
  for (const auto moments : {&HeadSums::query_moment, &HeadSums::weighted_moment}) {
    for (Index i = 0; i < statistics.head_dim(); ++i) {
      possible &= statistics.sums(moments)[static_cast<std::size_t>(triangle_index(i, i))] >= 0;
    }
  }
  return possible;
}

/// The statistics of every layer and KV head of a model. Additive: merging two
/// gives what one run over both texts would have given.
class Prior {
 public:
  /// rows: of the tile frame that keys are coded in, 1 without one.
  Prior(Index layers, Index kv_heads, Index head_dim, Index rows)
      : layers_(layers),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        rows_(rows),
        heads_(static_cast<std::size_t>(layers * kv_heads), QueryStatistics(head_dim, 1, rows)) {}

  /// @{
  /// As given when it was made.
  Index layers() const { return layers_; }
  Index kv_heads() const { return kv_heads_; }
  Index head_dim() const { return head_dim_; }
  Index rows() const { return rows_; }
  /// @}

  /// @{
  /// The statistics of a layer's KV head, both counted from 0.
  const QueryStatistics &head(Index layer, Index kv_head) const {
    return heads_[static_cast<std::size_t>(layer * kv_heads_ + kv_head)];
  }
  QueryStatistics &head(Index layer, Index kv_head) {
    return heads_[static_cast<std::size_t>(layer * kv_heads_ + kv_head)];
  }
  /// @}

  /// Whether every head knows what errors in its keys and values do to attention outputs.
  bool knows_attention() const {
    return std::all_of(heads_.begin(), heads_.end(), has_attention_weights);
  }

  /// Throws Error unless `other` has the same shape.
  void merge(const Prior &other) {
    if (other.shape() != shape()) throw Error("squat: other has another shape than the prior it joins");
    for (std::size_t i = 0; i < heads_.size(); ++i) heads_[i].merge(other.heads_[i]);
  }

  /// The same of some of the heads alone: `count` from `first` on, of every layer. What a cache of these
  /// heads starts from. Throws Error for heads that are not there.
  Prior heads(Index first, Index count) const {
    if (first < 0 || first >= kv_heads_)
      throw_invalid("first", first, "0 to one less than kv_heads, which is", kv_heads_);
    if (count < 1 || count > kv_heads_ - first)
      throw_invalid("count", count, "at least 1 and at most the heads from first on,",
                    kv_heads_ - first);
    Prior part(layers_, count, head_dim_, rows_);
    for (Index layer = 0; layer < layers_; ++layer) {
      for (Index i = 0; i < count; ++i) part.head(layer, i) = head(layer, first + i);
    }
    return part;
  }

  /// The heads of all parts, one part's behind the other's. Throws Error without parts, and unless they
  /// have the same layers, head_dim and rows.
  static Prior join_heads(std::span<const Prior> parts) {
    if (parts.empty()) throw_invalid("parts.size", 0, "at least 1");
    Index kv_heads = 0;
    for (const Prior &part : parts) {
      Shape shape = part.shape();
      shape[2] = parts.front().kv_heads_;  // which may differ
      if (shape != parts.front().shape()) throw Error("squat: parts differ in layers, head_dim or rows");
      kv_heads += part.kv_heads_;
    }
    Prior all(parts.front().layers_, kv_heads, parts.front().head_dim_, parts.front().rows_);
    Index first = 0;
    for (const Prior &part : parts) {
      for (Index layer = 0; layer < all.layers_; ++layer) {
        for (Index i = 0; i < part.kv_heads_; ++i) all.head(layer, first + i) = part.head(layer, i);
      }
      first += part.kv_heads_;
    }
    return all;
  }

  /// Writes the statistics: the mark "squatpri", a version, the shape, the sums
  /// of every head as HeadSums orders them, doubles before floats and all of them
  /// little-endian, and a checksum. Throws Error where the stream fails.
  void save(std::ostream &out) const {
    Checksum checksum;
    const auto write = [&](const void *data, std::size_t size) {
      checksum.add(data, size);
      out.write(static_cast<const char *>(data), static_cast<std::streamsize>(size));
    };
    write(mark.data(), mark.size());
    const Shape numbers = shape();
    write(numbers.data(), sizeof numbers);
    for (const QueryStatistics &statistics : heads_) {
      QueryStatistics::visit_sums(statistics, [&](auto sums) { write(sums.data(), sums.size_bytes()); });
    }
    const std::uint64_t sum = checksum.value;
    out.write(reinterpret_cast<const char *>(&sum), sizeof sum);
    if (!out.flush()) throw Error("squat: out cannot be written");
  }

  /// Reads what save() wrote, of this or an earlier version. Throws Error for
  /// anything else: another file, a truncated or damaged one, impossible shapes
  /// or sums.
  static Prior load(std::istream &in) {
    Checksum checksum;
    const auto read = [&](void *data, std::size_t size) {
      if (!in.read(static_cast<char *>(data), static_cast<std::streamsize>(size))) {
        throw Error("squat: prior is truncated");
      }
      checksum.add(data, size);
    };
    std::array<char, 8> found{};
    read(found.data(), found.size());
    Shape numbers{};
    read(numbers.data(), sizeof numbers);
    if (found != mark || numbers[0] < 1 || numbers[0] > version) {
      throw Error("squat: prior is no file of a version that is known");
    }
    check_shape(numbers);
    // Heads are read one by one before the next is made room for, so that a
    // wrong shape cannot ask for more memory than the file has bytes.
    Prior prior(0, numbers[2], numbers[3], numbers[4]);
    prior.layers_ = numbers[1];
    for (Index i = 0; i < numbers[1] * numbers[2]; ++i) {
      QueryStatistics statistics(prior.head_dim_, 1, prior.rows_);
      if (numbers[0] == 1) {
        read_version_1(statistics, read);
      } else if (numbers[0] == 2) {
        read_version_2(statistics, read);
      } else {
        read_sums(statistics, numbers[0], read);
      }
      if (!possible_sums(statistics)) throw Error("squat: prior holds sums that no statistics have");
      prior.heads_.push_back(std::move(statistics));
    }
    const std::uint64_t expected = checksum.value;
    std::uint64_t sum = 0;
    read(&sum, sizeof sum);
    if (sum != expected) throw Error("squat: prior is damaged: its checksum does not match");
    return prior;
  }

 private:
  using Shape = std::array<std::int64_t, 5>;  // version, layers, kv_heads, head_dim, rows

  static constexpr std::array<char, 8> mark = {'s', 'q', 'u', 'a', 't', 'p', 'r', 'i'};
  static constexpr std::int64_t version = 4;

  /// FNV-1a over 64 bits.
  struct Checksum {
    std::uint64_t value = 14695981039346656037u;
    void add(const void *data, std::size_t size) {
      for (const auto *byte = static_cast<const unsigned char *>(data); size > 0; --size, ++byte) {
        value = (value ^ *byte) * 1099511628211u;
      }
    }
  };

  Shape shape() const { return {version, layers_, kv_heads_, head_dim_, rows_}; }

  static void check_shape(const Shape &numbers) {
    constexpr std::int64_t most = 1 << 20;
    constexpr std::array<const char *, 5> names = {"version", "layers", "kv_heads", "head_dim", "rows"};
    constexpr Shape limits = {version, most, most, largest_head_dim, 4096};
    for (std::size_t i = 1; i < numbers.size(); ++i) {
      if (numbers[i] < 1 || numbers[i] > limits[i]) {
        throw_invalid(std::string("prior.") + names[i], numbers[i], "1 to", limits[i]);
      }
    }
  }

  /// Version 1 had doubles alone: the numbers of queries and groups, the moments
  /// of queries and keys as squares, the sums of keys by row and how many these
  /// are, and the ranges.
  template <class Read>
  static void read_version_1(QueryStatistics &statistics, Read &&read) {
    const auto d = static_cast<std::size_t>(statistics.head_dim());
    std::vector<double> numbers;
    const auto next = [&](std::size_t count) {
      numbers.resize(count);
      read(numbers.data(), count * sizeof(double));
      return numbers.begin();
    };
    const auto take = [&](auto to) {
      std::transform(to.begin(), to.end(), next(to.size()), to.begin(), [](auto, double sum) {
        return static_cast<typename decltype(to)::value_type>(sum);
      });
    };
    const auto take_square = [&](auto to) {
      const auto square = next(d * d);
      auto sum = to.begin();
      for (std::size_t row = 0; row < d; ++row) {
        for (std::size_t column = 0; column <= row; ++column, ++sum) {
          *sum = static_cast<typename decltype(to)::value_type>(
              square[static_cast<std::ptrdiff_t>(row * d + column)]);
        }
      }
    };
    take(statistics.sums(&HeadSums::queries));
    take(statistics.sums(&HeadSums::groups));
    take_square(statistics.sums(&HeadSums::query_moment));
    take_square(statistics.sums(&HeadSums::key_moment));
    take(statistics.sums(&HeadSums::row_sums));
    const std::span<double> key_sum = statistics.sums(&HeadSums::key_sum);
    for (std::size_t i = 0; i < numbers.size(); ++i) key_sum[i % d] += numbers[i];
    take(statistics.sums(&HeadSums::row_counts));
    take(statistics.sums(&HeadSums::key_range));
  }

  /// Version 2 had nothing of attention.
  template <class Read>
  static void read_version_2(QueryStatistics &statistics, Read &&read) {
    const auto take = [&](auto to) { read(to.data(), to.size_bytes()); };
    take(statistics.sums(&HeadSums::queries));
    take(statistics.sums(&HeadSums::groups));
    take(statistics.sums(&HeadSums::key_moment));
    take(statistics.sums(&HeadSums::key_sum));
    take(statistics.sums(&HeadSums::row_counts));
    take(statistics.sums(&HeadSums::key_range));
    take(statistics.sums(&HeadSums::query_moment));
    take(statistics.sums(&HeadSums::row_sums));
  }

  /// From version 3 on all sums are there in their order; version 3 had none of values.
  template <class Read>
  static void read_sums(QueryStatistics &statistics, std::int64_t of_version, Read &&read) {
    const auto added = of_version == 3 ? static_cast<std::size_t>(statistics.head_dim()) + 1 : 0;
    QueryStatistics::visit_sums(statistics, [&]<class Real>(std::span<Real> sums) {
      const std::size_t missing = std::is_same_v<Real, double> ? added : 0;
      read(sums.data(), (sums.size() - missing) * sizeof(Real));
    });
  }

  Index layers_;
  Index kv_heads_;
  Index head_dim_;
  Index rows_;
  std::vector<QueryStatistics> heads_;
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
