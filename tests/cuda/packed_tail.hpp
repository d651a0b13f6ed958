#pragma once

// A tail of random tokens packed on the device, and what the CPU's quantizers make of the same tokens.

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "device_array.hpp"
#include "reference/rotary_table.hpp"
#include "squat/coding/hadamard.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/orthogonal_rounding.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/coding/symmetric.hpp"
#include "squat/coding/value_quantizer.hpp"
#include "squat/cpu/kernels/pack_page.hpp"
#include "squat/cuda/kernels/append_step.cuh"
#include "squat/cuda/kernels/dequantize.cuh"
#include "squat/cuda/kernels/exact_rows.cuh"
#include "squat/cuda/kernels/pack_keys.cuh"
#include "squat/cuda/kernels/pack_values.cuh"
#include "unpack_page.hpp"

namespace squat::test {

struct PackCase {
  Coding coding = Coding::subspace;
  AffineFit fit = AffineFit::clip_and_gain;
  ValueCoding values = ValueCoding::symmetric;
  int tile_pages = 2;  ///< pages of a tile; 0: no tile frame
  RotaryPairs pairs = RotaryPairs::halves;
  int turning = 100;  ///< percent of the channels that turn
  OrthogonalOptions orthogonal{};
  bool strange = false;  ///< the keys of the last page are not those that the basis was learnt from
};

/// How far the device's pages are from the CPU's.
struct Difference {
  long long codes = 0, codes_off = 0, largest = 0;  // by how much one is off at most
  long long scales = 0, scales_off = 0;
  long long spaces_off = 0, in_basis = 0, about_mean = 0;  // pages of a head

  void add_code(int a, int b) {
    ++codes;
    if (a != b) ++codes_off;
    largest = std::max<long long>(largest, std::abs(a - b));
  }
  /// A half unit of float16 is 2^-11 of a number at most.
  void add_scale(AffineScale a, AffineScale b) {
    const auto off = [](float x, float y, float size) { return std::abs(x - y) > 1e-3f * size; };
    const float scale = static_cast<float>(b.scale), zero = static_cast<float>(b.zero);
    scales += 2;
    scales_off += off(static_cast<float>(a.scale), scale, std::max(scale, 1e-4f));
    scales_off += off(static_cast<float>(a.zero), zero, std::max({std::abs(zero), scale, 1e-2f}));
  }
};

template <class Layout>
class PackedTail {
 public:
  static constexpr int d = Layout::HeadDim, group = Layout::Group;
  static constexpr int heads = 2, pages = 4, window = 37, tokens = pages * group + window;
  static constexpr long long first_position = 1237;

  explicit PackedTail(const PackCase &options, std::uint32_t seed = 1) : case_(options), random_(seed) {
    if (case_.tile_pages > 0)
      tiles_ = std::make_unique<cpu::TileTables>(rotary(), case_.tile_pages * group, d);
    make_mixes();
    learn();
    make_tokens();
    pack();
  }

  const cuda::LayerState &state() const { return state_; }

  Difference keys() const {
    Difference difference;
    for (int page = 0; page < pages; ++page) {
      for (int head = 0; head < heads; ++head) compare_keys(page, head, difference);
    }
    return difference;
  }

  Difference values() const {
    Difference difference;
    for (int page = 0; page < pages; ++page) {
      for (int head = 0; head < heads; ++head) compare_values(page, head, difference);
    }
    return difference;
  }

  /// The largest difference of what the device unpacks from what the host does.
  float unpacked_off() {
    std::vector<float> k(unpacked_k_.size()), v(k.size());
    const RotaryTable table = rotary();
    for (int page = 0; page < pages; ++page) {
      const auto tokens_of = [&](std::vector<float> &rows) {
        return TensorView<float>(rows.data(), pages * group, heads, d).slice(page * group, group);
      };
      for (int head = 0; head < heads; ++head) {
        const HeadPage<Layout, half> from(reinterpret_cast<const std::byte *>(bytes(page, head)),
                                          case_.values);
        const RowMatrix inverse = from_basis(head);
        unpack_page(from,
                    {quantizers_[static_cast<std::size_t>(head)], inverse,
                     tiles_ ? &tiles_->frame : nullptr, &table, value_mean(head)},
                    view(page), head, tokens_of(k), tokens_of(v));
      }
    }
    float off = 0;
    for (std::size_t i = 0; i < k.size(); ++i) {
      off = std::max({off, std::abs(k[i] - unpacked_k_[i]), std::abs(v[i] - unpacked_v_[i])});
    }
    return off;
  }

