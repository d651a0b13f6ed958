#pragma once

// What an engine chooses when it makes a cache.

#include <cstddef>
#include <limits>
#include <optional>

#include "squat/config.hpp"
#include "squat/parallel.hpp"
#include "squat/quantize/coding.hpp"

namespace squat {

struct Options {
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  ///< a multiple of 16, 16 to 512

  Coding coding = Coding::orthogonal;
  std::optional<AffineFit> fit{};       ///< default: minmax for plain, clip_and_gain otherwise
  std::optional<ValueCoding> values{};  ///< default: plain for plain, symmetric otherwise
  OrthogonalOptions orthogonal{};

  int sinks = 4;    ///< first tokens of a sequence that stay exact for good
  int window = 64;  ///< newest tokens that stay exact, at least
  int group = 128;  ///< tokens of a page; a multiple of 16, at most 1024

  /// Tokens whose queries and keys a coding learns from before its first page
  /// is packed; until then a cache keeps them exact. Once learnt, a layer's
  /// coding serves all sequences of the cache.
  int statistics_tokens = 512;

  float attention_scale = 0;                                        ///< 0: 1 / sqrt(head_dim)
  std::size_t max_pages = std::numeric_limits<std::size_t>::max();  ///< over all layers and
                                                                    ///< sequences
  Parallel parallel{};  ///< empty: tasks run one after another on the calling thread
};

/// The settings the SQuat paper publishes: rank and block of half a head,
/// lambda 0.001, pages of 32 tokens, KIVI's ranges and values.
inline Options published_squat(Options options) {
  options.coding = Coding::orthogonal;
  options.fit = AffineFit::minmax;
  options.values = ValueCoding::plain;
  options.orthogonal = {
      .rank = options.head_dim / 2, .lambda = 1e-3f, .block = options.head_dim / 2, .order = false};
  options.group = 32;
  return options;
}

}  // namespace squat
