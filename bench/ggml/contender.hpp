#pragma once

// What squat_compare_ggml times: attention over caches that are filled with the same rows, ours and
// ggml's.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "squat/core/parallel.hpp"
#include "squat/core/tensor.hpp"

namespace bench {

using squat::Index;

/// The layer that is timed: 32 query heads on 8 KV heads of 128 channels, as in Llama 3 8B.
inline constexpr int query_heads = 32, kv_heads = 8, head_dim = 128;

/// Attention of one call's queries, which stand at the cache's last positions: query i of n sees the
/// first tokens - n + i + 1 tokens.
struct Attention {
  std::function<void(int layer)> run;
  squat::TensorView<const float> out;  ///< [n, query_heads, head_dim], of layer 0's run or a later one's
};

/// A cache with the same tokens in each of its layers.
class Contender {
 public:
  virtual ~Contender() = default;

  /// q: [n, query_heads, head_dim]. The cache and q must outlive what is returned.
  virtual Attention attention(squat::TensorView<const float> q) = 0;

  /// Of one layer: all that attention of one query reads of keys and values.
  virtual double bytes_per_token() const = 0;
};

/// Rows of a layer and how much of them a cache takes: `tokens` tokens, the same in `layers` layers.
struct Content {
  squat::test::Inputs<> &rows;
  Index tokens;
  int layers;
};

/// A coding by its name, and the cache that it makes.
struct Coding {
  std::string library, name;
  bool exact;  ///< rows of floats, with which codings are compared
  std::function<std::unique_ptr<Contender>(const Content &)> make;

  std::string full_name() const { return library + " " + name; }
};

/// The rotary embedding that rows carry, and what our caches are told of it.
inline squat::RotaryTable rotary_table() { return squat::test::rotary_table(5e5, head_dim); }

/// squat's codings. An empty `parallel` means one thread.
std::vector<Coding> squat_codings(const squat::Parallel &parallel);

/// How a cache of ggml's orders the rows of a layer.
enum class RowOrder {
  by_token,  ///< [tokens, kv_heads], as llama.cpp does: a head's rows lie kv_heads rows apart
  by_head,   ///< [kv_heads, tokens], which ggml_flash_attn_ext() takes as well
};

/// ggml's, by ggml's names for the types of keys and values. Throws std::invalid_argument for a name
/// that it does not know.
std::vector<Coding> ggml_codings(const std::vector<std::string> &types, RowOrder order, int threads);

/// The instruction sets that the libraries are compiled for.
std::string squat_instruction_set();
std::string ggml_instruction_set();

/// The directory that ggml was compiled from.
std::string ggml_source();

}  // namespace bench
