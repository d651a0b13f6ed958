#pragma once

// The SPEC of the command lines, such as orthogonal:k2v2:g64, and a cache of the type it names.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model.hpp"
#include "squat/squat.hpp"

namespace llama {

struct CacheSpec {
  std::string text;
  std::string coding;
  int key_bits = 16;
  int value_bits = 16;
  squat::Options options;  // but for the model's shape
  bool published = false;

  /// Options for a model.
  squat::Options options_for(const Config &config) const;
};

/// Throws std::invalid_argument, naming what exists, for a SPEC that does not.
CacheSpec parse_cache_spec(std::string_view text);

/// What a SPEC can be, for --help and errors.
std::string cache_spec_help();

/// One sequence in a squat::KVCache of any widths, which its forks share: one thread at a time may use
/// those. Exact rows are float16, as engines keep them.
class Cache {
 public:
  virtual ~Cache() = default;

  /// Appends and attends: rows [first, first + count) of the matrices are the sequence's next tokens.
  virtual void attend(int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out,
                      squat::Index first, squat::Index count) = 0;
  /// A sequence of the same cache that begins as this is now.
  virtual std::unique_ptr<Cache> fork() const = 0;
  /// The cache that forks share, and the sequence's handle in it.
  virtual const void *shared() const = 0;
  virtual squat::SequenceId id() const = 0;
  /// sequences[i] becomes what parents[i] was, all of them forks of this. Throws std::invalid_argument
  /// for others.
  virtual void reorder(std::span<Cache *const> sequences, std::span<Cache *const> parents) const = 0;
  virtual squat::MemoryReport memory_report() const = 0;
  virtual const squat::Options &options() const = 0;
};

std::unique_ptr<Cache> make_cache(const CacheSpec &spec, const squat::Options &options);

}  // namespace llama
