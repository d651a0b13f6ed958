#include "windowed_cache.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

namespace engine {
namespace {

/// Sequences have the names that the cache of the layers with all tokens gave them.
class WindowedCache : public Cache {
 public:
  WindowedCache(const Config &config, const squat::Options &options, const MakeCache &make) {
    for (int layer = 0; layer < config.layers; ++layer) {
      int &of_its_kind = config.is_local(layer) ? local_layers_ : global_layers_;
      places_.push_back({config.is_local(layer), of_its_kind++});
    }
    squat::Options part = options;
    part.layers = global_layers_;
    part.rotary = {{config.inverse_frequencies, config.differences.rotary_pairs}};
    part.max_pages = share(options.max_pages, global_layers_);
    global_ = make(part);
    part.layers = local_layers_;
    part.rotary = {{config.local_inverse_frequencies, config.differences.rotary_pairs}};
    part.max_pages = share(options.max_pages, local_layers_);
    part.attention_window = config.attention_window;
    local_ = make(part);
    options_ = global_->options();
    options_.layers = config.layers;
    options_.rotary = options.rotary;
    options_.max_pages = options.max_pages;
  }

  const squat::Options &options() const override { return options_; }

  SequenceId add_sequence() override {
    return pair_up(global_->add_sequence(), [&] { return local_->add_sequence(); });
  }
  void remove_sequence(SequenceId sequence) override {
    global_->remove_sequence(sequence);
    const auto found = locals_.find(sequence.value);
    local_->remove_sequence(found->second);
    locals_.erase(found);
  }
  SequenceId fork(SequenceId parent, Index tokens) override {
    return pair_up(global_->fork(parent, tokens), [&] { return local_->fork(local(parent), tokens); });
  }
  void reorder(std::span<const SequenceId> sequences, std::span<const SequenceId> parents) override {
    global_->reorder(sequences, parents);
    local_->reorder(locals(sequences), locals(parents));
  }
  void truncate(SequenceId sequence, Index tokens) override {
    local_->truncate(local(sequence), tokens);
    global_->truncate(sequence, tokens);
  }
  void save(SequenceId sequence, std::ostream &out) override {
    global_->save(sequence, out);
    local_->save(local(sequence), out);
  }
  SequenceId load(std::istream &in) override {
    return pair_up(global_->load(in), [&] { return local_->load(in); });
  }
  Index length(SequenceId sequence) const override { return global_->length(sequence); }

  std::size_t page_bytes(int layer) const override {
    const Place place = places_.at(static_cast<std::size_t>(layer));
    return (place.local ? local_ : global_)->page_bytes(place.layer);
  }
  std::size_t free_pages() const override { return global_->free_pages() + local_->free_pages(); }
  std::size_t pages_due(Batch batch) const override {
    return global_->pages_due(batch) + local_->pages_due(locals(batch));
  }
  squat::FreedPages freed_if_removed(SequenceId sequence) const override {
    const squat::FreedPages a = global_->freed_if_removed(sequence),
                            b = local_->freed_if_removed(local(sequence));
    return {a.pages + b.pages, a.bytes + b.bytes};
  }
  squat::MemoryReport memory_report() const override;

  void attend(Batch batch, int layer, Rows q, Rows k, Rows v, Rows out) override {
    const Place place = places_.at(static_cast<std::size_t>(layer));
    if (place.local) {
      local_->attend(locals(batch), place.layer, q, k, v, out);
    } else {
      global_->attend(batch, place.layer, q, k, v, out);
    }
  }

 private:
  struct Place {
    bool local;
    int layer;  // among its kind
  };

  /// A limit on the pages of all layers, for some of them.
  std::size_t share(std::size_t pages, int layers) const {
    if (pages == std::numeric_limits<std::size_t>::max()) return pages;
    return pages * static_cast<std::size_t>(layers) / places_.size();
  }

  /// A sequence of both caches: where the second cannot be had, the first is given back.
  template <class MakeLocal>
  SequenceId pair_up(SequenceId global, MakeLocal &&make_local) {
    try {
      locals_.emplace(global.value, make_local());
    } catch (...) {
      global_->remove_sequence(global);
      throw;
    }
    return global;
  }

  /// A sequence that the caller made up has no partner; the local cache refuses a name never given.
  SequenceId local(SequenceId sequence) const {
    const auto found = locals_.find(sequence.value);
    return found == locals_.end() ? SequenceId{std::numeric_limits<std::uint64_t>::max()}
                                  : found->second;
  }
  std::vector<SequenceId> locals(std::span<const SequenceId> sequences) const {
    std::vector<SequenceId> partners;
    for (SequenceId sequence : sequences) partners.push_back(local(sequence));
    return partners;
  }
  std::vector<squat::SequenceTokens> locals(Batch batch) const {
    std::vector<squat::SequenceTokens> partners(batch.begin(), batch.end());
    for (squat::SequenceTokens &entry : partners) entry.sequence = local(entry.sequence);
    return partners;
  }

  std::vector<Place> places_;
  int global_layers_ = 0, local_layers_ = 0;
  std::unique_ptr<Cache> global_, local_;
  squat::Options options_;
  std::unordered_map<std::uint64_t, SequenceId> locals_;  // of every sequence
};

squat::MemoryReport WindowedCache::memory_report() const {
  squat::MemoryReport sum = global_->memory_report();
  const squat::MemoryReport other = local_->memory_report();
  const auto tokens = [](const squat::MemoryReport &report) {
    return static_cast<double>(report.packed_tokens + report.exact_tokens);
  };
  const double all = tokens(sum) + tokens(other);
  if (all > 0) {
    sum.total_bits_per_element =
        (sum.total_bits_per_element * tokens(sum) + other.total_bits_per_element * tokens(other)) / all;
  }
  sum.packed_bits_per_element =
      (sum.packed_bits_per_element * global_layers_ + other.packed_bits_per_element * local_layers_) /
      (global_layers_ + local_layers_);
  sum.pages += other.pages;
  sum.pages_used += other.pages_used;
  sum.exact += other.exact;
  sum.statistics += other.statistics;
  sum.bases += other.bases;
  sum.workspace += other.workspace;
  sum.shared_pages += other.shared_pages;
  sum.saved_by_sharing += other.saved_by_sharing;
  sum.packed_tokens += other.packed_tokens;
  sum.exact_tokens += other.exact_tokens;
  return sum;
}

}  // namespace

std::unique_ptr<Cache> make_windowed_cache(const Config &config, const squat::Options &options,
                                           const MakeCache &make) {
  int local = 0;
  for (int layer = 0; layer < config.layers; ++layer) local += config.is_local(layer);
  if (local == 0) return make(options);
  if (local == config.layers) {
    squat::Options windowed = options;
    windowed.attention_window = config.attention_window;
    return make(windowed);
  }
  if (options.prior != nullptr)
    throw std::invalid_argument("a prior speaks of all layers, which this model keeps in two caches");
  return std::make_unique<WindowedCache>(config, options, make);
}

}  // namespace engine