  /// 16-bit elements that are not what was appended.
  long long exact_off() const {
    long long off = 0;
    const auto differ = [](std::uint16_t a, half b) { return a != b.x; };
    for (int page = 0; page < pages; ++page) {
      for (int head = 0; head < heads; ++head) {
        const auto *keys = reinterpret_cast<const std::uint16_t *>(bytes(page, head));
        const auto *values =
            reinterpret_cast<const std::uint16_t *>(bytes(page, head) + Layout::value_codes);
        for (int token = 0; token < group; ++token) {
          for (int i = 0; i < d; ++i) {
            const int tile = (token / 16 * (d / 16) + i / 16) * 256;
            off += differ(keys[tile + cuda::tile_element(token % 16, i % 16)],
                          k_[index(page * group + token, head, i)]);
            off += differ(values[tile + cuda::tile_element(i % 16, token % 16)],
                          v_[index(page * group + token, head, i)]);
          }
        }
      }
    }
    return off;
  }

 private:
  RotaryTable rotary() const {
    const int pairs = d / 2 * case_.turning / 100;
    return rotary_table(1e4, 2 * pairs, case_.pairs);
  }

  Eigen::MatrixXf normal(Index rows, Index columns) {
    Eigen::MatrixXf x(rows, columns);
    for (float &element : x.reshaped()) element = distribution_(random_);
    return x;
  }

  static std::size_t index(int token, int head, int channel) {
    return (static_cast<std::size_t>(token) * heads + static_cast<std::size_t>(head)) * d +
           static_cast<std::size_t>(channel);
  }

  /// Of keys about a mean, and of queries: both anisotropic.
  void make_mixes() {
    const Eigen::ArrayXf fall = Eigen::ArrayXf::LinSpaced(d, 1, 30).inverse().sqrt() * 3;
    for (int head = 0; head < heads; ++head) {
      mixes_[head] = fall.matrix().asDiagonal() * normal(d, d) / std::sqrt(static_cast<float>(d));
      means_[head] = 2 * normal(1, d);
      query_mixes_[head] = fall.square().matrix().asDiagonal() * normal(d, d);
      value_means_[head] = 2 * normal(1, d);
    }
  }

  /// The learnt mean of the values; null for codings that do without.
  const float *value_mean(int head) const {
    const bool none = case_.values == ValueCoding::plain || Layout::KeyBits == 16;
    return none ? nullptr : rotated_value_means_[head].data();
  }

  /// Keys turned by their positions, and values, which lie about their mean in all pages but one of a
  /// head, and in one of the other.
  void make_tokens() {
    k_.resize(static_cast<std::size_t>(tokens) * heads * d);
    v_.resize(k_.size());
    for (int head = 0; head < heads; ++head) {
      Eigen::MatrixXf keys = normal(tokens, d) * mixes_[head];
      keys.rowwise() += means_[head];
      Eigen::MatrixXf values = normal(tokens, d);
      for (int token = 0; token < tokens; ++token) {
        if ((token / group == 1) != (head == 0)) values.row(token) += value_means_[head];
      }
      rotated_value_means_[head] = value_means_[head];
      rotate_hadamard(rotated_value_means_[head].data(), d);
      for (int token = 0; token < tokens; ++token) {
        Eigen::RowVectorXf row = keys.row(token);
        Index position = first_position + token;
        if (case_.strange && token / group == pages - 1) {
          row = strange_key(head, token);
          position = view(pages - 1).base;
        }
        Turn(rotary(), position).apply(row.data());
        for (int i = 0; i < d; ++i) {
          k_[index(token, head, i)] = half(row[i]);
          v_[index(token, head, i)] = half(values(token, i));
        }
      }
    }
  }

