#pragma once

// The border between a translation unit that uses squat::compiled and the kernels in that library:
// the operations of the CPU backend as virtual functions, one implementation an instruction set.
// What crosses it is in SQUAT_API_NAMESPACE or in no namespace of an instruction set, and no object
// of Eigen's that owns memory does: their alignment depends on compiler flags.

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "squat/cache/call.hpp"
#include "squat/cache/options.hpp"
#include "squat/coding/coding_record.hpp"
#include "squat/coding/layer_learning.hpp"
#include "squat/coding/prior.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/config.hpp"
#include "squat/core/parallel.hpp"
#include "squat/core/tensor.hpp"
#include "squat/cpu/exact_store.hpp"

namespace squat::compiled {

/// What a coding was.
class AnyBackup {
 public:
  virtual ~AnyBackup() = default;
};

/// What BackendOperations (cache/backend.hpp) asks for, for rows that stay exact as T.
template <class T>
class AnyOperations {
 public:
  using Exact = cpu::ExactStore<T>;
  using Call = SequenceCall<Exact>;

  virtual ~AnyOperations() = default;

  virtual std::size_t page_bytes(Index coding) const = 0;
  virtual void check_elements(std::string_view name, AnyTensor tensor, Index first) const = 0;
  virtual Index add_coding(int layer) = 0;
  virtual void remove_coding(Index coding) = 0;
  virtual bool observe_may_fail(Index tokens) const = 0;
  virtual void observe(const Call &call, AnyTensor q, AnyTensor k, AnyTensor v, Index first,
                       Index count) = 0;
  virtual bool learn(Index coding) = 0;
  virtual void learn_nothing(Index coding) = 0;
  virtual void forget(Index coding) = 0;
  virtual bool add_statistics(Index coding, Prior &prior) const = 0;
  virtual std::unique_ptr<AnyBackup> back_up(Index coding) const = 0;
  virtual void restore(Index coding, std::unique_ptr<AnyBackup> backup) = 0;
  virtual void reserve(std::span<const Call> calls, bool attends) = 0;
  virtual void append(std::span<const Call> calls, AnyTensor q, AnyTensor k, AnyTensor v, AnyTensor out,
                      TensorView<float> lse) = 0;
  virtual void attend(std::span<const Call> calls, AnyTensor q, AnyTensor out,
                      TensorView<float> lse) = 0;
  virtual void draft(std::span<const Call> calls, AnyTensor q, AnyTensor k, AnyTensor v, AnyTensor out,
                     TensorView<float> lse) = 0;
  virtual void shift(Index coding, Exact &exact, TokenRange sinks, TokenRange tail, Index by) const = 0;
  virtual void reserve_copies(std::span<const ExactCopy<Exact>> copies) = 0;
  virtual void copy(std::span<const ExactCopy<Exact>> copies) = 0;
  virtual void dequantize(const Call &call, AnyTensor k, AnyTensor v) = 0;
  virtual CodingRecord record_coding(Index coding) const = 0;
  virtual void adopt_coding(Index coding, const CodingRecord &record) = 0;
  virtual std::size_t page_record_bytes(Index coding) const = 0;
  virtual void write_pages(Index coding, std::span<const PageView> pages, std::byte *to) const = 0;
  virtual void read_pages(Index coding, std::span<const PageView> pages,
                          const std::byte *from) const = 0;
  virtual void write_rows(const Exact &exact, bool of_tail, Index first, Index count,
                          std::byte *to) const = 0;
  virtual void read_rows(Exact &exact, bool of_tail, Index count, Index expected,
                         const std::byte *from) const = 0;
  virtual std::size_t statistics_bytes() const = 0;
  virtual std::size_t bases_bytes() const = 0;
  virtual std::size_t workspace_bytes() const = 0;
};

template <class T>
using MakeOperations = std::unique_ptr<AnyOperations<T>>(const Options &options, int key_bits,
                                                         int value_bits);

/// See learn_heads() in coding/learn_heads.hpp: for backends of devices, whose host learns.
using LearnHeads = std::vector<HeadRecord>(const LayerLearning &layer, const Parallel &parallel);

/// The kernels of one instruction set.
struct Kernels {
  const char *name;
  LearnHeads *learn_heads;
  MakeOperations<float> *make_float;
  MakeOperations<half> *make_half;
  MakeOperations<bfloat16> *make_bfloat16;

  template <class T>
  MakeOperations<T> *make() const {
    if constexpr (std::same_as<T, float>) return make_float;
    if constexpr (std::same_as<T, half>) return make_half;
    if constexpr (std::same_as<T, bfloat16>) return make_bfloat16;
  }
};

/// The fastest kernels that this machine runs, or those that the environment variable
/// SQUAT_INSTRUCTION_SET names. Chosen once. Throws Error where the library does not hold what the
/// variable names, or the machine does not run it.
const Kernels &kernels();

}  // namespace squat::compiled
