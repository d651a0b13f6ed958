// The smallest engine there is: one layer of attention over random queries, keys and values, each
// channel like the one before it, as those of models are more alike in some directions than in others.

#include <algorithm>
#include <cstdio>
#include <random>
#include <squat/squat.hpp>
#include <vector>

int main() {
  constexpr int query_heads = 8, kv_heads = 2, head_dim = 64, prompt = 1024, generated = 100;
  squat::KVCache<squat::half, 2> cache(
      {.layers = 1, .query_heads = query_heads, .kv_heads = kv_heads, .head_dim = head_dim});
  const squat::SequenceId sequence = cache.add_sequence();

  std::mt19937 generator;
  std::normal_distribution<float> normal;
  for (int step = 0; step <= generated; ++step) {
    const int tokens = step == 0 ? prompt : 1;
    std::vector<float> q(tokens * query_heads * head_dim), k(tokens * kv_heads * head_dim), v(k), out(q);
    for (auto *x : {&q, &k, &v}) {
      std::generate(x->begin(), x->end(), [&, last = 0.0f]() mutable {
        return last = 0.7f * last + 0.7f * normal(generator);
      });
    }
    cache.attend(sequence, 0, squat::TensorView<float>(q.data(), tokens, query_heads, head_dim),
                 {k.data(), tokens, kv_heads, head_dim}, {v.data(), tokens, kv_heads, head_dim},
                 {out.data(), tokens, query_heads, head_dim});
  }

  const squat::MemoryReport report = cache.memory_report();
  std::printf("%td tokens, %td of them packed to %.2f bits an element\n", cache.length(sequence),
              report.packed_tokens, report.packed_bits_per_element);
}
