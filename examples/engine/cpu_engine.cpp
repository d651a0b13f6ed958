#include "cpu_engine.hpp"

#include "parallel_for.hpp"

namespace engine {

void CpuEngine::attend(const Batch::OfCache &part, int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v,
                       RowMatrix &out) const {
  const Config &c = config();
  const auto view = [&](RowMatrix &rows, int heads) {
    return squat::TensorView<float>(rows.data(), rows.rows(), heads, c.head_dim)
        .slice(part.first, part.count);
  };
  part.cache->attend(part.sequences, layer, view(q, c.query_heads), view(k, c.kv_heads),
                     view(v, c.kv_heads), view(out, c.query_heads));
}

const RowMatrix &CpuEngine::forward(std::span<const int> tokens,
                                    std::span<const SequenceRows> sequences) {
  const Batch batch(tokens, sequences);
  const auto attention = [&](int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out) {
    parallel_for(static_cast<int>(batch.caches.size()),
                 [&](int i) { attend(batch.caches[static_cast<std::size_t>(i)], layer, q, k, v, out); });
  };
  return model_.forward(batch.rows, attention, batch.last);
}

const RowMatrix &CpuEngine::prefill(std::span<const int> prompt,
                                    std::span<const SequenceRows> sequences) {
  const Batch batch(prompt, sequences.first(1));
  const auto count = static_cast<squat::Index>(prompt.size());
  const auto attention = [&](int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out) {
    unused_.resize(sequences.size() - 1);
    parallel_for(static_cast<int>(sequences.size()), [&](int i) {
      const auto at = static_cast<std::size_t>(i);
      if (i > 0) unused_[at - 1].resize(out.rows(), out.cols());
      attend({sequences[at].cache, 0, count, {{sequences[at].sequence, count}}}, layer, q, k, v,
             i == 0 ? out : unused_[at - 1]);
    });
  };
  return model_.forward(batch.rows, attention, batch.last);
}

}  // namespace engine
