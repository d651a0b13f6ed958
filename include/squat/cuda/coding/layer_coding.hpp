#pragma once

// What a layer's codings learn and have learnt, a KV head each. Statistics are gathered on the device,
// which learns subspace bases of heads of up to 128 channels too (learn_bases.cuh), and inverts them
// wherever they come from (invert_bases.cuh); all else is learnt by the host. What kernels need of it
// lies in device memory.

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
#include "squat/coding/coding_record.hpp"
#include "squat/coding/evidence.hpp"
#include "squat/coding/key_quantizer.hpp"
#include "squat/coding/layer_learning.hpp"
#include "squat/coding/page_shape.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/coding/subspace_basis.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/parallel.hpp"
#include "squat/cuda/coding/basis_record.hpp"
#include "squat/cuda/coding/coding_tables.hpp"
#include "squat/cuda/coding/device_statistics.cuh"
#include "squat/cuda/coding/invert_bases.cuh"
#include "squat/cuda/coding/learn_bases.cuh"
#include "squat/cuda/coding/learnt_basis.cuh"
#include "squat/cuda/coding/shared_heads.hpp"
#include "squat/cuda/state/device_buffer.hpp"
#include "squat/cuda/state/device_state.cuh"

#if defined(SQUAT_COMPILED)
#include "squat/compiled/any_operations.hpp"
#else
#include "squat/coding/learn_heads.hpp"
#endif

namespace squat::cuda {

/// The statistics and codings of one layer, for all sequences or for one.
class LayerCoding {
 public:
  /// page: its widths are those that were asked for. shares_bits: kernels are for pages whose heads may
  /// share bits.
  LayerCoding(const Options &options, const PageShape &page, bool shares_bits, int layer,
              const DeviceTiles &tiles)
      : options_(&options),
        page_(page),
        shares_bits_(shares_bits),
        layer_(layer),
        tiles_(&tiles),
        quantizers_(static_cast<std::size_t>(options.kv_heads),
                    KeyQuantizer(*options.coding, *options.fit, options.orthogonal, page.key_bits,
                                 options.head_dim)),
        value_means_(quantizers_.size()),
        code_bytes_(page.code_bytes()) {
    learns_ = page.key_bits < 16 && learns_from_prompt(*options.coding);
    begin(false, nullptr);
    check(cudaStreamSynchronize(nullptr), "coding tables");
  }

  /// Has seen and learnt nothing. fixed: and never will.
  void begin(bool fixed, cudaStream_t stream) {
    forget();
    make_tables(std::vector<QueryMatrices>(quantizers_.size()), fixed || !learns_, stream);
    learnt_ = learnt_nothing_ = fixed;
  }

  int layer() const { return layer_; }
  const DeviceTiles &tiles() const { return *tiles_; }
  const CodingTables &tables() const { return tables_; }
  const KeyQuantizer &quantizer(Index head) const { return quantizers_[static_cast<std::size_t>(head)]; }

  bool learnt() const { return learnt_; }
  bool learnt_nothing() const { return learnt_nothing_; }

  /// Bytes of the codes of a page.
  std::size_t code_bytes() const { return code_bytes_; }
  /// How the heads share them; null where each has as many.
  const BitShares *shares() const { return shares_ ? &*shares_ : nullptr; }
  /// Where the codes of a head are among those of a page, as snapshots keep them.
  HeadPlace place(Index head, KeySpace space) const {
    return shares_ ? shares_->place(page_, head, space)
                   : page_.place(head, {page_.key_bits, page_.value_bits});
  }

  /// Where the codes of each head are in a page, see SharedPlace.
  std::vector<HeadTables> placed() const {
    std::vector<HeadTables> heads(shares_bits_ ? quantizers_.size() : 0);
    place_codes(heads, page_, shares());
    return heads;
  }

