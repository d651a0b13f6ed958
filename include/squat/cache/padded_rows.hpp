#pragma once

// Heads that are narrower than kernels take them: rows of a call with zeros behind their channels.
// Zeros add nothing to a product of a query and a key, and are cut off what comes out of values.

#include <cstddef>
#include <type_traits>

#include "squat/cache/attention_tensors.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/core/tensor.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// The tensors of one call at a time. Padding is the backend's, see cache/backend.hpp.
template <class Padding, class Stream>
class PaddedRows {
 public:
  /// The head_dim of what kernels take.
  explicit PaddedRows(Index head_dim) : head_dim_(head_dim) {}

  /// Tensors of a call; where out is wide enough it is the call's own.
  template <Element S>
  AttentionTensors<S> widen(const AttentionTensors<S> &call, Stream stream) {
    AttentionTensors<S> wide = call;
    wide.q = widen(queries, call.q, stream);
    wide.k = widen(keys, call.k, stream);
    wide.v = widen(values, call.v, stream);
    if (is_narrow(call.out)) wide.out = padding_.template rows<S>(outputs, sized(call.out), stream);
    return wide;
  }

  /// The same rows, as they are where they are wide enough. Scalar: an Element, const or not.
  template <class Scalar>
  TensorView<Scalar> widen(int place, TensorView<Scalar> rows, Stream stream) {
    using S = std::remove_const_t<Scalar>;
    if (!is_narrow(rows)) return rows;
    const TensorView<S> wide = padding_.template rows<S>(place, sized(rows), stream);
    padding_.template copy<S>(rows, wide, stream);
    return wide;
  }

  /// Brings a wide tensor's channels to where the call wants them.
  template <Element S>
  void narrow(TensorView<const S> wide, TensorView<S> rows, Stream stream) {
    if (is_narrow(rows)) padding_.template copy<S>(wide, rows, stream);
  }

  std::size_t bytes() const { return padding_.bytes(); }

  static constexpr int queries = 0, keys = 1, values = 2, outputs = 3;

 private:
  template <class S>
  bool is_narrow(TensorView<S> rows) const {
    return rows.tokens > 0 && rows.head_dim < head_dim_;
  }
  template <class S>
  TensorView<S> sized(TensorView<S> rows) const {
    return {rows.data, rows.tokens, rows.heads, head_dim_};
  }

  Index head_dim_;
  Padding padding_;
};

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
