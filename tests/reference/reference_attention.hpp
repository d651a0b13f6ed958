#pragma once

// Attention in double precision over rows of floats, and tensors to run it on.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "squat/squat.hpp"

namespace squat::test {

/// A contiguous tensor [tokens, heads, head_dim] that owns its elements.
template <class S>
struct Tensor {
  Tensor(Index token_count, Index head_count, Index channels)
      : tokens(token_count),
        heads(head_count),
        head_dim(channels),
        elements(static_cast<std::size_t>(token_count * head_count * channels)) {}

  TensorView<S> view() { return {elements.data(), tokens, heads, head_dim}; }
  TensorView<const S> view() const { return {elements.data(), tokens, heads, head_dim}; }
  TensorView<S> view(Index first, Index count) { return view().slice(first, count); }

  Index tokens, heads, head_dim;
  std::vector<S> elements;
};

template <class S = float>
Tensor<S> random_tensor(Index tokens, Index heads, Index head_dim, unsigned seed) {
  Tensor<S> tensor(tokens, heads, head_dim);
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::generate(tensor.elements.begin(), tensor.elements.end(),
                [&] { return static_cast<S>(normal(generator)); });
  return tensor;
}

/// The same, each channel like the one before it, as queries and keys of models are in some directions
/// more than in others: there is something to learn from.
template <class S = float>
Tensor<S> correlated_tensor(Index tokens, Index heads, Index head_dim, unsigned seed) {
  Tensor<S> tensor = random_tensor<S>(tokens, heads, head_dim, seed);
  constexpr float alike = .5f;
  const float apart = std::sqrt(1 - alike * alike);
  for (std::size_t i = 0; i < tensor.elements.size(); ++i) {
    if (i % static_cast<std::size_t>(head_dim) == 0) continue;
    tensor.elements[i] = static_cast<S>(alike * static_cast<float>(tensor.elements[i - 1]) +
                                        apart * static_cast<float>(tensor.elements[i]));
  }
  return tensor;
}

/// The queries, keys and values of one layer of a sequence, and room for outputs.
template <class S = float>
struct Inputs {
  Inputs(const Options &options, Index tokens, unsigned seed)
      : q(correlated_tensor<S>(tokens, options.query_heads, options.head_dim, seed)),
        k(correlated_tensor<S>(tokens, options.kv_heads, options.head_dim, seed + 1)),
        v(random_tensor<S>(tokens, options.kv_heads, options.head_dim, seed + 2)),
        out(tokens, options.query_heads, options.head_dim) {}

  Tensor<S> q, k, v, out;
};

/// Makes the tokens from `period` on those before again.
inline void repeat(Inputs<> &in, Index period) {
  for (auto *x : {&in.q, &in.k, &in.v}) {
    const auto begin = static_cast<std::size_t>(period * x->heads * x->head_dim);
    for (std::size_t i = begin; i < x->elements.size(); ++i) x->elements[i] = x->elements[i - begin];
  }
}

/// Makes KV heads matter differently, and channels too.
inline void make_uneven(Inputs<> &in) {
  for (Tensor<float> *rows : {&in.q, &in.k, &in.v}) {
    for (Index token = 0; token < rows->tokens; ++token) {
      for (Index head = 0; head < rows->heads; ++head) {
        float *row = rows->view().row(token, head);
        const float size = head < rows->heads / 2 ? .5f : 1.5f;
        for (Index i = 0; i < rows->head_dim; ++i)
          row[i] = row[i] * size * std::exp(-.03f * static_cast<float>(i));
      }
    }
  }
}

/// Turns queries and keys to the positions they stand at, as engines hand them over.
inline void embed(Inputs<> &in, const RotaryTable &table) {
  for (auto *x : {&in.q, &in.k}) {
    for (Index token = 0; token < x->tokens; ++token) {
      const Turn turn(table, token);
      for (Index head = 0; head < x->heads; ++head) turn.apply(x->view().row(token, head));
    }
  }
}

/// How far attention over codes of that width may be from attention over what they stand for: kernels
/// round queries and probabilities to 8 bits, 14 for codes of 8 bits (squat/cpu/round_weights.hpp). Half
/// of this is usual for one row, and a tenth of what 4-bit codes themselves err.
constexpr double rounding_tolerance(int bits) { return bits == 16 ? 1e-3 : bits == 8 ? 2e-3 : 3e-2; }

/// Relative distance of numbers from as many others.
template <class A, class B>
double relative_distance(const A &a, const B &b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

inline double relative_distance(const Tensor<float> &a, const Tensor<float> &b) {
  return relative_distance(a.elements, b.elements);
}

/// Relative distance of `out` from attention in double precision: query i of q stands at position past +
/// i and sees the rows [0, past + i] of k and v.
template <class S>
double attention_distance(TensorView<const S> q, TensorView<const float> k, TensorView<const float> v,
                          TensorView<const S> out, Index past) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.head_dim));
  const Index shared = q.heads / k.heads;
  double difference = 0, norm = 0;
  std::vector<double> p, query(static_cast<std::size_t>(q.head_dim)), sum(query.size());
  for (Index token = 0; token < q.tokens; ++token) {
    for (Index head = 0; head < q.heads; ++head) {
      p.resize(static_cast<std::size_t>(past + token + 1));
      std::transform(q.row(token, head), q.row(token, head) + q.head_dim, query.begin(),
                     [&](S x) { return static_cast<double>(x) * scale; });
      for (std::size_t t = 0; t < p.size(); ++t) {
        const float *key = k.row(static_cast<Index>(t), head / shared);
        double score = 0;
        for (std::size_t i = 0; i < query.size(); ++i) score += query[i] * static_cast<double>(key[i]);
        p[t] = score;
      }
      const double most = *std::max_element(p.begin(), p.end());
      double total = 0;
      for (double &x : p) total += x = std::exp(x - most);
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t t = 0; t < p.size(); ++t) {
        const float *value = v.row(static_cast<Index>(t), head / shared);
        const double weight = p[t] / total;
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * static_cast<double>(value[i]);
      }
      for (std::size_t i = 0; i < sum.size(); ++i) {
        const double error = static_cast<double>(out.row(token, head)[i]) - sum[i];
        difference += error * error;
        norm += sum[i] * sum[i];
      }
    }
  }
  return std::sqrt(difference / norm);
}

/// Hands `count` tokens, rows of `in` from `first` on, to every layer of a cache.
template <class Cache>
void fill(Cache &cache, SequenceId sequence, Inputs<> &in, Index first, Index count) {
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    cache.attend(sequence, layer, in.q.view(first, count), in.k.view(first, count),
                 in.v.view(first, count), in.out.view(first, count));
  }
}

/// What a cache holds of one sequence and layer.
struct Contents {
  Tensor<float> k, v;
  bool operator==(const Contents &other) const {
    return k.elements == other.k.elements && v.elements == other.v.elements;
  }
};

template <class Cache>
Contents contents(Cache &cache, SequenceId sequence, int layer = 0) {
  const Options &options = cache.options();
  const Index tokens = cache.length(sequence, layer);
  Contents rows{{tokens, options.kv_heads, options.head_dim},
                {tokens, options.kv_heads, options.head_dim}};
  cache.dequantize(sequence, layer, rows.k.view(), rows.v.view());
  return rows;
}

}  // namespace squat::test
