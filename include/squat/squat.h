/** @file
 * The cache of a whole model behind a plain C interface, for bindings: squat::ModelCache on the CPU, in
 * libsquat.so (CMake option SQUAT_BUILD_C_LIBRARY, target squat::c).
 *
 * Every function that can fail returns a status; squat_last_error() then says why, for the calling
 * thread. Nothing is thrown across this border. A call that fails leaves the cache as it was. One thread
 * at a time may call a cache. What the calls do, and what they take, is told by
 * squat/model/model_cache.hpp and squat/cache/kv_cache.hpp, whose names these are.
 */
#ifndef SQUAT_SQUAT_H
#define SQUAT_SQUAT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SQUAT_PUBLIC __attribute__((visibility("default")))
#else
#define SQUAT_PUBLIC
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Whether a call was done. */
typedef enum squat_status {
  SQUAT_OK = 0,      /**< it was */
  SQUAT_INVALID = 1, /**< an argument cannot be served, or memory is out: squat::Error */
  SQUAT_FAILED = 2   /**< something else was thrown, by a callback say */
} squat_status;

/** What the last call of this thread that failed has to say: one sentence, good until its next one. */
SQUAT_PUBLIC const char *squat_last_error(void);
/** "MAJOR.MINOR.PATCH" */
SQUAT_PUBLIC const char *squat_version(void);

/* ---- a model's layers ---- */

/** What the elements of a tensor are. */
typedef enum squat_element { SQUAT_FLOAT32 = 0, SQUAT_FLOAT16 = 1, SQUAT_BFLOAT16 = 2 } squat_element;
/** How packed keys are coded: squat::Coding, or the default for the bits. */
typedef enum squat_coding {
  SQUAT_CODING_DEFAULT = 0,
  SQUAT_CODING_PLAIN = 1,
  SQUAT_CODING_ORTHOGONAL = 2,
  SQUAT_CODING_SUBSPACE = 3
} squat_coding;
/** Which channels turn together: squat::RotaryPairs. */
typedef enum squat_rotary_pairs {
  SQUAT_ROTARY_INTERLEAVED = 0,
  SQUAT_ROTARY_HALVES = 1
} squat_rotary_pairs;
/** Whose tokens codings learn from: squat::LearningMode. */
typedef enum squat_learning {
  SQUAT_LEARNING_FIRST_TOKENS = 0,
  SQUAT_LEARNING_PER_SEQUENCE = 1,
  SQUAT_LEARNING_FROZEN = 2
} squat_learning;

/** Layers of one shape and width: squat::LayerGroup and squat::Options. squat_group_init() fills in the
 * defaults; set shape, and what else is to differ, behind it. */
typedef struct squat_group {
  size_t struct_size;      /**< of squat_group_init(): what the caller knows of this struct */
  int query_heads;         /**< a multiple of kv_heads */
  int kv_heads;            /**< heads of keys and values */
  int head_dim;            /**< channels of a query and a key, 8 to 576 */
  int value_dim;           /**< of a value, 8 to 576; 0: head_dim */
  int key_bits;            /**< 2, 3, 4, 8, or 16: exact */
  int value_bits;          /**< likewise */
  squat_coding coding;     /**< how packed keys are coded */
  squat_learning learning; /**< whose tokens codings learn from */
  int sinks;               /**< first tokens of a sequence, which stay exact */
  int residual;            /**< newest tokens that are not packed, at least */
  int page_tokens;         /**< tokens of a page; a multiple of 16, at most 1024 */
  int tile_tokens;         /**< tokens of a rotary tile; 0: no tiles; -1: the default */
  int statistics_tokens;   /**< tokens that a coding learns from before its first page */
  int attention_window;    /**< tokens that a query sees at most; 0: all */
  int rollback_tokens;     /**< that can be truncated however long a sequence with a window is */
  float attention_scale;   /**< 0: 1 / sqrt(head_dim) */
  float soft_cap;          /**< c of c tanh(score / c); 0: none */
  const float
      *inverse_frequencies;  /**< [rotary_pairs_count], of the rotary embedding, radians a position */
  size_t rotary_pairs_count; /**< 0: unknown, or none */
  squat_rotary_pairs rotary_pairs; /**< which channels turn together */
  const float *alibi_slopes;       /**< [query_heads], or NULL */
  const float *sink_logits;        /**< [query_heads], or NULL */
  int keys_have_biases;            /**< not 0: the model adds biases to its keys, as Qwen2 does */
} squat_group;
/** Fills in the defaults. group: not NULL. */
SQUAT_PUBLIC void squat_group_init(squat_group *group);

