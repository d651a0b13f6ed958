#pragma once

#include <memory>
#include <span>
#include <vector>

#include "batch.hpp"
#include "engine.hpp"
#include "model.hpp"
#include "squat/model/cpu_group.hpp"

namespace engine {

/// Model and caches in the memory of the host; caches attend side by side.
class CpuEngine : public Engine {
 public:
  explicit CpuEngine(const Gguf &file) : model_(file) {}

  const Config &config() const override { return model_.config(); }
  std::unique_ptr<ModelCache> make_cache(const squat::ModelOptions &options) override {
    return std::make_unique<ModelCache>(options, squat::make_cpu_group);
  }
  const RowMatrix &forward(std::span<const int> tokens,
                           std::span<const SequenceRows> sequences) override;
  const RowMatrix &prefill(std::span<const int> prompt,
                           std::span<const SequenceRows> sequences) override;

 private:
  void attend(const Batch::OfCache &part, int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v,
              RowMatrix &out) const;

  Model model_;
  std::vector<RowMatrix> unused_;  // attention of all sequences of a prompt but the first
};

}  // namespace engine
