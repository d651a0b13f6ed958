#pragma once

// A model on a device, which continues sequences.

#include <memory>
#include <span>
#include <string_view>

#include "cache_spec.hpp"
#include "config.hpp"
#include "linear.hpp"
#include "squat/model/model_cache.hpp"

namespace engine {

using squat::ModelCache;

/// The next tokens of a sequence in a call: so many.
struct SequenceRows {
  ModelCache *cache;
  squat::SequenceId sequence;
  squat::Index tokens = 1;
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual const Config &config() const = 0;

  /// An empty cache in the memory of the device, of options as CacheSpec::options_for() gives them.
  virtual std::unique_ptr<ModelCache> make_cache(const squat::ModelOptions &options) = 0;

  /// Feeds the next tokens of each sequence, one sequence's behind the other's; weights are read once
  /// for all. Sequences may be of one cache or of several. Returns the logits behind the last token of
  /// each: [sequences, vocabulary].
  virtual const RowMatrix &forward(std::span<const int> tokens,
                                   std::span<const SequenceRows> sequences) = 0;

  /// Feeds one prompt to empty sequences of several caches. Tokens of a call see each other exact,
  /// whatever the coding of their cache, so the layers compute the same for all: they do it once, and
  /// every cache takes the same queries, keys and values. Returns the logits behind the prompt: [1,
  /// vocabulary].
  virtual const RowMatrix &prefill(std::span<const int> prompt,
                                   std::span<const SequenceRows> sequences) = 0;
};

/// device: cpu, or cuda where this program was built with it; throws std::invalid_argument for any
/// other, and FileError for a file that holds no such model.
std::unique_ptr<Engine> make_engine(std::string_view device, const Gguf &file);

}  // namespace engine
