#include "squat/squat.hpp"

squat::Index tokens_in_other_unit();

int main() {
  squat::KVCache<float, 2> cache({.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16});
  return cache.length(cache.add_sequence()) == tokens_in_other_unit() ? 0 : 1;
}