/** What is said of a model: squat::ModelOptions. */
typedef struct squat_model squat_model;

/** A model of so many layers, each of which is to be named once; NULL where memory is out. */
SQUAT_PUBLIC squat_model *squat_model_create(int layers);
/** Frees it; caches that were made of it stay. A NULL does nothing. */
SQUAT_PUBLIC void squat_model_destroy(squat_model *model);
/** Names the layers of a group, [count] numbers in the model. What `group` points to is copied. */
SQUAT_PUBLIC squat_status squat_model_add_group(squat_model *model, const int *layers, size_t count,
                                                const squat_group *group);
/** A layer without keys of its own, which attends to those of another: squat::SharedLayer. */
SQUAT_PUBLIC squat_status squat_model_share_layer(squat_model *model, int layer, int keys_of);
/** A layer that keeps no keys, such as a recurrent one. */
SQUAT_PUBLIC squat_status squat_model_skip_layer(squat_model *model, int layer);
/** The type of rows that stay exact; default: SQUAT_FLOAT16. */
SQUAT_PUBLIC squat_status squat_model_set_exact_rows(squat_model *model, squat_element element);
/** Bytes that the pages of all groups may have together; default: no limit. */
SQUAT_PUBLIC squat_status squat_model_set_max_page_bytes(squat_model *model, uint64_t bytes);

/** A task of a cache's, to be called with `of_task` and an index. */
typedef void (*squat_task)(void *of_task, int index);
/** run(context, count, task, of_task) calls task(of_task, i) for every i below count, on any threads,
 * and returns when all have returned. */
typedef void (*squat_run)(void *context, int count, squat_task task, void *of_task);
/** The engine's threads; default: tasks run one after another on the calling one. */
SQUAT_PUBLIC squat_status squat_model_set_parallel(squat_model *model, squat_run run, void *context);

/* ---- caches ---- */

/** A squat::ModelCache on the CPU. */
typedef struct squat_cache squat_cache;
/** Names a sequence of a cache; 0 names none. */
typedef uint64_t squat_sequence;

/** A cache for the model, of which it keeps a copy. */
SQUAT_PUBLIC squat_status squat_cache_create(const squat_model *model, squat_cache **cache);
/** Frees it with all sequences. A NULL does nothing. */
SQUAT_PUBLIC void squat_cache_destroy(squat_cache *cache);

/** An empty sequence. */
SQUAT_PUBLIC squat_status squat_add_sequence(squat_cache *cache, squat_sequence *sequence);
/** Its handle is never good again. */
SQUAT_PUBLIC squat_status squat_remove_sequence(squat_cache *cache, squat_sequence sequence);
/** A new sequence with the first `tokens` tokens of another, 0 to its length: pages are shared. */
SQUAT_PUBLIC squat_status squat_fork(squat_cache *cache, squat_sequence parent, int64_t tokens,
                                     squat_sequence *child);
/** sequences[i] becomes what parents[i] was before the call; [count] of each, as in beam search. */
SQUAT_PUBLIC squat_status squat_reorder(squat_cache *cache, const squat_sequence *sequences,
                                        const squat_sequence *parents, size_t count);
/** Keeps the first `tokens` tokens, 0 to the length. */
SQUAT_PUBLIC squat_status squat_truncate(squat_cache *cache, squat_sequence sequence, int64_t tokens);
/** Drops the tokens [first, last) and moves what follows by `by` positions. */
SQUAT_PUBLIC squat_status squat_shift(squat_cache *cache, squat_sequence sequence, int64_t first,
                                      int64_t last, int64_t by);
/** Tokens present in every layer that keeps keys. */
SQUAT_PUBLIC squat_status squat_length(const squat_cache *cache, squat_sequence sequence,
                                       int64_t *tokens);
/** Tokens present in one layer. */
SQUAT_PUBLIC squat_status squat_layer_length(const squat_cache *cache, squat_sequence sequence,
                                             int layer, int64_t *tokens);
/** Learning begins anew, from the tokens to come. */
SQUAT_PUBLIC squat_status squat_reset_learning(squat_cache *cache);

