#pragma once

// A cache, its sequences and inputs for calls: what expect_nothing_lost() makes calls fail in.

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include "reference_attention.hpp"

namespace squat::test {

inline Options small_options(Coding coding) {
  return {.layers = 2,
          .query_heads = 2,
          .kv_heads = 1,
          .head_dim = 32,
          .coding = coding,
          .residual = 16,
          .page_tokens = 16,
          .rotary = {{.inverse_frequencies = {1, .1f, .01f}}},
          .statistics_tokens = 80};
}

struct SmallWorld {
  explicit SmallWorld(const Options &options, Index tokens = 200)
      : cache(options), sequences{cache.add_sequence(), cache.add_sequence()}, in(options, tokens, 1) {}

  void attend(std::size_t sequence, Index first, Index count) {
    for (int layer : {0, 1}) attend(sequence, layer, first, count);
  }
  void attend(std::size_t sequence, int layer, Index first, Index count) {
    cache.attend(sequences[sequence], layer, in.q.view(first, count), in.k.view(first, count),
                 in.v.view(first, count), in.out.view(first, count));
  }

  /// Both sequences in one call to the second layer.
  void attend_batch() {
    const std::array batch = {SequenceTokens{sequences[0], 70}, SequenceTokens{sequences[1], 100}};
    cache.attend(batch, 1, in.q.view(10, 170), in.k.view(10, 170), in.v.view(10, 170),
                 in.out.view(10, 170));
  }

  /// What a caller can see.
  std::vector<float> seen() {
    std::vector<float> all;
    for (const SequenceId sequence : sequences) {
      for (int layer : {0, 1}) {
        const Contents held = contents(cache, sequence, layer);
        all.push_back(static_cast<float>(cache.length(sequence, layer)));
        all.insert(all.end(), held.k.elements.begin(), held.k.elements.end());
        all.insert(all.end(), held.v.elements.begin(), held.v.elements.end());
      }
    }
    const MemoryReport report = cache.memory_report();
    all.push_back(static_cast<float>(report.packed_tokens));
    all.push_back(static_cast<float>(report.exact_tokens));
    return all;
  }

  std::vector<float> outputs() const { return in.out.elements; }

  /// Steps on, and what comes of them in every layer; the second sees what the first packs.
  std::vector<float> decode() {
    std::vector<float> all;
    for (const auto &[sequence, first] : {std::pair<std::size_t, Index>{0, 190}, {0, 193}, {1, 190}}) {
      for (int layer : {0, 1}) {
        attend(sequence, layer, first, 3);
        const std::vector<float> of_layer = outputs();
        all.insert(all.end(), of_layer.begin(), of_layer.end());
      }
    }
    return all;
  }

  KVCache<half, 2> cache;
  std::array<SequenceId, 2> sequences;
  Inputs<> in;
};

}  // namespace squat::test
