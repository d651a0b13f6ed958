#pragma once

// What a layer's codings have learnt, in device memory.

#include <cuda_runtime_api.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "squat/coding/bit_allocation.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/mean_modes.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/cuda/page/fragments.cuh"
#include "squat/cuda/page/trellis_places.cuh"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Which tile follows which.
enum class TileOrder { rows, columns };

/// A matrix as tiles of A in float16, a row or a column of tiles after the other; what is no multiple of
/// 16 is filled up with zeros. Numbers are divided by `unit`.
inline std::vector<half> matrix_tiles(const Eigen::MatrixXd &matrix, double unit, TileOrder order) {
  const Index row_tiles = (matrix.rows() + 15) / 16, column_tiles = (matrix.cols() + 15) / 16;
  std::vector<half> tiles(static_cast<std::size_t>(row_tiles * column_tiles * 256), half(0.0f));
  for (Index row = 0; row < matrix.rows(); ++row) {
    for (Index column = 0; column < matrix.cols(); ++column) {
      const Index i = row / 16, j = column / 16;
      const Index tile = order == TileOrder::rows ? i * column_tiles + j : j * row_tiles + i;
      const int element = tile_element(static_cast<int>(row % 16), static_cast<int>(column % 16));
      tiles[static_cast<std::size_t>(tile * 256 + element)] =
          half(static_cast<float>(matrix(row, column) / unit));
    }
  }
  return tiles;
}

/// The least power of two that no element's magnitude exceeds; 1 for none.
inline double unit_of(const Eigen::MatrixXd &matrix) {
  const double largest = matrix.size() > 0 ? matrix.cwiseAbs().maxCoeff() : 0.0;
  return largest > 0 ? std::exp2(std::ceil(std::log2(largest))) : 1.0;
}

/// Arrays that go to the device in one piece, and room behind them for what is made there. add() and
/// leave_room() say where they will be: call both for the same arrays twice, first to learn the size,
/// then with the memory there.
class TableImage {
 public:
  /// To learn the size.
  TableImage() = default;
  /// In memory of the device, of the size that was learnt.
  TableImage(std::byte *device, const TableImage &measured)
      : device_(device), room_(aligned(measured.size_)), bytes_(measured.size_) {}

  template <class Target, class Scalar>
  const Target *add(std::span<const Scalar> elements) {
    const std::size_t at = aligned(size_);
    size_ = at + elements.size_bytes();
    if (!bytes_.empty()) std::memcpy(bytes_.data() + at, elements.data(), elements.size_bytes());
    return reinterpret_cast<const Target *>(device_ + at);
  }
  template <class Scalar>
  const Scalar *add(const Scalar *elements, Index count) {
    return add<Scalar>(std::span<const Scalar>(elements, static_cast<std::size_t>(count)));
  }

  /// For `count` elements that a kernel writes.
  template <class Scalar>
  const Scalar *leave_room(Index count) {
    const std::size_t at = room_;
    room_ = aligned(at + static_cast<std::size_t>(count) * sizeof(Scalar));
    return reinterpret_cast<const Scalar *>(device_ + at);
  }

  /// Of all, where no memory is there yet.
  std::size_t size() const { return aligned(size_) + room_; }
  /// What goes to the device.
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  static constexpr std::size_t alignment = 128;
  static std::size_t aligned(std::size_t at) { return (at + alignment - 1) / alignment * alignment; }

  std::byte *device_ = nullptr;
  std::size_t size_ = 0;  // of what was added
  std::size_t room_ = 0;  // where the next begins
  std::vector<std::byte> bytes_;
};

/// Runs build(image) for the size, then with memory of that size, and uploads. Returns what build
/// returned.
template <class Build>
auto build_tables(DeviceBuffer<std::byte> &memory, cudaStream_t stream, Build &&build) {
  TableImage measured;
  build(measured);
  memory = DeviceBuffer<std::byte>(measured.size());
  TableImage image(memory.data(), measured);
  auto tables = build(image);
  upload(image.bytes(), memory.data(), stream);
  return tables;
}

