/* squat.h from C, as a binding would use it: a model with an exact layer and a packed one. */

#include <math.h>
#include <squat/squat.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void check(int holds, const char *what, int line) {
  if (holds) return;
  printf("line %d: %s; the last error is \"%s\"\n", line, what, squat_last_error());
  ++failures;
}
#define CHECK(condition) check((condition) != 0, #condition, __LINE__)

static void expect_error(squat_status status, squat_status expected, const char *text, int line) {
  if (status == expected && strcmp(squat_last_error(), text) == 0) return;
  printf("line %d: status %d, \"%s\"\n  expected %d, \"%s\"\n", line, (int)status, squat_last_error(),
         (int)expected, text);
  ++failures;
}
#define EXPECT_ERROR(call, expected, text) expect_error(call, expected, text, __LINE__)

enum { query_heads = 4, kv_heads = 2, head_dim = 32, most_tokens = 200, layers = 2 };

static float q[most_tokens * query_heads * head_dim], k[most_tokens * kv_heads * head_dim],
    v[most_tokens * kv_heads * head_dim];
static unsigned state = 1;

static float uniform(void) {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / (float)(1u << 24) - .5f;
}

static squat_tensor rows(float *data, int64_t first, int64_t tokens, int64_t heads) {
  squat_tensor tensor = {0};
  tensor.data = data + first * heads * head_dim;
  tensor.element = SQUAT_FLOAT32;
  tensor.tokens = tokens;
  tensor.heads = heads;
  tensor.head_dim = head_dim;
  return tensor;
}

static squat_status feed(squat_cache *cache, squat_sequence sequence, int layer, int64_t first,
                         int64_t tokens, float *out) {
  const squat_share share = {sequence, tokens, 0};
  return squat_attend(cache, &share, 1, layer, rows(q, first, tokens, query_heads),
                      rows(k, first, tokens, kv_heads), rows(v, first, tokens, kv_heads),
                      rows(out, 0, tokens, query_heads), NULL);
}

/* Softmax of the last query over all tokens of a head, in double precision. */
static double attention(int64_t tokens, int head, int channel) {
  const int kv = head / (query_heads / kv_heads);
  double sum = 0, weighted = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    double score = 0;
    for (int i = 0; i < head_dim; ++i)
      score += (double)q[((tokens - 1) * query_heads + head) * head_dim + i] *
               (double)k[(token * kv_heads + kv) * head_dim + i];
    const double weight = exp(score / sqrt((double)head_dim));
    sum += weight;
    weighted += weight * (double)v[(token * kv_heads + kv) * head_dim + channel];
  }
  return weighted / sum;
}

static void run_in_turn(void *context, int count, squat_task task, void *of_task) {
  ++*(int *)context;
  for (int i = count - 1; i >= 0; --i) task(of_task, i);
}

typedef struct snapshot {
  char *bytes;
  size_t size, at, most;
} snapshot;

static int write_snapshot(void *context, const void *bytes, size_t size) {
  snapshot *to = (snapshot *)context;
  if (to->size + size > to->most) return 1;
  memcpy(to->bytes + to->size, bytes, size);
  to->size += size;
  return 0;
}

static int read_snapshot(void *context, void *bytes, size_t size) {
  snapshot *from = (snapshot *)context;
  if (from->at + size > from->size) return 1;
  memcpy(bytes, from->bytes + from->at, size);
  from->at += size;
  return 0;
}

static squat_model *make_model(int *parallel_calls) {
  squat_model *model = squat_model_create(layers);
  squat_group group;
  squat_group_init(&group);
  group.query_heads = query_heads;
  group.kv_heads = kv_heads;
  group.head_dim = head_dim;
  group.residual = 16;
  group.page_tokens = 16;
  group.statistics_tokens = 64;
  const int packed = 1, exact = 0;
  CHECK(squat_model_add_group(model, &packed, 1, &group) == SQUAT_OK);
  group.key_bits = group.value_bits = 16;
  CHECK(squat_model_add_group(model, &exact, 1, &group) == SQUAT_OK);
  CHECK(squat_model_set_exact_rows(model, SQUAT_FLOAT16) == SQUAT_OK);
  CHECK(squat_model_set_parallel(model, run_in_turn, parallel_calls) == SQUAT_OK);
  return model;
}

