#pragma once

// The CPU backend of programs that link squat::compiled: its kernels are in the library, which picks
// those of the machine's instruction set at run time.

#include <initializer_list>
#include <memory>
#include <span>
#include <utility>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/compiled/any_operations.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/config.hpp"
#include "squat/core/element_range.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/padding.hpp"
#include "squat/cpu/page_memory.hpp"
#include "squat/cpu/stream.hpp"

namespace squat::compiled {

/// Hands every call on, see cache/backend.hpp for what each does.
template <class T>
class Operations {
 public:
  using Exact = typename AnyOperations<T>::Exact;
  using Call = typename AnyOperations<T>::Call;
  using Stream = cpu::Stream;
  using Memory = cpu::PageMemory;
  using Padding = cpu::Padding;
  static constexpr int padded_head_dim(int head_dim) { return cpu::padded_head_dim(head_dim); }

  Operations(const Options &options, int key_bits, int value_bits)
      : operations_(kernels().make<T>()(options, key_bits, value_bits)) {}

  std::size_t page_bytes(Index coding) const { return operations_->page_bytes(coding); }

  template <Element S>
  void check_elements(std::initializer_list<NamedTensor<S>> tensors, Stream) const {
    for (const auto &[name, view, first] : tensors) operations_->check_elements(name, view, first);
  }

  Index add_coding(int layer) { return operations_->add_coding(layer); }
  void remove_coding(Index coding) { operations_->remove_coding(coding); }

  bool observe_may_fail(Index tokens) const { return operations_->observe_may_fail(tokens); }
  template <Element S>
  void observe(const Call &call, TensorView<const S> q, TensorView<const S> k, TensorView<const S> v,
               Index first, Index count, Stream) {
    operations_->observe(call, q, k, v, first, count);
  }

  bool learn(Index coding, Stream) { return operations_->learn(coding); }
  void learn_nothing(Index coding, Stream) { operations_->learn_nothing(coding); }
  void forget(Index coding, Stream) { operations_->forget(coding); }
  bool add_statistics(Index coding, Prior &prior) const {
    return operations_->add_statistics(coding, prior);
  }
  using Backup = std::unique_ptr<AnyBackup>;
  Backup back_up(Index coding, Stream) const { return operations_->back_up(coding); }
  void restore(Index coding, Backup backup) { operations_->restore(coding, std::move(backup)); }
  void reserve(std::span<const Call> calls, bool attends, Stream) {
    operations_->reserve(calls, attends);
  }

  template <Element S>
  void append(std::span<const Call> calls, TensorView<const S> q, TensorView<const S> k,
              TensorView<const S> v, AttentionOutput<S> out, Stream) {
    operations_->append(calls, q, k, v, out.rows, out.lse);
  }

  template <Element S>
  void attend(std::span<const Call> calls, TensorView<const S> q, AttentionOutput<S> out, Stream) {
    operations_->attend(calls, q, out.rows, out.lse);
  }

  template <Element S>
  void draft(std::span<const Call> calls, TensorView<const S> q, TensorView<const S> k,
             TensorView<const S> v, AttentionOutput<S> out, Stream) {
    operations_->draft(calls, q, k, v, out.rows, out.lse);
  }

  void shift(Index coding, Exact &exact, TokenRange sinks, TokenRange tail, Index by, Stream) const {
    operations_->shift(coding, exact, sinks, tail, by);
  }

  void reserve_copies(std::span<const ExactCopy<Exact>> copies) { operations_->reserve_copies(copies); }
  void copy(std::span<const ExactCopy<Exact>> copies, Stream) { operations_->copy(copies); }

  template <Element S>
  void dequantize(const Call &call, TensorView<S> k, TensorView<S> v, Stream) {
    operations_->dequantize(call, k, v);
  }

  CodingRecord record_coding(Index coding, Stream) const { return operations_->record_coding(coding); }
  void adopt_coding(Index coding, const CodingRecord &record, Stream) {
    operations_->adopt_coding(coding, record);
  }
  std::size_t page_record_bytes(Index coding) const { return operations_->page_record_bytes(coding); }
  void write_pages(Index coding, std::span<const PageView> pages, std::byte *to, Stream) const {
    operations_->write_pages(coding, pages, to);
  }
  void read_pages(Index coding, std::span<const PageView> pages, const std::byte *from, Stream) const {
    operations_->read_pages(coding, pages, from);
  }
  void write_rows(const Exact &exact, bool of_tail, Index first, Index count, std::byte *to,
                  Stream) const {
    operations_->write_rows(exact, of_tail, first, count, to);
  }
  void read_rows(Exact &exact, bool of_tail, Index count, Index expected, const std::byte *from,
                 Stream) const {
    operations_->read_rows(exact, of_tail, count, expected, from);
  }

  std::size_t statistics_bytes() const { return operations_->statistics_bytes(); }
  std::size_t bases_bytes() const { return operations_->bases_bytes(); }
  std::size_t workspace_bytes() const { return operations_->workspace_bytes(); }

 private:
  std::unique_ptr<AnyOperations<T>> operations_;
};

}  // namespace squat::compiled

namespace squat::inline SQUAT_API_NAMESPACE {

struct Cpu {
  using Stream = cpu::Stream;

  template <class T, int KeyBits, int ValueBits>
  using Operations = compiled::Operations<T>;

  template <class T, int KeyBits, int ValueBits>
  static Operations<T, KeyBits, ValueBits> make_operations(const Options &options) {
    return {options, KeyBits, ValueBits};
  }

  template <class T>
  static compiled::Operations<T> make_operations(const Options &options, int key_bits, int value_bits) {
    return {options, key_bits, value_bits};
  }
};

}  // namespace squat::inline SQUAT_API_NAMESPACE
