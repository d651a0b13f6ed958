#include "squat/squat.hpp"

int main() {
  squat::KVCache<float, 2> cache({.layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 16});
  return cache.length(cache.add_sequence()) == 0 ? 0 : 1;
}
