#include "squat/squat.hpp"

squat::Index length_in_other_unit() {
  squat::KVCache<float, 2> cache({.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16});
  return cache.length(cache.add_sequence());
}
