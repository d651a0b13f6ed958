#pragma once

#include <memory>
#include <vector>

#include "cache_spec.hpp"
#include "engine.hpp"
#include "model.hpp"

namespace llama {

/// Model and caches in the memory of the host; sequences attend side by side, but for those of one
/// cache.
class CpuEngine : public Engine {
 public:
  explicit CpuEngine(const Gguf &file) : model_(file) {}

  const Config &config() const override { return model_.config(); }
  int add_sequence(const CacheSpec &spec, const squat::Options &options) override;
  int fork_sequence(int parent) override;
  void reorder(std::span<const int> sequences, std::span<const int> parents) override;
  void remove_sequence(int sequence) override { caches_[static_cast<std::size_t>(sequence)].reset(); }
  squat::MemoryReport memory_report(int sequence) const override {
    return cache(sequence).memory_report();
  }
  const RowMatrix &forward(std::span<const Position> rows, std::span<const int> sequences) override;
  const RowMatrix &prefill(std::span<const Position> prompt, std::span<const int> sequences) override;

 private:
  Cache &cache(int sequence) const { return *caches_[static_cast<std::size_t>(sequence)]; }

  Model model_;
  std::vector<std::unique_ptr<Cache>> caches_;  // by sequence, none where it was removed
  std::vector<RowMatrix> unused_;               // attention of all sequences of a prompt but the first
};

}  // namespace llama
