#pragma once

// What layers have learnt, by name, and the tables that kernels find it by.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "squat/cache/options.hpp"
#include "squat/coding/bit_shares.hpp"
#include "squat/coding/coding.hpp"
#include "squat/coding/page_shape.hpp"
#include "squat/coding/prior.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/cuda/coding/coding_tables.hpp"
#include "squat/cuda/coding/layer_coding.hpp"
#include "squat/cuda/error.hpp"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

class Codings {
 public:
  /// options must stay where they are.
  /// shares_bits: see LayerCoding; trellis: see DeviceTiles.
  Codings(const Options &options, int key_bits, int value_bits, bool shares_bits, bool trellis)
      : options_(&options),
        page_{.key_bits = key_bits,
              .value_bits = value_bits,
              .kv_heads = options.kv_heads,
              .head_dim = options.head_dim,
              .group = options.page_tokens,
              .codes = *options.codes,
              .value_coding = *options.values},
        shares_bits_(shares_bits) {
    if (options.rotary.empty())
      tiles_.push_back(std::make_unique<DeviceTiles>(nullptr, 0, options.head_dim, trellis));
    for (const RotaryTable &table : options.rotary) {
      tiles_.push_back(
          std::make_unique<DeviceTiles>(&table, *options.tile_tokens, options.head_dim, trellis));
    }
  }

  LayerCoding &at(Index coding) const { return *codings_[static_cast<std::size_t>(coding)]; }
  /// Of all codings, by name, in device memory.
  const CodingTables *tables() const { return tables_.data(); }
  /// The rotary table of a coding's layer; null without one.
  const RotaryTable *rotary(Index coding) const {
    return options_->rotary.empty() ? nullptr : &of_layer(options_->rotary, at(coding).layer());
  }

  /// Waits for the device. captured: there are graphs that go on reading the present tables.
  Index add(int layer, bool captured) {
    auto coding =
        std::make_unique<LayerCoding>(*options_, page_, shares_bits_, layer, *of_layer(tiles_, layer));
    auto place = std::find(codings_.begin(), codings_.end(), nullptr);
    if (place == codings_.end()) {
      grow_tables(codings_.size() + 1, captured);
      place = codings_.insert(place, nullptr);
    }
    const Index name = place - codings_.begin();
    upload<CodingTables>({&coding->tables(), 1}, tables_.data() + name, nullptr);
    check(cudaStreamSynchronize(nullptr), "coding tables");
    *place = std::move(coding);
    return name;
  }

  void remove(Index coding) { codings_[static_cast<std::size_t>(coding)].reset(); }

  /// Fixes a coding from its statistics. Returns false where they are of no text: it begins anew.
  /// workspace: made larger where needed.
  template <int HeadDim>
  bool learn(Index coding, DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    const bool learnt = at(coding).template learn<HeadDim>(workspace, stream);
    if (learnt) upload_tables(coding, stream);
    if (learnt && by_layer()) share_among_layers(stream);
    return learnt;
  }

  /// Fixes a coding, nothing learnt. Waits for the stream, as forget() does.
  void learn_nothing(Index coding, cudaStream_t stream) {
    at(coding).begin(true, stream);
    upload_tables_and_wait(coding, stream);
  }

  /// Makes a coding what it was when it was added.
  void forget(Index coding, cudaStream_t stream) {
    at(coding).begin(false, stream);
    upload_tables_and_wait(coding, stream);
    if (by_layer()) share_no_more();
  }

  /// Becomes what a record says. workspace: made larger where needed. Waits for the stream.
  template <int HeadDim>
  void adopt(Index coding, const CodingRecord &record, DeviceBuffer<std::byte> &workspace,
             cudaStream_t stream) {
    at(coding).template adopt<HeadDim>(record, workspace, stream);
    upload_tables_and_wait(coding, stream);
  }

  void restore(Index coding, LayerCoding::Backup backup) noexcept {
    LayerCoding &layer = at(coding);
    layer.restore(std::move(backup));
    write_tables(coding);
    if (by_layer() && !layer.learnt()) share_no_more();
  }