  /// A key in its tile's frame: of two values a channel, which plain coding meets exactly, and far from
  /// the mean where the basis spends no bits.
  Eigen::RowVectorXf strange_key(int head, int token) {
    const KeyQuantizer &quantizer = quantizers_[static_cast<std::size_t>(head)];
    Eigen::VectorXf y = Eigen::VectorXf::Zero(d);
    y.tail(Layout::unit).setConstant(distribution_(random_) > 0 ? 30.0f : -30.0f);
    Eigen::RowVectorXf key = Eigen::RowVectorXf::Zero(d);
    if (quantizer.mean() != nullptr) {
      key = Eigen::Map<const Eigen::RowVectorXf>(quantizer.mean(), d);
      Turn(rotary(), view(pages - 1).row + token % group).apply(key.data());
    }
    return key + (quantizer.basis()->from_basis() * y).transpose();
  }

  void learn() {
    const TileFrame *frame = tiles_ ? &tiles_->frame : nullptr;
    const Index rows = frame ? frame->rows() : 1;
    for (int head = 0; head < heads; ++head) {
      QueryStatistics statistics(d, group, rows);
      const RowMatrix queries = normal(4 * d, d) * query_mixes_[head];
      add_queries(statistics, {queries.data(), queries.rows(), d});
      RowMatrix keys = normal(8 * d, d) * mixes_[head];
      keys.rowwise() += means_[head];
      for (Index token = 0; token < keys.rows(); ++token)
        Turn(rotary(), token % rows).apply(keys.row(token).data());
      add_keys(statistics, {keys.data(), keys.rows(), d}, 0);
      KeyQuantizer &quantizer =
          quantizers_.emplace_back(case_.coding, case_.fit, case_.orthogonal, Layout::KeyBits, d);
      quantizer.learn(statistics, frame);
      if (case_.coding != Coding::orthogonal) continue;
      std::vector<double> range = statistics.mean_range();
      if (frame != nullptr) {
        const Eigen::MatrixXd covariance = key_covariance(statistics, frame, {statistics, frame});
        for (Index i = 0; i < d; ++i) range[static_cast<std::size_t>(i)] = std::sqrt(covariance(i, i));
      }
      roundings_.push_back(learn_orthogonal_rounding(query_moment(statistics), range, case_.orthogonal));
    }
  }

  PageView view(int page) const {
    PageView view{.first = 0, .tokens = group};
    if (case_.tile_pages == 0) return view;
    const int in_tile = page % case_.tile_pages;
    view.base = first_position + (page - in_tile) * group;
    view.row = in_tile * group;
    return view;
  }

  template <class Element>
  const Element *upload(const Element *data, Index size) {
    auto array = std::make_shared<DeviceArray<Element>>(std::vector<Element>(data, data + size));
    arrays_.push_back(array);
    return array->data();
  }

  cuda::HeadTables head_tables(int head) {
    const KeyQuantizer &quantizer = quantizers_[static_cast<std::size_t>(head)];
    cuda::HeadTables tables{};
    if (quantizer.mean() != nullptr) tables.mean = upload(quantizer.mean(), d);
    if (value_mean(head) != nullptr) tables.value_mean = upload(value_mean(head), d);
    if (const SubspaceBasis *basis = quantizer.basis()) {
      tables.to_basis = upload(basis->to_basis.data(), d * d);
      tables.metric = upload(basis->metric.data(), d);
      for (const CodeRun &run : basis->allocation.runs()) {
        for (Index i = run.first; i < run.first + run.channels; ++i) {
          tables.widths[i / Layout::unit] = static_cast<std::uint8_t>(run.bits);
        }
      }
    }
    if (case_.coding == Coding::orthogonal) {
      const OrthogonalRounding &rounding = roundings_[static_cast<std::size_t>(head)];
      tables.order = upload(rounding.order.data(), d);
      tables.feedback = upload(rounding.feedback.data(), d * d);
      tables.block = static_cast<int>(rounding.block);
    }
    return tables;
  }

  cuda::TileTables tile_tables() {
    const RotaryTable table = rotary();
    cuda::TileTables tables{};
    tables.inverse_frequencies = upload(table.inverse_frequencies.data(), table.pair_count());
    tables.pairs = static_cast<int>(table.pair_count());
    tables.interleaved = table.pairs == RotaryPairs::interleaved;
    if (tiles_) {
      tables.frame = static_cast<int>(tiles_->frame.rows());
      tables.angles =
          upload(tiles_->frame.angles(0), tiles_->frame.angle_count() * tiles_->frame.rows());
    }
    return tables;
  }