  /// What its heads can be coded with, once learnt, where they are to share bits; nothing where each has
  /// as many.
  std::optional<ShareChoices> choices() const {
    if (value_weights_.empty()) return {};
    return ShareChoices(page_, quantizers_, value_weights_, output_square_);
  }
  /// From now on they share them so, the codes of a page taking so many bytes.
  void share(const std::optional<ShareChoices> &choices, std::size_t code_bytes, cudaStream_t stream) {
    if (choices) {
      share(BitShares(page_, *choices, code_bytes), stream);
    } else {
      unshare();
    }
    code_bytes_ = code_bytes;
  }
  /// They do not any more.
  void unshare() noexcept {
    shares_.reset();
    tables_ = equal_tables_;
    code_bytes_ = page_.code_bytes();
  }
  /// Lets go of what choices() takes.
  void drop_choices() {
    for (KeyQuantizer &quantizer : quantizers_) quantizer.drop_variance();
  }

  /// A^-1 of every head, [channel, coordinate], empty without a basis.
  template <class Real = double>
  std::vector<RowMatrix> from_bases() const {
    std::vector<RowMatrix> inverses;
    for (const KeyQuantizer &quantizer : quantizers_) {
      const SubspaceBasis *basis = quantizer.basis();
      inverses.push_back(basis ? basis->from_basis() : RowMatrix());
    }
    return inverses;
  }

  /// Makes the statistics that observe() adds to.
  void reserve_statistics(cudaStream_t stream) {
    if (statistics_) return;
    statistics_ =
        std::make_unique<DeviceStatistics>(options_->kv_heads, options_->head_dim, options_->page_tokens,
                                           rows_of_frame(), options_->sinks, stream);
  }

  /// Adds tokens to the statistics.
  template <int HeadDim, class S>
  void observe(const ObservedRows<S> &rows, DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    reserve_statistics(stream);
    observed_ = true;
    statistics_->template observe<HeadDim>(rows, tables_.tiles, workspace, stream);
  }

  /// Adds what attention was weighed to be, see DeviceStatistics.
  template <int HeadDim>
  void add_weighed(const ObservedRows<float> &rows, const float4 *sums,
                   DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    statistics_->template add_weighed<HeadDim>(rows, sums, tables_.tiles, workspace, stream);
  }

  bool has_value_mean(Index head) const { return !value_means_[static_cast<std::size_t>(head)].empty(); }

  bool has_statistics() const { return statistics_ != nullptr; }

  /// Those of a KV head each, with those of the prior. Waits for the stream.
  std::vector<QueryStatistics> statistics(cudaStream_t stream) const {
    std::vector<QueryStatistics> heads = statistics_->read(stream);
    if (has_prior_) return heads;
    for (std::size_t head = 0; options_->prior && head < heads.size(); ++head) {
      heads[head].merge(options_->prior->head(layer_, static_cast<Index>(head)));
    }
    return heads;
  }

  /// Fixes the codings from their statistics. Returns false where they are of no text: nothing is seen
  /// and learnt then. workspace: made larger where needed.
  template <int HeadDim>
  bool learn(DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    reserve_statistics(stream);
    // A prior's sums are the host's, and so is what heads do that share bits.
    const bool has_all = !options_->prior || has_prior_;
    const bool on_device = *options_->coding == Coding::subspace && has_all && !wants_to_share() &&
                           can_learn_bases<HeadDim>();
    learnt_ = on_device && learn_on_device<HeadDim>(workspace, stream);
    // The host may see more, see is_of_text().
    if (!on_device || (!learnt_ && is_biased_first())) {
      const std::vector<HeadRecord> heads = learn_on_host(stream);
      if (!heads.empty()) become<HeadDim>(heads, true, workspace, stream);
      learnt_ = !heads.empty();
    }
    if (!learnt_) {
      forget();
      return false;
    }
    if (wants_to_share() && *options_->allocation == Allocation::layer) {
      share(choices(), page_.code_bytes(), stream);
      drop_choices();
    }
    if (!options_->keep_statistics) statistics_.reset();
    return true;
  }

