#pragma once

// Rows whose heads are narrower than kernels take them, and the same with zeros behind their channels.

#include <gtest/gtest.h>

#include <algorithm>

#include "inputs.hpp"
#include "reference_attention.hpp"

namespace squat::test {

/// Channels of a head, and those of the heads that kernels take.
struct Sizes {
  int head_dim, value_dim, padded, query_heads = 4, kv_heads = 2;
};

/// turned: channels that the rotary embedding turns.
inline Options options_of(const Sizes &sizes, int turned) {
  return {.layers = 1,
          .query_heads = sizes.query_heads,
          .kv_heads = sizes.kv_heads,
          .head_dim = sizes.head_dim,
          .value_dim = sizes.value_dim,
          .residual = 20,
          .page_tokens = 32,
          .rotary = {rotary_table(1e4, turned / 2 * 2)},
          .statistics_tokens = 60};
}

/// `rows` in heads of `channels` channels: some are left out, or follow as zeros.
template <class S>
Tensor<S> resized(const Tensor<S> &rows, Index channels) {
  Tensor<S> sized(rows.tokens, rows.heads, channels);
  for (Index token = 0; token < rows.tokens; ++token) {
    for (Index head = 0; head < rows.heads; ++head) {
      std::copy_n(rows.view().row(token, head), std::min(channels, rows.head_dim),
                  sized.view().row(token, head));
    }
  }
  return sized;
}

/// Of a TwoSizes, or of what has the same on a device.
template <class S, class Rows>
AttentionTensors<S> tensors_of(Rows &rows) {
  return {.q = rows.q.view(),
          .k = rows.k.view(),
          .v = rows.v.view(),
          .out = rows.out.view(),
          .lse = rows.lse.view()};
}
template <class S, class Rows>
AttentionTensors<S> wide_tensors_of(Rows &rows) {
  return {.q = rows.wide_q.view(),
          .k = rows.wide_k.view(),
          .v = rows.wide_v.view(),
          .out = rows.wide_out.view(),
          .lse = rows.wide_lse.view()};
}

/// Rows as a call takes them, and as a cache of larger heads does.
template <class S>
struct TwoSizes {
  TwoSizes(const Sizes &sizes, Index tokens, unsigned seed)
      : q(correlated_tensor<S>(tokens, sizes.query_heads, sizes.head_dim, seed)),
        k(correlated_tensor<S>(tokens, sizes.kv_heads, sizes.head_dim, seed + 1)),
        v(correlated_tensor<S>(tokens, sizes.kv_heads, sizes.value_dim, seed + 2)),
        out(tokens, sizes.query_heads, sizes.value_dim),
        lse(tokens, sizes.query_heads, 1),
        wide_q(resized(q, sizes.padded)),
        wide_k(resized(k, sizes.padded)),
        wide_v(resized(v, sizes.padded)),
        wide_out(tokens, sizes.query_heads, sizes.padded),
        wide_lse(lse) {}

  AttentionTensors<S> tensors() { return tensors_of<S>(*this); }
  AttentionTensors<S> wide() { return wide_tensors_of<S>(*this); }
  void expect_same() const {
    EXPECT_EQ(out.elements, resized(wide_out, out.head_dim).elements);
    EXPECT_EQ(lse.elements, wide_lse.elements);
  }

  Tensor<S> q, k, v, out;
  Tensor<float> lse;
  Tensor<S> wide_q, wide_k, wide_v, wide_out;
  Tensor<float> wide_lse;
};

}  // namespace squat::test