  void pack() {
    using Block = cuda::BlockLayout<d>;
    // The newest tokens stand behind the ring, whose oldest wrap.
    const int blocks = (tokens + 15) / 16 + 2, tail_blocks = blocks - 4;
    const std::size_t page_bytes = static_cast<std::size_t>(Layout::head_bytes(case_.values)) * heads;
    DeviceArray<std::uint16_t> exact(static_cast<std::size_t>(heads) * blocks * Block::elements);
    DeviceArray<std::uint8_t> memory(page_bytes * pages);
    std::vector<cuda::PageEntry> entries;
    for (int page = 0; page < pages; ++page) {
      const PageView at = view(page);
      cuda::PageEntry &entry = entries.emplace_back();
      entry.data = memory.data() + page_bytes * static_cast<std::size_t>(page);
      entry.base = at.base;
      entry.tokens = group;
      entry.row = static_cast<std::int32_t>(at.row);
      entry.before = page * group;
    }
    DeviceArray<cuda::PageEntry> table(entries);
    state_.exact = exact.data();
    state_.overflow =
        exact.data() + static_cast<std::size_t>(heads) * (1 + tail_blocks) * Block::elements;
    state_.pages = table.data();
    state_.position = first_position + tokens;
    state_.tail = tokens;
    state_.tail_first = (tail_blocks - 3) * 16;
    state_.sink_blocks = 1;
    state_.tail_blocks = tail_blocks;
    state_.page_capacity = pages;
    DeviceArray<cuda::LayerState> state(std::vector<cuda::LayerState>{state_});

    const std::vector<cuda::HeadTables> tables = {head_tables(0), head_tables(1)};
    DeviceArray<cuda::HeadTables> head_array(tables);
    cuda::CodingTables coding{head_array.data(), tile_tables(), 1};
    DeviceArray<cuda::CodingTables> codings(std::vector<cuda::CodingTables>{coding});
    DeviceArray<cuda::BatchEntry> batch(std::vector<cuda::BatchEntry>{{state.data(), 0, tokens, 0}});

    DeviceArray<half> k(k_), v(v_);
    const auto tensor = [&](DeviceArray<half> &array) {
      return cuda::DeviceTensor<const half>{array.data(), heads * d, d};
    };
    cuda::launch_append_rows<d, half, half>(batch.data(), 1, tokens, heads, tensor(k), tensor(v),
                                            nullptr);
    const cuda::PackCall call{.batch = batch.data(),
                              .entries = 1,
                              .most_pages = pages + 1,  // more than are due
                              .kv_heads = heads,
                              .residual = window,
                              .codings = codings.data(),
                              .coding = case_.coding,
                              .fit = case_.fit,
                              .values = case_.values};
    cuda::launch_pack_keys<Layout, half>(call, nullptr);
    cuda::launch_pack_values<Layout, half>(call, nullptr);
    cuda::launch_finish_call<group>(call, nullptr);
    finish();
    bytes_ = memory.read();
    state_ = state.read()[0];
    unpack(state, codings);
  }

  /// A^-1, empty without a basis.
  RowMatrix from_basis(int head) const {
    const SubspaceBasis *basis = quantizers_[static_cast<std::size_t>(head)].basis();
    return basis ? basis->from_basis() : RowMatrix();
  }

  void unpack(const DeviceArray<cuda::LayerState> &state,
              const DeviceArray<cuda::CodingTables> &codings) {
    std::vector<float> inverses(static_cast<std::size_t>(heads) * d * d);
    for (int head = 0; head < heads; ++head) {
      const RowMatrix inverse = from_basis(head);
      std::copy_n(inverse.data(), inverse.size(), inverses.begin() + head * d * d);
    }
    DeviceArray<float> from_bases(inverses);
    const auto elements = static_cast<std::size_t>(pages * group * heads * d);
    DeviceArray<float> k(elements), v(elements);
    cuda::launch_dequantize_pages<Layout, half, float>({.state = state.data(),
                                                        .codings = codings.data(),
                                                        .from_bases = from_bases.data(),
                                                        .values = case_.values,
                                                        .k = {k.data(), heads * d, d},
                                                        .v = {v.data(), heads * d, d}},
                                                       pages, heads, nullptr);
    finish();
    unpacked_k_ = k.read();
    unpacked_v_ = v.read();
  }

