#include "cpu_engine.hpp"

#include "parallel_for.hpp"

namespace llama {

int CpuEngine::add_sequence(const CacheSpec& spec, const squat::Options& options) {
  caches_.push_back(make_cache(spec, options));
  return static_cast<int>(caches_.size()) - 1;
}

const RowMatrix& CpuEngine::forward(std::span<const Position> rows, std::span<const int> sequences) {
  const auto count = static_cast<squat::Index>(rows.size() / sequences.size());
  const auto attention = [&](int layer, RowMatrix& q, RowMatrix& k, RowMatrix& v, RowMatrix& out) {
    parallel_for(static_cast<int>(sequences.size()), [&](int i) {
      cache(sequences[static_cast<std::size_t>(i)]).attend(layer, q, k, v, out, i * count, count);
    });
  };
  return model_.forward(rows, attention, last_rows(rows.size(), sequences.size()));
}

}  // namespace llama
