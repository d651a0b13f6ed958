#pragma once

// What an engine chooses when it makes a cache.

#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "squat/cache/page_budget.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/prior.hpp"
#include "squat/coding/rotary_table.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/parallel.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// What codings learn from.
enum class LearningMode {
  first_tokens,  ///< the first tokens that the cache takes: a layer's coding serves all sequences
  per_sequence,  ///< each sequence's own, which a coding of its own serves
  frozen,        ///< nothing: Options::prior or KVCache::load_codings() bring the codings, so that equal
                 ///< tokens become equal pages in every cache that has them
};

/// What an engine chooses when it makes a KVCache. Only the shape has no defaults: layers, query_heads,
/// kv_heads and head_dim.
struct Options {
  int layers = 0;       ///< of one shape
  int query_heads = 0;  ///< a multiple of kv_heads
  int kv_heads = 0;     ///< heads of keys and values
  int head_dim = 0;   ///< channels of a query and a key, 8 to 576; on CUDA what kernels are compiled for
  int value_dim = 0;  ///< of a value, 8 to 576; 0: head_dim. Kernels take heads of a multiple of 16
                      ///< channels, on CUDA of those they are compiled for: the larger of the two is
                      ///< padded to that inside the cache, and padding is stored like channels

  std::optional<Coding> coding{};       ///< default: subspace to 4 bits, plain keys above
  std::optional<AffineFit> fit{};       ///< default: minmax for plain, clip_and_gain otherwise
  std::optional<ValueCoding> values{};  ///< default: plain where coding names plain, else symmetric

  /// Whether the model adds biases to its keys, as Qwen2 does: they can be hundreds of times as large as
  /// what keys differ by.
  bool keys_have_biases = false;

  /// What sequences' newest rows are kept as. int8 says too little of keys with biases (Qwen2: 1.4 times
  /// the error at 2 bits, 2.4 at 3). Default: int8 where pages have 2 or 3 bits, coding names not plain
  /// and keys have no biases, else exact.
  std::optional<TailCoding> tail{};

  /// What packed codes of 1 to 3 bits are: of symmetric values, and of keys in a subspace basis; all
  /// others are scalar. Trellis codes ask for a head_dim and page_tokens that are multiples of 32; on
  /// CUDA for a backend of theirs, CudaTrellis or CudaSharingTrellis. Default: scalar.
  std::optional<Codes> codes{};
  OrthogonalOptions orthogonal{};  ///< read where coding is orthogonal

  /// Over what the bits of keys and values are spread. layer and model are for subspace; values take
  /// part if they are symmetric and have up to 4 bits. The attention of the tokens that are learnt from
  /// is weighed for it; where they say nothing (no queries, or none with tokens farther than `residual`
  /// behind it), bits stay with their heads, and those of other layers with their layers. With model,
  /// pages of a layer have a size of its own, KVCache::page_bytes(): fixed when the cache is made by a
  /// prior that knows attention, and else once every layer has seen `statistics_tokens` tokens. Until
  /// then no layer packs, and each begins to in the first call after it. It is not for
  /// LearningMode::per_sequence. On CUDA for backends of its own, CudaSharing and CudaSharingTrellis.
  /// Default: head.
  std::optional<Allocation> allocation{};

  int sinks = 4;          ///< first tokens of a sequence that stay exact for good
  int residual = 64;      ///< newest tokens that are not packed, at least
  int page_tokens = 128;  ///< tokens of a page; a multiple of 16, at most 1024

  /// The rotary embedding that the keys and queries handed over carry: one for
  /// all layers or one a layer, none if it is unknown. A token's position is
  /// the number of tokens before it in its sequence; see KVCache::shift().
  std::vector<RotaryTable> rotary{};

  /// Tokens of a tile, whose keys are coded as if the tile began at position 0:
  /// what is learnt from a prompt then holds at every distance. Rounded down to
  /// whole pages, at least one. 0: keys are coded in the frame they come in.
  /// Default: 256 for subspace with a rotary table, otherwise 0. CUDA has room for 64 modes
  /// of the mean key (coding/mean_modes.hpp): 768 tokens at head_dim 128, 256 at 256.
  std::optional<int> tile_tokens{};

  /// Tokens whose queries and keys a coding learns from before its first page
  /// is packed; until then a cache keeps them exact. With a prior, which counts along, the first
  /// page is packed as soon as it is full. Tokens that are no text teach nothing: where a few keys come
  /// again and again, as when zeros or one token warm an engine up, or where keys and queries are noise
  /// (coding/evidence.hpp), the next so many count, of other sequences: this one's pages are
  /// coded plainly then, all that it will ever have, as are those of a sequence that has twice as many
  /// tokens of which none could be learnt from.
  int statistics_tokens = 512;
  LearningMode learning = LearningMode::first_tokens;  ///< whose tokens codings learn from
  std::shared_ptr<const Prior> prior{};                ///< statistics of another run to begin with

  /// Keep the statistics, and add every token that comes with its queries, so
  /// that KVCache::statistics() can hand them out at any time. What queries attend to is weighed (on
  /// CUDA where heads may share bits) while none of it is packed: a text handed over in one call teaches
  /// more than one in pieces.
  bool keep_statistics = false;

  float attention_scale = 0;  ///< 0: 1 / sqrt(head_dim)

  /// Tokens that a query sees at most: the newest, its own among them (Mistral; Gemma 2 and 3 and
  /// gpt-oss in some layers). Pages that no query to come will see are given back. 0: all.
  int attention_window = 0;

  /// Tokens that truncate() may take back at least, however long a sequence with an attention window has
  /// become: pages are given back that much later. For drafts that are appended before they are checked.
  int rollback_tokens = 0;

  /// c: scores s become c tanh(s / c) before the softmax (Gemma 2). 0: they stay.
  float soft_cap = 0;

  /// [query_heads]: what a score changes by a token between key and query (ALiBi, Press et al. 2022): it
  /// becomes s - slope * distance, behind the cap. Empty: nothing.
  std::vector<float> alibi_slopes{};

  /// [query_heads], or [layers, query_heads]: the score of a token without a value that every query sees
  /// (gpt-oss), one more term in the softmax's denominator. Empty: none.
  std::vector<float> sink_logits{};

  std::size_t max_pages = std::numeric_limits<std::size_t>::max();  ///< over all layers and
                                                                    ///< sequences
  std::shared_ptr<PageBudget> page_budget{};  ///< bytes of pages, with other caches that have it too
  Parallel parallel{};  ///< empty: tasks run one after another on the calling thread
};

/// The settings the SQuat paper publishes: rank and block of half a head,
/// lambda 0.001, pages of 32 tokens, KIVI's ranges and values, an exact tail.
inline Options published_squat(Options options) {
  options.coding = Coding::orthogonal;
  options.fit = AffineFit::minmax;
  options.values = ValueCoding::plain;
  options.tail = TailCoding::exact;
  options.orthogonal = {.rank = options.head_dim / 2,
                        .lambda = 1e-3f,
                        .block = (options.head_dim + 15) / 16 * 8,  // half of what it is padded to
                        .order = false};
  options.page_tokens = 32;
  return options;
}

}  // namespace squat::inline SQUAT_API_NAMESPACE
