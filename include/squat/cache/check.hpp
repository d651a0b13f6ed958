#pragma once

// The checks at the door: what a cache and its calls accept, and how an error
// says so.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <span>
#include <string>
#include <string_view>

#include "squat/cache/options.hpp"
#include "squat/coding/trellis.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat::inline SQUAT_API_NAMESPACE::checks {

inline constexpr int default_tile_tokens = 256;
inline constexpr int largest_tile_tokens = 4096;
inline constexpr float largest_logit = 1e6f;

/// `member` names the part of the argument that is meant, if it is not all of it. Texts are made only to
/// be thrown.
inline std::string full_name(std::string_view argument, std::string_view member) {
  return member.empty() ? std::string(argument) : std::string(argument) + "." + std::string(member);
}

/// What `call` returns. Throws Error where it runs out of memory.
template <class Call>
decltype(auto) memory_or_error(Call &&call) {
  try {
    return call();
  } catch (const std::bad_alloc &) {
    throw Error("squat: out of memory; the cache is as it was");
  }
}

inline void check_range(std::string_view argument, Index value, Index least, Index most,
                        std::string_view member = {}) {
  if (value < least || value > most) {
    throw_invalid(full_name(argument, member), value,
                  std::to_string(least) + " to " + std::to_string(most));
  }
}

/// parents: of a sequence's rows in a draft, among these; -1: none.
inline void check_paths(std::span<const Index> parents) {
  constexpr Index most = 256;  // tokens of a sequence
  const auto tokens = static_cast<Index>(parents.size());
  check_range("batch.tokens", tokens, 0, most);
  for (Index i = 0; i < tokens; ++i)
    check_range("parents", parents[static_cast<std::size_t>(i)], -1, i - 1);
}

inline void check_rotary(const Options &options) {
  const auto tables = static_cast<Index>(options.rotary.size());
  if (tables > 1 && tables != options.layers) {
    throw_invalid("rotary.size", tables, "0, 1 or layers, which is", options.layers);
  }
  for (const RotaryTable &table : options.rotary) {
    check_range("rotary.inverse_frequencies.size", table.pair_count(), 0, options.head_dim / 2);
    for (float frequency : table.inverse_frequencies) {
      if (!(std::abs(frequency) <= 1e3f)) {
        throw_invalid("rotary.inverse_frequencies", frequency, "finite and of magnitude at most 1000");
      }
    }
  }
  if (!options.tile_tokens) return;
  check_range("tile_tokens", *options.tile_tokens, 0, largest_tile_tokens);
  if (*options.tile_tokens > 0 && tables == 0) {
    throw_invalid("tile_tokens", *options.tile_tokens, "0 without a rotary table");
  }
}

/// What becomes of scores before their softmax.
inline void check_scores(const Options &options) {
  if (!std::isfinite(options.attention_scale))
    throw_invalid("attention_scale", options.attention_scale, "finite");
  check_range("attention_window", options.attention_window, 0, std::numeric_limits<int>::max());
  check_range("rollback_tokens", options.rollback_tokens, 0, std::numeric_limits<int>::max());
  constexpr float least_cap = 1e-6f;
  if (!(options.soft_cap == 0 || (options.soft_cap >= least_cap && options.soft_cap <= largest_logit)))
    throw_invalid("soft_cap", options.soft_cap, "0, or from 1e-6 to", largest_logit);
  const auto check_logits = [](std::string_view argument, const std::vector<float> &logits) {
    for (const float logit : logits) {
      if (!(std::abs(logit) <= largest_logit))
        throw_invalid(argument, logit, "of magnitude at most", largest_logit);
    }
  };
  check_logits("alibi_slopes", options.alibi_slopes);
  check_logits("sink_logits", options.sink_logits);
  const auto heads = static_cast<std::size_t>(options.query_heads);
  const std::size_t slopes = options.alibi_slopes.size(), sinks = options.sink_logits.size();
  if (slopes != 0 && slopes != heads)
    throw_invalid("alibi_slopes.size", slopes, "0 or query_heads, which is", heads);
  if (sinks != 0 && sinks != heads && sinks != heads * static_cast<std::size_t>(options.layers))
    throw_invalid("sink_logits.size", sinks, "0, query_heads, or layers times query_heads, which is",
                  heads * static_cast<std::size_t>(options.layers));
}