static void refuse_what_cannot_be_served(squat_cache *cache, squat_sequence sequence) {
  float out[query_heads * head_dim];
  EXPECT_ERROR(squat_add_sequence(cache, NULL), SQUAT_INVALID,
               "squat: sequence is NULL, must be a pointer to something");
  EXPECT_ERROR(squat_add_sequence(NULL, &sequence), SQUAT_INVALID,
               "squat: cache is NULL, must be a pointer to something");
  EXPECT_ERROR(feed(cache, sequence, 2, 0, 1, out), SQUAT_INVALID, "squat: layer is 2, must be 0 to 1");
  EXPECT_ERROR(feed(cache, sequence + 1000, 0, 0, 1, out), SQUAT_INVALID,
               "squat: sequence is 4294968296, must be one that was added and not removed");
  EXPECT_ERROR(squat_truncate(cache, sequence, 1000), SQUAT_INVALID,
               "squat: tokens is 1000, must be 0 to the length of the sequence, 200");
  squat_tensor of_another = rows(k, 0, 1, kv_heads);
  of_another.element = SQUAT_BFLOAT16;
  const squat_share share = {sequence, 1, 0};
  EXPECT_ERROR(squat_attend(cache, &share, 1, 0, rows(q, 0, 1, query_heads), of_another,
                            rows(v, 0, 1, kv_heads), rows(out, 0, 1, query_heads), NULL),
               SQUAT_INVALID,
               "squat: k is of another element type, must be of that of the other tensors");

  squat_model *model = squat_model_create(1);
  squat_group group;
  squat_group_init(&group);
  group.struct_size = 8;
  const int layer = 0;
  CHECK(squat_model_add_group(model, &layer, 1, &group) == SQUAT_INVALID);
  squat_cache *none = NULL;
  EXPECT_ERROR(
      squat_cache_create(model, &none), SQUAT_INVALID,
      "squat: groups is without layer 0, must be such that each layer is in a group, shared, or without "
      "keys");
  CHECK(none == NULL);
  squat_model_destroy(model);
}

