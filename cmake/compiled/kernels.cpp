// The CPU backend for the instruction set that this file is compiled for: once for each that
// squat::compiled holds. SQUAT_KERNELS names the result, the one symbol that others see.

#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "squat/coding/learn_heads.hpp"
#include "squat/compiled/any_operations.hpp"
#include "squat/cpu/operations.hpp"

#if !defined(SQUAT_COMPILED) || !defined(SQUAT_KERNELS)
#error "squat: this file belongs to the target squat::compiled"
#endif

#define SQUAT_TEXT(name) #name
#define SQUAT_NAME(macro) SQUAT_TEXT(macro)

namespace squat::compiled {

namespace {

template <class T>
class OperationsOf final : public AnyOperations<T> {
 public:
  using typename AnyOperations<T>::Call;
  using typename AnyOperations<T>::Exact;

  OperationsOf(const Options &options, int key_bits, int value_bits)
      : operations_(options, key_bits, value_bits, cpu::code_kernels<2, 3, 4, 8, 16>()) {}

  std::size_t page_bytes(Index coding) const override { return operations_.page_bytes(coding); }

  void check_elements(std::string_view name, AnyTensor tensor, Index first) const override {
    with_element(tensor.type(),
                 [&]<class S>() { cpu::check_elements(name, tensor.as<const S>(), first); });
  }

  Index add_coding(int layer) override { return operations_.add_coding(layer); }
  void remove_coding(Index coding) override { operations_.remove_coding(coding); }

  bool observe_may_fail(Index tokens) const override { return operations_.observe_may_fail(tokens); }
  void observe(const Call &call, AnyTensor q, AnyTensor k, AnyTensor v, Index first,
               Index count) override {
    with_element(k.type(), [&]<class S>() {
      operations_.template observe<S>(call, q.as<const S>(), k.as<const S>(), v.as<const S>(), first,
                                      count, {});
    });
  }

  bool learn(Index coding) override { return operations_.learn(coding, {}); }
  void learn_nothing(Index coding) override { operations_.learn_nothing(coding, {}); }
  void forget(Index coding) override { operations_.forget(coding, {}); }
  bool add_statistics(Index coding, Prior &prior) const override {
    return operations_.add_statistics(coding, prior);
  }
  std::unique_ptr<AnyBackup> back_up(Index coding) const override {
    return std::make_unique<BackupOf>(operations_.back_up(coding, {}));
  }
  void restore(Index coding, std::unique_ptr<AnyBackup> backup) override {
    operations_.restore(coding, std::move(static_cast<BackupOf &>(*backup).backup));
  }
  void reserve(std::span<const Call> calls, bool attends) override {
    operations_.reserve(calls, attends, {});
  }

  void append(std::span<const Call> calls, AnyTensor q, AnyTensor k, AnyTensor v, AnyTensor out,
              TensorView<float> lse) override {
    with_element(k.type(), [&]<class S>() {
      operations_.template append<S>(calls, q.as<const S>(), k.as<const S>(), v.as<const S>(),
                                     AttentionOutput<S>(out.as<S>(), lse), {});
    });
  }

  void attend(std::span<const Call> calls, AnyTensor q, AnyTensor out, TensorView<float> lse) override {
    with_element(q.type(), [&]<class S>() {
      operations_.template attend<S>(calls, q.as<const S>(), AttentionOutput<S>(out.as<S>(), lse),
                                     cpu::Stream{});
    });
  }

  void draft(std::span<const Call> calls, AnyTensor q, AnyTensor k, AnyTensor v, AnyTensor out,
             TensorView<float> lse) override {
    with_element(q.type(), [&]<class S>() {
      operations_.template draft<S>(calls, q.as<const S>(), k.as<const S>(), v.as<const S>(),
                                    AttentionOutput<S>(out.as<S>(), lse), cpu::Stream{});
    });
  }

  void shift(Index coding, Exact &exact, TokenRange sinks, TokenRange tail, Index by) const override {
    operations_.shift(coding, exact, sinks, tail, by, {});
  }

  void reserve_copies(std::span<const ExactCopy<Exact>> copies) override {
    operations_.reserve_copies(copies);
  }
  void copy(std::span<const ExactCopy<Exact>> copies) override { operations_.copy(copies, {}); }

  void dequantize(const Call &call, AnyTensor k, AnyTensor v) override {
    with_element(k.type(),
                 [&]<class S>() { operations_.template dequantize<S>(call, k.as<S>(), v.as<S>(), {}); });
  }

  CodingRecord record_coding(Index coding) const override {
    return operations_.record_coding(coding, {});
  }
  void adopt_coding(Index coding, const CodingRecord &record) override {
    operations_.adopt_coding(coding, record, {});
  }
  std::size_t page_record_bytes(Index coding) const override {
    return operations_.page_record_bytes(coding);
  }
  void write_pages(Index coding, std::span<const PageView> pages, std::byte *to) const override {
    operations_.write_pages(coding, pages, to, {});
  }
  void read_pages(Index coding, std::span<const PageView> pages, const std::byte *from) const override {
    operations_.read_pages(coding, pages, from, {});
  }
  void write_rows(const Exact &exact, bool of_tail, Index first, Index count,
                  std::byte *to) const override {
    operations_.write_rows(exact, of_tail, first, count, to, {});
  }
  void read_rows(Exact &exact, bool of_tail, Index count, Index expected,
                 const std::byte *from) const override {
    operations_.read_rows(exact, of_tail, count, expected, from, {});
  }

  std::size_t statistics_bytes() const override { return operations_.statistics_bytes(); }
  std::size_t bases_bytes() const override { return operations_.bases_bytes(); }
  std::size_t workspace_bytes() const override { return operations_.workspace_bytes(); }

 private:
  struct BackupOf final : AnyBackup {
    explicit BackupOf(typename cpu::Operations<T>::Backup statistics) : backup(std::move(statistics)) {}
    typename cpu::Operations<T>::Backup backup;
  };

  cpu::Operations<T> operations_;
};

template <class T>
std::unique_ptr<AnyOperations<T>> make(const Options &options, int key_bits, int value_bits) {
  return std::make_unique<OperationsOf<T>>(options, key_bits, value_bits);
}

}  // namespace

extern const Kernels SQUAT_KERNELS;
const Kernels SQUAT_KERNELS{SQUAT_NAME(SQUAT_CPU_NAMESPACE), learn_heads<double>, make<float>,
                            make<half>, make<bfloat16>};

}  // namespace squat::compiled
