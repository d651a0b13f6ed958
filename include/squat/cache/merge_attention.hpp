#pragma once

// Attention to a context in parts: what parts come to, merged.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/tensor.hpp"

namespace squat {

/// What the same queries came to over a part of their context: AttentionTensors::out and lse.
template <Element Scalar>
struct AttentionPart {
  TensorView<const Scalar> out;  ///< [tokens, query_heads, head_dim]
  TensorView<const float> lse;   ///< [tokens, query_heads, 1]; -infinity where a part has nothing to see
};

/// Attention to all parts together, each of whose tokens is in one of them: softmax weights of a part
/// count by the exponential of its lse (Milakov and Gimelshein, 2018). Sink logits must be in one part's
/// lse alone, or in that of every part that sees anything, as `sink_logits` says then, [query_heads].
/// out: [tokens, query_heads, head_dim], perhaps one part's own; lse: of no tokens, or [tokens,
/// query_heads, 1]. Where no part sees anything, out is 0. Views are of host memory. Throws Error where
/// shapes differ. Allocates a row.
template <Element Scalar>
void merge_attention(std::span<const AttentionPart<Scalar>> parts, TensorView<Scalar> out,
                     TensorView<float> lse = {}, std::span<const float> sink_logits = {}) {
  const auto check = [&](const char *name, Index found, Index expected) {
    if (found != expected) throw_invalid(name, found, "that of out,", expected);
  };
  for (const AttentionPart<Scalar> &part : parts) {
    check("parts.out.tokens", part.out.tokens, out.tokens);
    check("parts.out.heads", part.out.heads, out.heads);
    check("parts.out.head_dim", part.out.head_dim, out.head_dim);
    check("parts.lse.tokens", part.lse.tokens, out.tokens);
    check("parts.lse.heads", part.lse.heads, out.heads);
  }
  if (lse.tokens > 0) {
    check("lse.tokens", lse.tokens, out.tokens);
    check("lse.heads", lse.heads, out.heads);
  }
  if (!sink_logits.empty()) check("sink_logits.size", static_cast<Index>(sink_logits.size()), out.heads);
  std::vector<float> sum(static_cast<std::size_t>(out.head_dim));
  for (Index token = 0; token < out.tokens; ++token) {
    for (Index head = 0; head < out.heads; ++head) {
      float most = -std::numeric_limits<float>::infinity(), weight = 0;
      int seen = 0;
      for (const AttentionPart<Scalar> &part : parts) most = std::max(most, *part.lse.row(token, head));
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (const AttentionPart<Scalar> &part : parts) {
        const float logarithm = *part.lse.row(token, head);
        if (std::isinf(logarithm) && logarithm < 0) continue;
        const float of_part = std::exp(logarithm - most);
        weight += of_part;
        ++seen;
        const Scalar *from = part.out.row(token, head);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += of_part * static_cast<float>(from[i]);
      }
      if (!sink_logits.empty() && seen > 1)
        weight -=
            static_cast<float>(seen - 1) * std::exp(sink_logits[static_cast<std::size_t>(head)] - most);
      const float inverse = weight > 0 ? 1 / weight : 0.0f;
      Scalar *to = out.row(token, head);
      for (std::size_t i = 0; i < sum.size(); ++i) to[i] = static_cast<Scalar>(sum[i] * inverse);
      if (lse.tokens > 0) *lse.row(token, head) = most + std::log(weight);
    }
  }
}

}  // namespace squat