  const std::uint8_t *bytes(int page, int head) const {
    return bytes_.data() + static_cast<std::size_t>(page * heads + head) *
                               static_cast<std::size_t>(Layout::head_bytes(case_.values));
  }

  /// The device's scale and zero of a channel, marks taken off.
  AffineScale key_scale(int page, int head, int channel) const {
    const auto *scales = reinterpret_cast<const half *>(bytes(page, head) + Layout::key_scales);
    const auto *zeros = reinterpret_cast<const half *>(bytes(page, head) + Layout::key_zeros);
    const int at = cuda::key_element(channel);
    return {zeros[at], half(std::abs(static_cast<float>(scales[at])))};
  }

  KeySpace key_space(int page, int head) const {
    const auto *marked = reinterpret_cast<const half *>(bytes(page, head) + Layout::key_scales);
    return std::signbit(static_cast<float>(marked[0])) ? KeySpace::basis : KeySpace::channels;
  }

  void compare_keys(int page, int head, Difference &difference) const {
    const KeyQuantizer &quantizer = quantizers_[static_cast<std::size_t>(head)];
    RowMatrix keys(d, group), scratch(d, group);
    for (int i = 0; i < d; ++i) {
      for (int token = 0; token < group; ++token) {
        keys(i, token) = static_cast<float>(k_[index(page * group + token, head, i)]);
      }
    }
    const RotaryTable table = rotary();
    const cpu::HeadCoding coding{tiles_.get(), &table, &quantizer, nullptr};
    cpu::enter_frame(coding, view(page), d, group, keys.data());
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(d) * group);
    std::vector<AffineScale> scales(d);
    const KeySpace found = key_space(page, head);
    difference.in_basis += found == KeySpace::basis;
    if (case_.coding == Coding::orthogonal) {
      round_with_errors_of(page, head, keys, codes, scales);
      difference.spaces_off += found != KeySpace::channels;
    } else {
      const KeySpace space =
          quantizer.quantize(keys.data(), group, scratch.data(), codes.data(), scales.data()).space;
      if (space != found) {
        ++difference.spaces_off;
        return;
      }
    }
    const std::vector<int> widths = unit_widths(quantizer, found);
    for (int i = 0; i < d; ++i) {
      difference.add_scale(key_scale(page, head, i), scales[static_cast<std::size_t>(i)]);
      if (widths[static_cast<std::size_t>(i / Layout::unit)] == 0) continue;
      for (int token = 0; token < group; ++token) {
        difference.add_code(key_code(page, head, widths, token, i),
                            codes[static_cast<std::size_t>(i * group + token)]);
      }
    }
  }

  static std::vector<int> unit_widths(const KeyQuantizer &quantizer, KeySpace space) {
    std::vector<int> widths(Layout::key_units, 0);
    for (const CodeRun &run : quantizer.allocation(space).runs()) {
      for (Index i = run.first; i < run.first + run.channels; ++i) {
        widths[static_cast<std::size_t>(i / Layout::unit)] = run.bits;
      }
    }
    return widths;
  }

  int key_code(int page, int head, const std::vector<int> &widths, int token, int channel) const {
    const std::uint8_t *unit = bytes(page, head) + Layout::key_codes;
    for (int before = 0; before < channel / Layout::unit; ++before) {
      unit += Layout::key_unit_bytes(widths[static_cast<std::size_t>(before)]);
    }
    const int bits = widths[static_cast<std::size_t>(channel / Layout::unit)];
    return cuda::read_code(unit, Layout::key_places(Codes::scalar, bits, token, channel % Layout::unit));
  }