  /// All of it, see CodingRecord. Statistics are part of it once they hold tokens, while the layer is to
  /// learn from them. Waits for the stream.
  CodingRecord record(cudaStream_t stream) const {
    CodingRecord record;
    record.learnt = learnt_;
    record.code_bytes = code_bytes_;
    record.value_weights = value_weights_;
    record.output_square = output_square_;
    for (const KeyQuantizer &quantizer : quantizers_) {
      const auto i = static_cast<Index>(record.heads.size());
      HeadRecord &head = record.heads.emplace_back(quantizer.record());
      head.value_mean = value_means_[static_cast<std::size_t>(i)];
      if (*options_->allocation != Allocation::model) head.variance.clear();
      head.value_bits = place(i, KeySpace::basis).value_bits;
    }
    if (shares_) shares_->write(record);
    if (!learns_ || !observed_ || learnt_) return record;
    std::vector<StatisticsRecord> statistics = statistics_->record(stream);
    for (std::size_t head = 0; head < statistics.size(); ++head) {
      if (options_->prior && !has_prior_) {
        QueryStatistics all(options_->head_dim, options_->page_tokens, rows_of_frame());
        all.adopt(statistics[head]);
        all.merge(options_->prior->head(layer_, static_cast<Index>(head)));
        statistics[head] = all.record();
      }
      record.heads[head].statistics = std::move(statistics[head]);
    }
    return record;
  }

  /// Becomes what a record says, which was checked. workspace: made larger where needed. Waits for the
  /// stream.
  template <int HeadDim>
  void adopt(const CodingRecord &record, DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    become<HeadDim>(record.heads, record.learnt || !learns_, workspace, stream);
    learnt_ = record.learnt;
    learnt_nothing_ = false;
    observed_ = false;
    value_weights_ = record.value_weights;
    output_square_ = record.output_square;
    if (record.shared) share(BitShares(page_, record), stream);
    code_bytes_ = record.code_bytes;
    statistics_.reset();
    std::vector<StatisticsRecord> statistics;
    for (const HeadRecord &head : record.heads) {
      if (!head.statistics.empty()) statistics.push_back(head.statistics);
    }
    if (statistics.empty()) return;
    if (statistics.size() != record.heads.size())
      throw Error("squat: snapshot.coding is impossible: some heads have statistics and some do not");
    observed_ = has_prior_ = true;
    reserve_statistics(stream);
    statistics_->adopt(std::move(statistics), stream);
  }

  /// What a layer knew. It keeps the tables of that time alive.
  struct Backup {
    std::unique_ptr<DeviceStatistics> statistics;
    std::shared_ptr<const DeviceBuffer<std::byte>> memory;
    std::shared_ptr<const DeviceBuffer<HeadTables>> shared_heads;
    CodingTables tables{}, equal_tables{};
    bool observed = false;
    bool learnt = false;
    bool has_prior = false;
  };

  Backup back_up(cudaStream_t stream) const {
    return {statistics_ ? statistics_->copy(stream) : nullptr,
            memory_,
            shared_heads_,
            tables_,
            equal_tables_,
            observed_,
            learnt_,
            has_prior_};
  }

  /// Its tables on the device are the owner's to upload.
  void restore(Backup backup) {
    statistics_ = std::move(backup.statistics);
    memory_ = std::move(backup.memory);
    shared_heads_ = std::move(backup.shared_heads);
    tables_ = backup.tables;
    equal_tables_ = backup.equal_tables;
    observed_ = backup.observed;
    learnt_ = backup.learnt;
    has_prior_ = backup.has_prior;
    if (!learnt_) forget_learnt();
    if (tables_.shared == 0) shares_.reset();
  }

  std::size_t statistics_bytes() const { return statistics_ ? statistics_->bytes() : 0; }

  std::size_t bytes() const {
    std::size_t sum = memory_->bytes() + value_weights_.size() * sizeof(double);
    if (shared_heads_) sum += shared_heads_->bytes();
    if (shares_) sum += shares_->bytes();
    if (shares_bits_) sum += equal_heads_.size() * sizeof(HeadTables);
    for (const KeyQuantizer &quantizer : quantizers_) sum += quantizer.bytes();
    for (const std::vector<float> &mean : value_means_) sum += mean.size() * sizeof(float);
    return sum;
  }

 private:
  /// But for the tables.
  void forget() {
    statistics_.reset();
    observed_ = learnt_ = learnt_nothing_ = has_prior_ = false;
    forget_learnt();
  }
  void forget_learnt() {
    shares_.reset();
    code_bytes_ = page_.code_bytes();
    value_weights_.clear();
    output_square_ = 0;
    for (KeyQuantizer &quantizer : quantizers_) quantizer.forget();
    for (std::vector<float> &mean : value_means_) mean.clear();
  }