/// TileTables::turns.
inline std::vector<std::uint64_t> table_turns(std::span<const float> inverse_frequencies) {
  std::vector<std::uint64_t> turns((inverse_frequencies.size() + 1) / 2 * 2);
  std::transform(inverse_frequencies.begin(), inverse_frequencies.end(), turns.begin(), turns_of);
  return turns;
}

/// A rotary embedding and the tile frame of its keys, on the host and on the device.
class DeviceTiles {
 public:
  /// frame: rows of a tile, 0 for none. Null table: keys do not turn. trellis: pages may have trellis
  /// codes, whose order of tokens rows are in (PageLayout). Throws Error where the frame is so long that
  /// its mean key has more modes than kernels have room for.
  template <class Real = double>
  DeviceTiles(const RotaryTable *table, Index frame, int head_dim, bool trellis = false)
      : trellis_(trellis) {
    if (table == nullptr) return;
    if (frame > 0) {
      frame_.emplace(*table, frame);
      modes_.emplace(*frame_);
      const Index most_modes = 16 * most_mode_tiles(head_dim);
      if (modes_->count() > most_modes) {
        throw_invalid("tile_tokens", frame, "shorter: on CUDA the modes of its mean key are at most",
                      most_modes);
      }
    }
    tables_ = build_tables(memory_, nullptr, [&](TableImage &image) { return build(image, *table); });
    check(cudaStreamSynchronize(nullptr), "rotary tables");
  }

  /// Null without tiles.
  const TileFrame *frame() const { return frame_ ? &*frame_ : nullptr; }
  const MeanModes &modes() const { return *modes_; }
  const TileTables &tables() const { return tables_; }
  std::size_t bytes() const {
    return memory_.bytes() + (frame_ ? frame_->bytes() : 0) + (modes_ ? modes_->bytes() : 0);
  }

 private:
  TileTables build(TableImage &image, const RotaryTable &table) const {
    TileTables tables{};
    tables.inverse_frequencies = image.add(table.inverse_frequencies.data(), table.pair_count());
    const std::vector<std::uint64_t> turns = table_turns(table.inverse_frequencies);
    tables.turns = image.add(turns.data(), static_cast<Index>(turns.size()));
    tables.pairs = static_cast<std::int32_t>(table.pair_count());
    tables.interleaved = table.pairs == RotaryPairs::interleaved;
    if (!frame_) return tables;
    tables.frame = static_cast<std::int32_t>(frame_->rows());
    tables.angles = image.add(frame_->angles(0), frame_->angle_count() * frame_->rows());
    Eigen::MatrixXd weights = modes_->rows(*frame_).transpose();
    if (trellis_) {
      const Eigen::MatrixXd in_order = weights;
      for (Index row = 0; row < weights.rows(); ++row)
        weights.row(row) = in_order.row(row_token(static_cast<int>(row)));
    }
    const std::vector<half> rows = matrix_tiles(weights, 1, TileOrder::columns);
    tables.mode_rows = image.add<uint4>(std::span<const half>(rows));
    tables.mode_tiles = static_cast<std::int32_t>((modes_->count() + 15) / 16);
    return tables;
  }

  bool trellis_;
  std::optional<TileFrame> frame_;
  std::optional<MeanModes> modes_;
  DeviceBuffer<std::byte> memory_;
  TileTables tables_{};
};

/// The matrices that the queries of one KV head meet, as far as the host makes them: that of a basis
/// where it has inverted it.
class QueryMatrices {
 public:
  QueryMatrices() = default;
  template <class Real = double>
  QueryMatrices(const KeyQuantizer &quantizer, const DeviceTiles &tiles) {
    if (const SubspaceBasis *basis = quantizer.basis(); basis && basis->to_basis.size() > 0) {
      inverse_ = matrix_tiles(basis->queries_to_basis(), 1, TileOrder::rows);
    }
    if (const float *mean = quantizer.mean()) {
      const Eigen::MatrixXd projection =
          tiles.modes().projection({mean, static_cast<std::size_t>(quantizer.head_dim())});
      unit_ = unit_of(projection);
      projection_ = matrix_tiles(projection, unit_, TileOrder::rows);
    }
  }

