#pragma once

// Teacher-forced decoding of windows of a text over several codings of the cache at once.

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cache_spec.hpp"
#include "engine.hpp"
#include "metrics.hpp"
#include "parallel_for.hpp"

namespace engine {

/// Windows of a text, one behind the other: [count, length]. The first `prompt` tokens of each are fed
/// at once, the others one by one.
struct Windows {
  std::span<const int> tokens;
  int count = 0;
  int length = 0;
  int prompt = 0;

  int token(int window, int position) const {
    return tokens[static_cast<std::size_t>(window) * static_cast<std::size_t>(length) +
                  static_cast<std::size_t>(position)];
  }
  std::span<const int> prompt_of(int window) const {
    return tokens.subspan(static_cast<std::size_t>(window) * static_cast<std::size_t>(length),
                          static_cast<std::size_t>(prompt));
  }
};

/// A coding of the cache and what came of it.
struct CodingRun {
  CacheSpec spec;
  squat::ModelOptions options;
  std::vector<Prediction> predictions{};      // of every window's tokens behind its prompt
  std::vector<squat::MemoryReport> memory{};  // of every window's cache at its end
};

/// Decodes windows [first, first + count) together, a sequence for each window and run, so that a step
/// reads the weights once for all of them. Every sequence has a cache of its own: each query meets the
/// state that it would meet alone. runs[0] is what all runs are compared with, step by step, so that
/// logits of one step only are ever kept. progress(position) is called after each step.
inline void decode_together(Engine &engine, const Windows &windows, int first, int count,
                            std::vector<CodingRun> &runs, const std::function<void(int)> &progress) {
  const std::size_t width = runs.size();
  std::vector<std::unique_ptr<ModelCache>> caches;  // window after window, in each the order of the runs
  std::vector<SequenceRows> sequences;
  for (int window = first; window < first + count; ++window) {
    for (const CodingRun &run : runs) {
      caches.push_back(engine.make_cache(run.options));
      sequences.push_back({caches.back().get(), caches.back()->add_sequence(), windows.prompt});
    }
    engine.prefill(windows.prompt_of(window), std::span(sequences).last(width));
  }
  for (SequenceRows &rows : sequences) rows.tokens = 1;
  std::vector<Prediction> predictions(sequences.size());
  for (int position = windows.prompt; position + 1 < windows.length; ++position) {
    std::vector<int> tokens;
    for (int window = first; window < first + count; ++window)
      tokens.insert(tokens.end(), width, windows.token(window, position));
    const RowMatrix &logits = engine.forward(tokens, sequences);
    parallel_for(static_cast<int>(sequences.size()), [&](int i) {
      const int window = i / static_cast<int>(width);
      predictions[static_cast<std::size_t>(i)] =
          compare(logits.row(window * static_cast<int>(width)), logits.row(i),
                  windows.token(first + window, position + 1));
    });
    for (std::size_t i = 0; i < sequences.size(); ++i)
      runs[i % width].predictions.push_back(predictions[i]);
    progress(position);
  }
  for (std::size_t i = 0; i < caches.size(); ++i)
    runs[i % width].memory.push_back(caches[i]->memory_report());
}

/// Decodes all windows over all runs, at most `batch` sequences together, but at least one window.
/// progress(tokens) is called after each step with the tokens of the text that are behind it.
inline void decode_windows(Engine &engine, const Windows &windows, int batch,
                           std::vector<CodingRun> &runs, const std::function<void(int)> &progress) {
  const int together = std::max(1, batch / static_cast<int>(runs.size()));
  for (int first = 0; first < windows.count; first += together) {
    const int count = std::min(together, windows.count - first);
    decode_together(engine, windows, first, count, runs,
                    [&](int position) { progress(first * windows.length + count * (position + 2)); });
  }
}

}  // namespace engine