  /// Codes of more than 4 bits have nothing to share, whatever the options say.
  bool wants_to_share() const { return shares_bits_ && *options_->allocation != Allocation::head; }

  /// What heads learn; nothing where statistics are of no text. On the host, from all statistics.
  template <class Real = double>
  std::vector<HeadRecord> learn_on_host(cudaStream_t stream) {
    const std::vector<QueryStatistics> heads = statistics(stream);
    const bool weighs =
        wants_to_share() && std::all_of(heads.begin(), heads.end(), has_attention_weights);
    for (std::size_t head = 0; weighs && head < heads.size(); ++head) {
      value_weights_.push_back(heads[head].sums(&HeadSums::value_weight)[0]);
      output_square_ += heads[head].sums(&HeadSums::output_square)[0];
    }
    const TileFrame *frame = tiles_->frame();
    const LayerLearning layer{.coding = *options_->coding,
                              .fit = *options_->fit,
                              .orthogonal = options_->orthogonal,
                              .key_bits = page_.key_bits,
                              .head_dim = options_->head_dim,
                              .biased_first = is_biased_first(),
                              .rotary = frame != nullptr ? &frame->table() : nullptr,
                              .frame_rows = rows_of_frame(),
                              .weighs_attention = weighs,
                              .heads = heads};
#if defined(SQUAT_COMPILED)
    return compiled::kernels().learn_heads(layer, options_->parallel);
#else
    return learn_heads<Real>(layer, options_->parallel);
#endif
  }

  /// The same of subspace bases, where the device has the statistics: becomes it. Returns false where
  /// they are of no text.
  template <int HeadDim>
  bool learn_on_device(DeviceBuffer<std::byte> &workspace, cudaStream_t stream) {
    if constexpr (HeadDim <= most_device_channels) {
      const bool bytes = KeyQuantizer::rounds_to_bytes(page_.key_bits);
      const std::vector<LearntBasis<HeadDim>> learnt =
          statistics_->template learn_bases<HeadDim>(tables_.tiles, bytes, workspace, stream);
      std::vector<Evidence> evidence;
      for (const LearntBasis<HeadDim> &head : learnt)
        evidence.push_back(evidence_of(head, statistics_->draws(), statistics_->queries()));
      if (!is_of_text(evidence, false)) return false;
      const auto matrices = take<HeadDim>([&](std::size_t head) {
        return record_of(learnt[head], page_.key_bits, bytes, tiles_->frame() != nullptr,
                         statistics_->values());
      });
      make_tables(matrices, true, stream);
      const LearningMemory<HeadDim> memory(workspace, learnt.size(), 0);
      invert<HeadDim>(memory.learnt, stream);
      return true;
    }
    return false;
  }

  /// Becomes what the heads' records say.
  template <int HeadDim>
  void become(std::span<const HeadRecord> heads, bool learnt, DeviceBuffer<std::byte> &workspace,
              cudaStream_t stream) {
    make_tables(take<HeadDim>([&](std::size_t head) -> const HeadRecord & { return heads[head]; }),
                learnt, stream);
    if constexpr (HeadDim <= most_device_channels) {
      const auto has_basis = [](const KeyQuantizer &quantizer) { return quantizer.basis() != nullptr; };
      if (std::none_of(quantizers_.begin(), quantizers_.end(), has_basis)) return;
      std::vector<LearntBasis<HeadDim>> bases(quantizers_.size());
      for (std::size_t head = 0; head < bases.size(); ++head) {
        if (has_basis(quantizers_[head])) take_matrix(quantizers_[head].basis()->rounded, bases[head]);
      }
      const LearningMemory<HeadDim> memory(workspace, bases.size(), 0);
      upload<LearntBasis<HeadDim>>(bases, memory.learnt, stream);
      invert<HeadDim>(memory.learnt, stream);
    }
  }

  /// Works out on the device what the tables of bases have room for.
  template <int HeadDim>
  void invert(const LearntBasis<HeadDim> *bases, cudaStream_t stream) const {
    launch_invert_bases<HeadDim>(
        {.bases = bases, .heads = tables_.heads, .bytes = KeyQuantizer::rounds_to_bytes(page_.key_bits)},
        static_cast<int>(quantizers_.size()), stream);
  }