inline void check_codes(const Options &options) {
  if (options.codes != Codes::trellis) return;
  const auto check_multiple = [](std::string_view argument, int value) {
    if (value % trellis_row != 0)
      throw_invalid(argument, value, "a multiple of 32 where codes are trellis");
  };
  check_multiple("head_dim", options.head_dim);
  check_multiple("page_tokens", options.page_tokens);
}

inline void check_prior(const Options &options) {
  if (!options.prior) return;
  const Prior &prior = *options.prior;
  const auto check_equal = [](std::string_view member, Index value, Index expected) {
    if (value != expected)
      throw_invalid(full_name("prior", member), value, "that of the cache,", expected);
  };
  check_equal("layers", prior.layers(), options.layers);
  check_equal("kv_heads", prior.kv_heads(), options.kv_heads);
  check_equal("head_dim", prior.head_dim(), options.head_dim);
  check_equal("rows", prior.rows(), std::max(1, *options.tile_tokens));
}

inline void check_options(const Options &options) {
  constexpr Index most = 1 << 20;
  check_range("layers", options.layers, 1, most);
  check_range("query_heads", options.query_heads, 1, most);
  check_range("kv_heads", options.kv_heads, 1, most);
  if (options.query_heads % options.kv_heads != 0) {
    throw_invalid("query_heads", options.query_heads, "a multiple of kv_heads, which is",
                  options.kv_heads);
  }
  constexpr Index least_head_dim = 8;
  check_range("head_dim", options.head_dim, least_head_dim, largest_head_dim);
  if (options.value_dim != 0)
    check_range("value_dim", options.value_dim, least_head_dim, largest_head_dim);
  check_range("page_tokens", options.page_tokens, 16, 1024);
  if (options.page_tokens % 16 != 0)
    throw_invalid("page_tokens", options.page_tokens, "a multiple of 16");
  check_range("sinks", options.sinks, 0, most);
  check_range("residual", options.residual, 0, most);
  check_range("statistics_tokens", options.statistics_tokens, 0, most);
  check_scores(options);
  check_rotary(options);
  const OrthogonalOptions &orthogonal = options.orthogonal;
  check_range("orthogonal.rank", orthogonal.rank, 0, options.head_dim);
  check_range("orthogonal.block", orthogonal.block, 1, options.head_dim);
  if (!(std::isfinite(orthogonal.lambda) && orthogonal.lambda >= 0)) {
    throw_invalid("orthogonal.lambda", orthogonal.lambda, "finite and not negative");
  }
}