  void add_to(TableImage &image, HeadTables &tables) const {
    if (!inverse_.empty()) tables.basis = image.add<uint4>(std::span<const half>(inverse_));
    if (!projection_.empty()) tables.projection = image.add<uint4>(std::span<const half>(projection_));
    tables.projection_unit = static_cast<float>(unit_);
  }

 private:
  std::vector<half> inverse_, projection_;
  double unit_ = 1;
};

/// Adds a run of the basis' coordinates, in units of `unit` channels.
inline void add_units(HeadTables &tables, const CodeRun &run, Index unit) {
  const auto units = static_cast<std::int32_t>(run.channels / unit);
  (run.bits == 8   ? tables.eight_bit_units
   : run.bits == 4 ? tables.four_bit_units
   : run.bits == 3 ? tables.three_bit_units
   : run.bits == 2 ? tables.two_bit_units
                   : tables.one_bit_units) = units;
  std::fill_n(tables.widths + run.first / unit, units, static_cast<std::uint8_t>(run.bits));
}

/// The tables of one KV head.
inline HeadTables head_tables(TableImage &image, const KeyQuantizer &quantizer,
                              const QueryMatrices &matrices, const DeviceTiles &tiles) {
  const Index d = quantizer.head_dim();
  HeadTables tables{};
  matrices.add_to(image, tables);
  if (const SubspaceBasis *basis = quantizer.basis()) {
    if (basis->to_basis.size() > 0) {
      tables.to_basis = image.add(basis->to_basis.data(), basis->to_basis.size());
    } else {  // invert_bases.cuh
      constexpr Index halves = sizeof(uint4) / sizeof(half);
      tables.basis = image.leave_room<uint4>(d * d / halves);
      tables.to_basis = image.leave_room<float>(d * d);
    }
    tables.metric = image.add(basis->metric.data(), d);
    const Index unit = allocation_unit(d);
    for (const CodeRun &run : basis->allocation.runs()) {
      add_units(tables, run, unit);
    }
  }
  if (const float *mean = quantizer.mean()) {
    tables.mean = image.add(mean, d);
    tables.mode_tiles = tiles.tables().mode_tiles;
  }
  if (const OrthogonalRounding *rounding = quantizer.rounding()) {
    tables.order = image.add(rounding->order.data(), d);
    tables.feedback = image.add(rounding->feedback.data(), d * d);
    tables.block = static_cast<std::int32_t>(rounding->block);
  }
  return tables;
}

/// A layer's tables, and those of its heads as they are on the device.
struct LayerTables {
  CodingTables tables{};
  std::vector<HeadTables> heads;
};

/// The tables of a layer's codings, made of one quantiser, its matrices and
/// its rotated mean value, which may be empty, a KV head. finish(heads): what else there is of them.
template <class Finish>
LayerTables coding_tables(DeviceBuffer<std::byte> &memory, std::span<const KeyQuantizer> quantizers,
                          std::span<const QueryMatrices> matrices,
                          std::span<const std::vector<float>> value_means, const DeviceTiles &tiles,
                          bool learnt, cudaStream_t stream, Finish &&finish) {
  return build_tables(memory, stream, [&](TableImage &image) {
    LayerTables layer;
    for (std::size_t i = 0; i < quantizers.size(); ++i) {
      layer.heads.push_back(head_tables(image, quantizers[i], matrices[i], tiles));
      if (value_means[i].empty()) continue;
      layer.heads.back().value_mean = image.add(value_means[i].data(), quantizers[i].head_dim());
    }
    finish(layer.heads);
    layer.tables = {.heads = image.add(layer.heads.data(), static_cast<Index>(layer.heads.size())),
                    .tiles = tiles.tables(),
                    .learnt = learnt,
                    .shared = 0,
                    .plain_key_bits = quantizers.front().bits(),
                    .plain_fits = 1,
                    .value_gain = 0};
    return layer;
  });
}

}  // namespace squat::cuda