  /// Adds what a coding's statistics hold to `prior`. Returns whether they are still there.
  bool add_statistics(Index coding, Prior &prior) const {
    const LayerCoding &from = at(coding);
    if (!from.has_statistics()) return false;
    const std::vector<QueryStatistics> heads = from.statistics(nullptr);
    for (std::size_t head = 0; head < heads.size(); ++head) {
      prior.head(from.layer(), static_cast<Index>(head)).merge(heads[head]);
    }
    return true;
  }

  std::size_t statistics_bytes() const {
    std::size_t sum = 0;
    for (const auto &coding : codings_) sum += coding ? coding->statistics_bytes() : 0;
    return sum;
  }
  /// Of all but statistics.
  std::size_t bytes() const {
    std::size_t sum = tables_.bytes();
    for (const auto &coding : codings_) sum += coding ? coding->bytes() : 0;
    for (const auto &tiles : tiles_) sum += tiles->bytes();
    for (const auto &tables : retired_) sum += tables.bytes();
    return sum;
  }

  const PageShape &page() const { return page_; }

 private:
  bool by_layer() const { return shares_bits_ && *options_->allocation == Allocation::model; }

  /// Once all layers have learnt, gives each its part of the bytes of pages.
  void share_among_layers(cudaStream_t stream) {
    std::vector<Index> layers;
    for (std::size_t i = 0; i < codings_.size(); ++i) {
      const auto &coding = codings_[i];
      if (!coding || coding->learnt_nothing()) continue;
      if (!coding->learnt()) return;
      layers.push_back(static_cast<Index>(i));
    }
    std::vector<std::optional<ShareChoices>> choices;
    for (const Index layer : layers) choices.push_back(at(layer).choices());
    const std::vector<std::size_t> bytes = squat::share_among_layers(choices, page_.code_bytes());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      at(layers[i]).share(choices[i], bytes[i], stream);  // choices stay, for share_no_more()
      upload_tables(layers[i], stream);
    }
  }

  /// Undoes that, for some layer has not learnt any more.
  void share_no_more() noexcept {
    for (std::size_t i = 0; i < codings_.size(); ++i) {
      if (!codings_[i]) continue;
      codings_[i]->unshare();
      write_tables(static_cast<Index>(i));
    }
  }

  /// A copy that fails belongs to a device that no later call can use either.
  void write_tables(Index coding) noexcept {
    (void)cudaMemcpy(tables_.data() + coding, &at(coding).tables(), sizeof(CodingTables),
                     cudaMemcpyHostToDevice);
  }

  void upload_tables(Index coding, cudaStream_t stream) {
    upload<CodingTables>({&at(coding).tables(), 1}, tables_.data() + coding, stream);
  }
  void upload_tables_and_wait(Index coding, cudaStream_t stream) {
    upload_tables(coding, stream);
    check(cudaStreamSynchronize(stream), "coding tables");
  }

  /// What is given once for all layers, or once a layer.
  template <class Item>
  static const Item &of_layer(const std::vector<Item> &items, int layer) {
    return items.size() == 1 ? items.front() : items[static_cast<std::size_t>(layer)];
  }

  /// Room for so many codings on the device.
  void grow_tables(std::size_t count, bool captured) {
    if (tables_.size() >= count) return;
    DeviceBuffer<CodingTables> tables(
        std::max({count, 2 * tables_.size(), static_cast<std::size_t>(options_->layers)}));
    tables.fill(0, nullptr);
    check(cudaMemcpy(tables.data(), tables_.data(), tables_.bytes(), cudaMemcpyDeviceToDevice),
          "coding tables");
    check(cudaDeviceSynchronize(), "coding tables");
    if (captured) retired_.reserve(retired_.size() + 1);
    std::swap(tables_, tables);
    if (captured) retired_.push_back(std::move(tables));
  }

  const Options *options_;
  PageShape page_;
  bool shares_bits_;
  std::vector<std::unique_ptr<DeviceTiles>> tiles_;  // one, or one a layer
  std::vector<std::unique_ptr<LayerCoding>> codings_;
  DeviceBuffer<CodingTables> tables_;
  std::vector<DeviceBuffer<CodingTables>> retired_;  // that captured graphs read
};

}  // namespace squat::cuda
