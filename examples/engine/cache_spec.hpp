#pragma once

// The SPEC of the command lines, such as orthogonal:k2v2:g64, which names a cache.

#include <string>
#include <string_view>
#include <vector>

#include "config.hpp"
#include "squat/model/model_options.hpp"

namespace engine {

struct CacheSpec {
  std::string text;
  std::string coding;
  int key_bits = 16;
  int value_bits = 16;
  squat::Options options;  // but for the model's shape
  bool published = false;

  /// Of layers that are alike, without their numbers: heads, biases, scale, cap, window and rotary
  /// embedding are those of `shape`.
  squat::LayerGroup group_for(const squat::Options &shape) const;

  /// Of a model's layers: one group where they are alike. Layers that attend through a window and those
  /// that see all tokens are two, for they differ in their rotary embedding too.
  squat::ModelOptions options_for(const Config &config) const;
};

/// Throws std::invalid_argument, naming what exists, for a SPEC that does not.
CacheSpec parse_cache_spec(std::string_view text);

/// The exact cache's, and behind it those of the others.
std::vector<CacheSpec> parse_codings(const std::vector<std::string> &codings);

/// What a SPEC can be, for --help and errors.
std::string cache_spec_help();

}  // namespace engine