int main(void) {
  for (size_t i = 0; i < sizeof q / sizeof *q; ++i) q[i] = 4 * uniform();
  for (size_t i = 0; i < sizeof k / sizeof *k; ++i) k[i] = 4 * uniform();
  for (size_t i = 0; i < sizeof v / sizeof *v; ++i) v[i] = uniform();
  int parallel_calls = 0;
  squat_model *model = make_model(&parallel_calls);
  squat_cache *cache = NULL;
  CHECK(squat_cache_create(model, &cache) == SQUAT_OK);
  if (cache == NULL) return 1;

  squat_sequence sequence = 0, child = 0, loaded = 0;
  CHECK(squat_add_sequence(cache, &sequence) == SQUAT_OK);
  float *out = malloc(most_tokens * query_heads * head_dim * sizeof *out);
  const squat_share all = {sequence, most_tokens, 0};
  uint64_t due = 0;
  CHECK(squat_page_bytes_due(cache, &all, 1, &due) == SQUAT_OK);
  CHECK(due > 0);
  for (int layer = 0; layer < layers; ++layer) {
    CHECK(feed(cache, sequence, layer, 0, most_tokens, out) == SQUAT_OK);
    for (int head = 0; head < query_heads; ++head) {
      const double given = (double)out[((most_tokens - 1) * query_heads + head) * head_dim];
      CHECK(fabs(given - attention(most_tokens, head, 0)) < 2e-3);
    }
  }
  CHECK(parallel_calls > 0);

  squat_memory memory;
  CHECK(squat_memory_report(cache, &memory) == SQUAT_OK);
  CHECK(memory.packed_tokens + memory.exact_tokens == layers * most_tokens);
  CHECK(memory.pages_used == due);
  CHECK(memory.packed_bits_per_element > 8 && memory.packed_bits_per_element < 12);

  int64_t tokens = 0;
  CHECK(squat_fork(cache, sequence, 100, &child) == SQUAT_OK);
  CHECK(squat_length(cache, child, &tokens) == SQUAT_OK && tokens == 100);
  CHECK(squat_reorder(cache, &child, &sequence, 1) == SQUAT_OK);
  CHECK(squat_layer_length(cache, child, 1, &tokens) == SQUAT_OK && tokens == most_tokens);

  /* A draft of two tokens that are one path is their call. */
  const squat_share two = {child, 2, 0};
  const int64_t path[] = {-1, 0}, no_path[] = {-1, 1};
  float drafted[2 * query_heads * head_dim];
  CHECK(squat_draft(cache, &two, 1, 0, rows(q, 0, 2, query_heads), rows(k, 0, 2, kv_heads),
                    rows(v, 0, 2, kv_heads), rows(drafted, 0, 2, query_heads), path, NULL) == SQUAT_OK);
  CHECK(feed(cache, child, 0, 0, 2, out) == SQUAT_OK);
  for (int i = 0; i < 2 * query_heads * head_dim; ++i) CHECK(fabsf(drafted[i] - out[i]) < 1e-5f);
  EXPECT_ERROR(squat_draft(cache, &two, 1, 0, rows(q, 0, 2, query_heads), rows(k, 0, 2, kv_heads),
                           rows(v, 0, 2, kv_heads), rows(drafted, 0, 2, query_heads), no_path, NULL),
               SQUAT_INVALID, "squat: parents is 1, must be -1 to 0");

  snapshot saved = {malloc(1 << 20), 0, 0, 1 << 20};
  CHECK(squat_save(cache, sequence, 1, write_snapshot, &saved) == SQUAT_OK);
  CHECK(squat_load(cache, read_snapshot, &saved, &loaded) == SQUAT_OK);
  float again[query_heads * head_dim];
  const squat_share last = {sequence, 1, 0}, last_loaded = {loaded, 1, 0};
  const squat_tensor none = {0}, query = rows(q, most_tokens - 1, 1, query_heads);
  float lse[query_heads] = {0};
  CHECK(squat_attend(cache, &last, 1, 1, query, none, none, rows(out, 0, 1, query_heads), lse) ==
        SQUAT_OK);
  CHECK(lse[0] > 0);
  CHECK(squat_attend(cache, &last_loaded, 1, 1, query, none, none, rows(again, 0, 1, query_heads),
                     NULL) == SQUAT_OK);
  CHECK(memcmp(again, out, sizeof again) == 0);
  saved.at = 0;
  saved.size /= 2;
  EXPECT_ERROR(squat_load(cache, read_snapshot, &saved, &loaded), SQUAT_FAILED,
               "squat: the snapshot could not be read");
  saved.most = 100;
  saved.size = 0;
  EXPECT_ERROR(squat_save(cache, sequence, 1, write_snapshot, &saved), SQUAT_FAILED,
               "squat: the snapshot could not be written");

  refuse_what_cannot_be_served(cache, sequence);
  CHECK(squat_truncate(cache, sequence, 150) == SQUAT_OK);
  CHECK(squat_remove_sequence(cache, child) == SQUAT_OK);
  CHECK(strlen(squat_version()) >= 5);

  free(saved.bytes);
  free(out);
  squat_cache_destroy(cache);
  squat_cache_destroy(NULL);
  squat_model_destroy(model);
  if (failures == 0) printf("all of squat.h works from C\n");
  return failures != 0;
}
