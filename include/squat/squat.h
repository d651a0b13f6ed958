/* The cache of a whole model behind a plain C interface, for bindings: squat::ModelCache on the CPU, in
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

typedef enum squat_status {
  SQUAT_OK = 0,
  SQUAT_INVALID = 1, /* an argument cannot be served, or memory is out: squat::Error */
  SQUAT_FAILED = 2   /* something else was thrown, by a callback say */
} squat_status;

/* What the last call of this thread that failed has to say: one sentence, good until its next one. */
SQUAT_PUBLIC const char *squat_last_error(void);
/* "MAJOR.MINOR.PATCH" */
SQUAT_PUBLIC const char *squat_version(void);

/* ---- a model's layers ---- */

typedef enum squat_element { SQUAT_FLOAT32 = 0, SQUAT_FLOAT16 = 1, SQUAT_BFLOAT16 = 2 } squat_element;
typedef enum squat_coding {
  SQUAT_CODING_DEFAULT = 0,
  SQUAT_CODING_PLAIN = 1,
  SQUAT_CODING_ORTHOGONAL = 2,
  SQUAT_CODING_SUBSPACE = 3
} squat_coding;
typedef enum squat_rotary_pairs {
  SQUAT_ROTARY_INTERLEAVED = 0,
  SQUAT_ROTARY_HALVES = 1
} squat_rotary_pairs;
typedef enum squat_learning {
  SQUAT_LEARNING_FIRST_TOKENS = 0,
  SQUAT_LEARNING_PER_SEQUENCE = 1,
  SQUAT_LEARNING_FROZEN = 2
} squat_learning;

/* Layers of one shape and width: squat::LayerGroup and squat::Options. squat_group_init() fills in the
 * defaults; set shape, and what else is to differ, behind it. */
typedef struct squat_group {
  size_t struct_size; /* of squat_group_init(): what the caller knows of this struct */
  int query_heads, kv_heads, head_dim;
  int value_dim;            /* 0: head_dim */
  int key_bits, value_bits; /* 2, 3, 4, 8, or 16: exact */
  squat_coding coding;
  squat_learning learning;
  int sinks, residual, page_tokens;
  int tile_tokens; /* -1: the default */
  int statistics_tokens;
  int attention_window;             /* 0: none */
  float attention_scale;            /* 0: 1 / sqrt(head_dim) */
  float soft_cap;                   /* 0: none */
  const float *inverse_frequencies; /* of the rotary embedding, radians a position */
  size_t rotary_pairs_count;        /* 0: unknown, or none */
  squat_rotary_pairs rotary_pairs;
  const float *alibi_slopes; /* [query_heads], or NULL */
  const float *sink_logits;  /* [query_heads], or NULL */
} squat_group;
SQUAT_PUBLIC void squat_group_init(squat_group *group);

typedef struct squat_model squat_model; /* what is said of a model: squat::ModelOptions */

/* NULL where memory is out. */
SQUAT_PUBLIC squat_model *squat_model_create(int layers);
SQUAT_PUBLIC void squat_model_destroy(squat_model *model);
/* What `group` points to is copied. */
SQUAT_PUBLIC squat_status squat_model_add_group(squat_model *model, const int *layers, size_t count,
                                                const squat_group *group);
SQUAT_PUBLIC squat_status squat_model_share_layer(squat_model *model, int layer, int keys_of);
SQUAT_PUBLIC squat_status squat_model_skip_layer(squat_model *model, int layer);
SQUAT_PUBLIC squat_status squat_model_set_exact_rows(squat_model *model, squat_element element);
SQUAT_PUBLIC squat_status squat_model_set_max_page_bytes(squat_model *model, uint64_t bytes);

/* run(context, count, task, of_task) calls task(of_task, i) for every i below count, on any threads, and
 * returns when all have returned. */
typedef void (*squat_task)(void *of_task, int index);
typedef void (*squat_run)(void *context, int count, squat_task task, void *of_task);
SQUAT_PUBLIC squat_status squat_model_set_parallel(squat_model *model, squat_run run, void *context);

/* ---- caches ---- */

typedef struct squat_cache squat_cache;
typedef uint64_t squat_sequence;

SQUAT_PUBLIC squat_status squat_cache_create(const squat_model *model, squat_cache **cache);
SQUAT_PUBLIC void squat_cache_destroy(squat_cache *cache);