/** A view [tokens, heads, head_dim], of v and out [tokens, heads, value_dim]: squat::TensorView. */
typedef struct squat_tensor {
  void *data;            /**< the first channel of the first head of token 0 */
  squat_element element; /**< what the elements are */
  int64_t tokens;        /**< rows; 0: the tensor is left out */
  int64_t heads;         /**< of a row */
  int64_t head_dim;      /**< channels of a head */
  int64_t token_stride;  /**< elements from a token to the next; with head_stride 0: rows one behind the
                            other */
  int64_t head_stride;   /**< elements from a head to the next */
} squat_tensor;

/** A sequence's share of a batch: the next `tokens` rows of the tensors. */
typedef struct squat_share {
  squat_sequence sequence; /**< named once in a call */
  int64_t tokens;          /**< how many rows, 0 or more */
  int do_not_learn; /**< not 0: codings do not learn from them, such as dummies that warm an engine up */
} squat_share;

/** Appends k and v and attends; with k and v of no tokens it only attends. lse: [tokens, query_heads],
 * or NULL. q, k, v and out are of one element type. */
SQUAT_PUBLIC squat_status squat_attend(squat_cache *cache, const squat_share *batch, size_t count,
                                       int layer, squat_tensor q, squat_tensor k, squat_tensor v,
                                       squat_tensor out, float *lse);
/** Attends for a tree of proposed tokens and appends nothing. parents: a row each, that of its parent
 * among its sequence's rows, or -1. */
SQUAT_PUBLIC squat_status squat_draft(squat_cache *cache, const squat_share *batch, size_t count,
                                      int layer, squat_tensor q, squat_tensor k, squat_tensor v,
                                      squat_tensor out, const int64_t *parents, float *lse);
/** Appends alone. q: what codings learn from, or no tokens. */
SQUAT_PUBLIC squat_status squat_append(squat_cache *cache, const squat_share *batch, size_t count,
                                       int layer, squat_tensor q, squat_tensor k, squat_tensor v);
/** Writes all tokens of a sequence and layer as attention sees them. k: [squat_layer_length(), kv_heads,
 * head_dim]; v: the same, of value_dim */
SQUAT_PUBLIC squat_status squat_dequantize(squat_cache *cache, squat_sequence sequence, int layer,
                                           squat_tensor k, squat_tensor v);

/** Takes the next `size` bytes of a snapshot. Anything but 0 ends the call with SQUAT_FAILED. */
typedef int (*squat_write)(void *context, const void *bytes, size_t size);
/** Gives them; likewise. */
typedef int (*squat_read)(void *context, void *bytes, size_t size);
/** Writes a sequence, with what its layers have learnt unless with_codings is 0. */
SQUAT_PUBLIC squat_status squat_save(squat_cache *cache, squat_sequence sequence, int with_codings,
                                     squat_write write, void *context);
/** A sequence as squat_save() wrote it, from a cache of the same model. */
SQUAT_PUBLIC squat_status squat_load(squat_cache *cache, squat_read read, void *context,
                                     squat_sequence *sequence);

/** squat::MemoryReport. */
typedef struct squat_memory {
  uint64_t pages;                 /**< bytes of slabs of pages, free ones too */
  uint64_t pages_used;            /**< bytes of pages that hold tokens; a shared page counts once */
  uint64_t exact;                 /**< bytes of rows of sinks and tails */
  uint64_t statistics;            /**< bytes of what codings learn from */
  uint64_t bases;                 /**< bytes of what they learnt */
  uint64_t workspace;             /**< bytes of scratch */
  uint64_t shared_pages;          /**< how many pages more than one sequence holds */
  uint64_t saved_by_sharing;      /**< bytes that pages_used would grow by without sharing */
  int64_t packed_tokens;          /**< summed over layers and sequences */
  int64_t exact_tokens;           /**< likewise */
  double packed_bits_per_element; /**< of full pages */
  double total_bits_per_element;  /**< all of pages_used, exact, statistics and bases */
  uint64_t free_page_bytes;       /**< bytes that pages may still take */
} squat_memory;
/** What is allocated, and what of it holds tokens. */
SQUAT_PUBLIC squat_status squat_memory_report(const squat_cache *cache, squat_memory *memory);
/** Bytes of the pages that the tokens of a batch take once they come to every layer: they fit if these
 * are no more than squat_memory::free_page_bytes. */
SQUAT_PUBLIC squat_status squat_page_bytes_due(const squat_cache *cache, const squat_share *batch,
                                               size_t count, uint64_t *bytes);

#ifdef __cplusplus
}
#endif

#endif
