#include "cpu_engine.hpp"

#include <map>
#include <utility>
#include <vector>

#include "parallel_for.hpp"

namespace llama {

int CpuEngine::add_sequence(const CacheSpec &spec, const squat::Options &options) {
  caches_.push_back(make_cache(spec, options));
  return static_cast<int>(caches_.size()) - 1;
}

int CpuEngine::fork_sequence(int parent) {
  caches_.push_back(cache(parent).fork());
  return static_cast<int>(caches_.size()) - 1;
}

void CpuEngine::reorder(std::span<const int> sequences, std::span<const int> parents) {
  if (sequences.empty()) return;
  const auto caches = [&](std::span<const int> numbers) {
    std::vector<Cache *> found;
    for (int sequence : numbers) found.push_back(&cache(sequence));
    return found;
  };
  cache(sequences.front()).reorder(caches(sequences), caches(parents));
}

const RowMatrix &CpuEngine::forward(std::span<const Position> rows, std::span<const int> sequences) {
  const auto count = static_cast<squat::Index>(rows.size() / sequences.size());
  std::map<const void *, std::vector<int>> of_caches;  // places in `sequences`, by the cache they share
  for (int i = 0; i < static_cast<int>(sequences.size()); ++i)
    of_caches[cache(sequences[static_cast<std::size_t>(i)]).shared()].push_back(i);
  std::vector<std::vector<int>> together;
  for (auto &[shared, places] : of_caches) together.push_back(std::move(places));
  const auto attention = [&](int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out) {
    parallel_for(static_cast<int>(together.size()), [&](int group) {
      for (int i : together[static_cast<std::size_t>(group)])
        cache(sequences[static_cast<std::size_t>(i)]).attend(layer, q, k, v, out, i * count, count);
    });
  };
  return model_.forward(rows, attention, last_rows(rows.size(), sequences.size()));
}

const RowMatrix &CpuEngine::prefill(std::span<const Position> prompt, std::span<const int> sequences) {
  const auto count = static_cast<squat::Index>(prompt.size());
  const auto attention = [&](int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out) {
    unused_.resize(sequences.size() - 1);
    parallel_for(static_cast<int>(sequences.size()), [&](int i) {
      const auto at = static_cast<std::size_t>(i);
      if (i > 0) unused_[at - 1].resize(out.rows(), out.cols());
      cache(sequences[at]).attend(layer, q, k, v, i == 0 ? out : unused_[at - 1], 0, count);
    });
  };
  return model_.forward(prompt, attention, last_rows(prompt.size(), 1));
}

}  // namespace llama
