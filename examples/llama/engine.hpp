#pragma once

// A model on a device, and the sequences it continues, each over a cache of its own or that of the
// sequence it was forked from.

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "cache_spec.hpp"
#include "config.hpp"
#include "linear.hpp"
#include "squat/squat.hpp"

namespace llama {

class Engine {
 public:
  virtual ~Engine() = default;

  virtual const Config &config() const = 0;

  /// Adds an empty sequence over a cache of that kind. Returns its number: 0, 1, ...
  virtual int add_sequence(const CacheSpec &spec, const squat::Options &options) = 0;
  /// Adds a sequence that begins as another is now and shares its cache. Returns its number.
  virtual int fork_sequence(int parent) = 0;
  /// sequences[i] becomes what parents[i] was before the call, all of them forks of one.
  virtual void reorder(std::span<const int> sequences, std::span<const int> parents) = 0;
  /// Gives back what no fork shares with the sequence. Its number is not used again.
  virtual void remove_sequence(int sequence) = 0;
  /// Of the sequence's cache, and so of all its forks.
  virtual squat::MemoryReport memory_report(int sequence) const = 0;

  /// Feeds the next tokens of each sequence, as many for each, one sequence's behind the other's.
  /// Returns the logits behind the last of each: [sequences, vocabulary].
  virtual const RowMatrix &forward(std::span<const Position> rows, std::span<const int> sequences) = 0;

  /// Feeds one prompt to several empty sequences. Tokens of a call see each other exact, whatever the
  /// coding of their cache, so the layers compute the same for all: they do it once, and every cache
  /// takes the same queries, keys and values. Returns the logits behind the prompt: [1, vocabulary].
  virtual const RowMatrix &prefill(std::span<const Position> prompt, std::span<const int> sequences) = 0;
};

/// device: cpu, or cuda where this program was built with it; throws std::invalid_argument for any
/// other, and FileError for a file that holds no such model.
std::unique_ptr<Engine> make_engine(std::string_view device, const Gguf &file);

/// The row of a call that is the last of each of `sequences`.
inline std::vector<int> last_rows(std::size_t rows, std::size_t sequences) {
  std::vector<int> last;
  for (std::size_t i = 1; i <= sequences; ++i)
    last.push_back(static_cast<int>(rows / sequences * i) - 1);
  return last;
}

}  // namespace llama