  /// Rounding with feedback is chaotic: a tie that breaks the other way moves all later targets. So each
  /// channel's target is made of the errors that the device's codes of the channels before make.
  void round_with_errors_of(int page, int head, const RowMatrix &keys, std::vector<std::uint8_t> &codes,
                            std::vector<AffineScale> &scales) const {
    const OrthogonalRounding &rounding = roundings_[static_cast<std::size_t>(head)];
    const std::vector<int> widths =
        unit_widths(quantizers_[static_cast<std::size_t>(head)], KeySpace::channels);
    Eigen::MatrixXd errors(d, group);
    for (int i = 0; i < d; ++i) {
      const int channel = rounding.order[static_cast<std::size_t>(i)];
      const Index first = i / rounding.block * rounding.block;
      Eigen::RowVectorXd target = keys.row(channel).cast<double>();
      target -= rounding.feedback.row(i).head(first).cast<double>() * errors.topRows(first);
      Eigen::ArrayXf rounded = target.transpose().cast<float>().array();
      scales[static_cast<std::size_t>(channel)] =
          quantize_affine(rounded.data(), Index{group}, Layout::KeyBits, case_.fit,
                          codes.data() + static_cast<std::size_t>(channel) * group, rounded.data());
      const AffineScale scale = key_scale(page, head, channel);
      for (int token = 0; token < group; ++token) {
        errors(i, token) =
            static_cast<double>(scale.zero) +
            static_cast<double>(scale.scale) * key_code(page, head, widths, token, channel) -
            static_cast<double>(keys(channel, token));
      }
    }
  }

  void compare_values(int page, int head, Difference &difference) const {
    RowMatrix rows(group, d);
    for (int token = 0; token < group; ++token) {
      for (int i = 0; i < d; ++i) {
        rows(token, i) = static_cast<float>(v_[index(page * group + token, head, i)]);
      }
      if (case_.values == ValueCoding::symmetric) rotate_hadamard(rows.row(token).data(), d);
    }
    const float *mean = value_mean(head);
    const bool about_mean = mean != nullptr && cpu::take_mean_off(mean, group, d, rows.data());
    difference.spaces_off += about_mean != Layout::values_about_mean(bytes(page, head));
    difference.about_mean += about_mean;
    std::vector<std::uint8_t> codes(d);
    std::vector<AffineScale> scales(static_cast<std::size_t>(Layout::scales_of_a_value(case_.values)));
    const auto *device_scales = reinterpret_cast<const half *>(bytes(page, head) + Layout::value_scales);
    const auto *zeros =
        reinterpret_cast<const half *>(bytes(page, head) + Layout::value_zeros(case_.values));
    for (int token = 0; token < group; ++token) {
      float *row = rows.row(token).data();
      if (case_.values == ValueCoding::symmetric) {
        scales[0] = {half(0.0f), quantize_symmetric(row, d, Layout::ValueBits, codes.data())};
      } else {
        quantize_plain_value(row, d, Layout::ValueBits, case_.fit, codes.data(), scales.data());
      }
      for (std::size_t i = 0; i < scales.size(); ++i) {
        const std::size_t at = i * group + static_cast<std::size_t>(cuda::value_element(token));
        const bool plain = case_.values == ValueCoding::plain;
        difference.add_scale({plain ? zeros[at] : half(0.0f), device_scales[at]}, scales[i]);
      }
      const std::uint8_t *values = bytes(page, head) + Layout::value_codes;
      for (int i = 0; i < d; ++i) {
        const cuda::CodePlaces at = Layout::value_places(Codes::scalar, Layout::ValueBits, i, token);
        difference.add_code(cuda::read_code(values, at), codes[static_cast<std::size_t>(i)]);
      }
    }
  }

  PackCase case_;
  std::mt19937 random_;
  std::normal_distribution<float> distribution_;
  std::unique_ptr<cpu::TileTables> tiles_;
  Eigen::MatrixXf mixes_[heads], query_mixes_[heads];
  Eigen::RowVectorXf means_[heads], value_means_[heads], rotated_value_means_[heads];
  std::vector<half> k_, v_;
  std::vector<KeyQuantizer> quantizers_;
  std::vector<OrthogonalRounding> roundings_;
  std::vector<std::shared_ptr<void>> arrays_;
  cuda::LayerState state_{};
  std::vector<std::uint8_t> bytes_;
  std::vector<float> unpacked_k_, unpacked_v_;  // [pages * group, heads, d]
};

}  // namespace squat::test