  /// The quantizers become what the heads' records, of_head(head), say. A task a head.
  template <int HeadDim, class OfHead>
  std::vector<QueryMatrices> take(OfHead &&of_head) {
    std::vector<QueryMatrices> matrices(quantizers_.size());
    run_tasks(options_->parallel, static_cast<int>(quantizers_.size()), [&](int head) {
      const auto i = static_cast<std::size_t>(head);
      const HeadRecord &record = of_head(i);
      quantizers_[i].adopt(record);
      value_means_[i] = record.value_mean;
      if constexpr (HeadDim > most_device_channels) quantizers_[i].invert_rounded();
      matrices[i] = QueryMatrices(quantizers_[i], *tiles_);
    });
    return matrices;
  }

  /// Tables of what the quantizers know, which then let go of matrices that only tables need.
  void make_tables(std::span<const QueryMatrices> matrices, bool learnt, cudaStream_t stream) {
    DeviceBuffer<std::byte> memory;
    LayerTables made = coding_tables(memory, quantizers_, matrices, value_means_, *tiles_, learnt,
                                     stream, [&](std::vector<HeadTables> &heads) {
                                       if (shares_bits_) place_codes(heads, page_, nullptr);
                                     });
    memory_ = std::make_shared<const DeviceBuffer<std::byte>>(std::move(memory));
    tables_ = equal_tables_ = made.tables;
    if (shares_bits_) equal_heads_ = std::move(made.heads);
    for (KeyQuantizer &quantizer : quantizers_) quantizer.drop_matrix();
  }

  /// Heads share bits so.
  void share(const BitShares &shares, cudaStream_t stream) {
    const std::vector<HeadTables> heads = shared_head_tables(equal_heads_, quantizers_, page_, shares);
    DeviceBuffer<HeadTables> memory(heads.size());
    upload<HeadTables>(heads, memory.data(), stream);
    shared_heads_ = std::make_shared<const DeviceBuffer<HeadTables>>(std::move(memory));
    shares_ = shares;
    shares_->apply(quantizers_);
    code_bytes_ = shares.code_bytes();
    tables_ = equal_tables_;
    tables_.heads = shared_heads_->data();
    tables_.shared = 1;
    tables_.plain_key_bits = shares.plain().keys;
    tables_.plain_fits = shares.plain_fits() ? 1 : 0;
    tables_.value_gain = static_cast<float>(shares.value_gain() * static_cast<double>(page_.group));
  }

  bool is_biased_first() const { return options_->keys_have_biases && layer_ == 0; }

  static constexpr int most_device_channels = 128;  // of heads whose bases the device learns and inverts

  Index rows_of_frame() const { return tiles_->frame() ? tiles_->frame()->rows() : 1; }

  const Options *options_;
  PageShape page_;
  bool shares_bits_;
  int layer_;
  const DeviceTiles *tiles_;
  std::unique_ptr<DeviceStatistics> statistics_;  // while they are wanted
  std::vector<KeyQuantizer> quantizers_;
  std::vector<std::vector<float>> value_means_;  // of a KV head each, rotated; empty where not learnt
  std::shared_ptr<const DeviceBuffer<std::byte>> memory_;  // of the tables
  CodingTables tables_{};
  // Where heads may share bits.
  CodingTables equal_tables_{};                                   // where they do not
  std::vector<HeadTables> equal_heads_;                           // of these
  std::shared_ptr<const DeviceBuffer<HeadTables>> shared_heads_;  // where they do
  std::optional<BitShares> shares_;
  std::size_t code_bytes_;             // of a page
  std::vector<double> value_weights_;  // HeadSums::value_weight of each head
  double output_square_ = 0;           // HeadSums::output_square of all heads
  bool learns_ = false;                // from a prompt
  bool observed_ = false;              // some tokens
  bool learnt_ = false;
  bool learnt_nothing_ = false;  // and never will
  bool has_prior_ = false;       // statistics came from elsewhere, with a prior's
};

}  // namespace squat::cuda