SQUAT_PUBLIC squat_status squat_add_sequence(squat_cache *cache, squat_sequence *sequence);
SQUAT_PUBLIC squat_status squat_remove_sequence(squat_cache *cache, squat_sequence sequence);
SQUAT_PUBLIC squat_status squat_fork(squat_cache *cache, squat_sequence parent, int64_t tokens,
                                     squat_sequence *child);
SQUAT_PUBLIC squat_status squat_reorder(squat_cache *cache, const squat_sequence *sequences,
                                        const squat_sequence *parents, size_t count);
SQUAT_PUBLIC squat_status squat_truncate(squat_cache *cache, squat_sequence sequence, int64_t tokens);
SQUAT_PUBLIC squat_status squat_shift(squat_cache *cache, squat_sequence sequence, int64_t first,
                                      int64_t last, int64_t by);
SQUAT_PUBLIC squat_status squat_length(const squat_cache *cache, squat_sequence sequence,
                                       int64_t *tokens);
SQUAT_PUBLIC squat_status squat_layer_length(const squat_cache *cache, squat_sequence sequence,
                                             int layer, int64_t *tokens);
SQUAT_PUBLIC squat_status squat_reset_learning(squat_cache *cache);

/* [tokens, heads, head_dim], of v and out [tokens, heads, value_dim]; strides in elements; both 0: rows
 * one behind the other. */
typedef struct squat_tensor {
  void *data;
  squat_element element;
  int64_t tokens, heads, head_dim;
  int64_t token_stride, head_stride;
} squat_tensor;

/* A sequence's share of a batch: the next `tokens` rows of the tensors. */
typedef struct squat_share {
  squat_sequence sequence;
  int64_t tokens;
  int do_not_learn; /* of dummies that warm an engine up */
} squat_share;

/* Appends k and v and attends; with k and v of no tokens it only attends. lse: [tokens, query_heads], or
 * NULL. q, k, v and out are of one element type. */
SQUAT_PUBLIC squat_status squat_attend(squat_cache *cache, const squat_share *batch, size_t count,
                                       int layer, squat_tensor q, squat_tensor k, squat_tensor v,
                                       squat_tensor out, float *lse);
/* Attends for a tree of proposed tokens and appends nothing. parents: a row each, that of its parent
 * among its sequence's rows, or -1. */
SQUAT_PUBLIC squat_status squat_draft(squat_cache *cache, const squat_share *batch, size_t count,
                                      int layer, squat_tensor q, squat_tensor k, squat_tensor v,
                                      squat_tensor out, const int64_t *parents, float *lse);
/* Appends alone. q: what codings learn from, or no tokens. */
SQUAT_PUBLIC squat_status squat_append(squat_cache *cache, const squat_share *batch, size_t count,
                                       int layer, squat_tensor q, squat_tensor k, squat_tensor v);
/* k: [squat_layer_length(), kv_heads, head_dim]; v: the same, of value_dim */
SQUAT_PUBLIC squat_status squat_dequantize(squat_cache *cache, squat_sequence sequence, int layer,
                                           squat_tensor k, squat_tensor v);

/* Takes or gives the next `size` bytes of a snapshot. Anything but 0 ends the call with SQUAT_FAILED. */
typedef int (*squat_write)(void *context, const void *bytes, size_t size);
typedef int (*squat_read)(void *context, void *bytes, size_t size);
SQUAT_PUBLIC squat_status squat_save(squat_cache *cache, squat_sequence sequence, int with_codings,
                                     squat_write write, void *context);
SQUAT_PUBLIC squat_status squat_load(squat_cache *cache, squat_read read, void *context,
                                     squat_sequence *sequence);

/* squat::MemoryReport, in bytes. */
typedef struct squat_memory {
  uint64_t pages, pages_used, exact, statistics, bases, workspace, shared_pages, saved_by_sharing;
  int64_t packed_tokens, exact_tokens;
  double packed_bits_per_element, total_bits_per_element;
  uint64_t free_page_bytes;
} squat_memory;
SQUAT_PUBLIC squat_status squat_memory_report(const squat_cache *cache, squat_memory *memory);
SQUAT_PUBLIC squat_status squat_page_bytes_due(const squat_cache *cache, const squat_share *batch,
                                               size_t count, uint64_t *bytes);

#ifdef __cplusplus
}
#endif

#endif