/// The options with every default filled in, for keys and values of so many bits.
inline Options resolve(Options options, int key_bits, int value_bits) {
  check_options(options);
  const bool plain_asked = options.coding == Coding::plain;
  if (!options.coding) options.coding = key_bits <= 4 ? Coding::subspace : Coding::plain;
  if (!options.fit) {
    options.fit = options.coding == Coding::plain ? AffineFit::minmax : AffineFit::clip_and_gain;
  }
  if (!options.values) options.values = plain_asked ? ValueCoding::plain : ValueCoding::symmetric;
  const int most_bits = std::max(key_bits, value_bits);
  if (!options.tail) {
    const bool bytes = most_bits <= 3 && !plain_asked && !options.keys_have_biases;
    options.tail = bytes ? TailCoding::int8 : TailCoding::exact;
  }
  if (options.tail == TailCoding::int8 && most_bits == 16) {
    throw_invalid("tail", "int8", "exact where keys or values have 16 bits");
  }
  if (!options.codes) options.codes = Codes::scalar;
  if (!options.allocation) options.allocation = Allocation::head;
  if (options.allocation != Allocation::head && options.coding != Coding::subspace)
    throw_invalid("allocation", name_of(*options.allocation), "head unless coding is subspace");
  if (options.allocation == Allocation::model && options.learning == LearningMode::per_sequence)
    throw_invalid("allocation", name_of(*options.allocation),
                  "head or layer where learning is per_sequence: pages of a layer have one size for all "
                  "sequences");
  if (options.learning == LearningMode::frozen && options.keep_statistics)
    throw_invalid("keep_statistics", true, "false where learning is frozen");
  if (!options.tile_tokens) {
    const bool tiles = options.coding == Coding::subspace && !options.rotary.empty();
    options.tile_tokens = tiles ? default_tile_tokens : 0;
  }
  if (*options.tile_tokens > 0) {
    options.tile_tokens =
        std::max(options.page_tokens, *options.tile_tokens / options.page_tokens * options.page_tokens);
  }
  if (options.value_dim == 0) options.value_dim = options.head_dim;
  if (options.attention_scale == 0) {
    options.attention_scale = 1.0f / std::sqrt(static_cast<float>(options.head_dim));
  }
  const std::size_t logits = options.sink_logits.size();
  if (logits == static_cast<std::size_t>(options.query_heads)) {  // of every layer
    for (int layer = 1; layer < options.layers; ++layer) {
      for (std::size_t head = 0; head < logits; ++head)
        options.sink_logits.push_back(options.sink_logits[head]);
    }
  }
  return options;
}

/// Those in force for kernels whose heads have so many channels.
inline Options pad(Options options, int head_dim) {
  options.head_dim = options.value_dim = head_dim;
  check_codes(options);
  const int block = options.orthogonal.block;
  if (head_dim % block != 0)
    throw_invalid("orthogonal.block", block, "a divisor of what head_dim is padded to,", head_dim);
  check_prior(options);
  return options;
}

/// A view's shape and memory, and that no stride makes rows overlap or run out of the address space.
template <class Scalar>
void check_shape(std::string_view argument, TensorView<Scalar> view, Index tokens, Index heads,
                 Index head_dim) {
  const auto check_extent = [&](std::string_view member, Index value, Index expected) {
    if (value != expected) throw_invalid(full_name(argument, member), value, std::to_string(expected));
  };
  check_extent("tokens", view.tokens, tokens);
  check_extent("heads", view.heads, heads);
  check_extent("head_dim", view.head_dim, head_dim);
  if (tokens == 0) return;
  if (view.data == nullptr)
    throw_invalid(full_name(argument, "data"), "null", "a pointer to the elements");
  if (reinterpret_cast<std::uintptr_t>(view.data) % alignof(Scalar) != 0) {
    throw_invalid(full_name(argument, "data"), static_cast<const void *>(view.data),
                  "aligned to its elements");
  }
  constexpr Index most = std::numeric_limits<Index>::max() / Index{sizeof(Scalar)};
  if (heads > 1) check_range(argument, view.head_stride, head_dim, most / heads, "head_stride");
  if (tokens == 1) return;
  check_range(argument, view.token_stride, 0, most / tokens, "token_stride");
  const Index token_extent = heads > 1 ? (heads - 1) * view.head_stride + head_dim : head_dim;
  const bool tokens_apart = view.token_stride >= token_extent;
  const bool heads_apart =
      view.token_stride >= head_dim && view.head_stride >= (tokens - 1) * view.token_stride + head_dim;
  if (!tokens_apart && !heads_apart) {
    throw_invalid(full_name(argument, "token_stride"), view.token_stride,
                  "such that no rows overlap: at least", token_extent);
  }
}

}  // namespace squat::inline SQUAT_API_NAMESPACE::checks
