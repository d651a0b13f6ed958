#pragma once

// Tokens come, are attended to, leave and are turned: in a cache and in its model.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "sequence_operations.hpp"

namespace squat::test {

template <class Place, class T, int KeyBits, int ValueBits>
class TokenOperations : protected SequenceOperations<Place, T, KeyBits, ValueBits> {
  using Base = SequenceOperations<Place, T, KeyBits, ValueBits>;

 public:
  using Base::Base;

 protected:
  using Base::cache_, Base::checks_, Base::make, Base::model_, Base::options, Base::pick, Base::pick_one;

  /// Rows of a call, of elements that T has.
  Tensor<float> rows(Index tokens, Index heads, unsigned seed) const {
    auto tensor = correlated_tensor<float>(tokens, heads, options().head_dim, seed);
    for (float &x : tensor.elements) x = static_cast<float>(static_cast<T>(x));
    return tensor;
  }

  std::vector<TokenModel> token_models(const Tensor<float> &k, const Tensor<float> &v, Index first,
                                       Index count) const {
    std::vector<TokenModel> tokens;
    const Index elements = options().kv_heads * options().head_dim;
    for (Index row = first; row < first + count; ++row) {
      const float *key = k.view().row(row, 0), *value = v.view().row(row, 0);
      tokens.push_back({{key, key + elements}, {value, value + elements}, {}, {}, Held::exact});
      tokens.back().held_k.resize(static_cast<std::size_t>(elements));
      tokens.back().held_v.resize(static_cast<std::size_t>(elements));
    }
    return tokens;
  }

  void step(const Operation &operation) {
    Operation one = operation;
    one.more = 0;
    for (int step = 0; step < operation.tokens; ++step, ++one.seed) {
      append(one, 1);
      Base::check_touched();
    }
  }

  void append(const Operation &operation) { append(operation, operation.tokens); }

  void append(const Operation &operation, Index tokens) {
    const auto sequences = pick(operation);
    std::vector<CacheModel::Share> shares;
    std::vector<SequenceTokens> batch;
    Index row = 0;
    for (SequenceModel *sequence : sequences) {
      Index room = most_tokens;
      for (const LayerModel &layer : sequence->layers)
        room = std::min(room, most_tokens - layer.length());
      const bool learn = operation.learn || !shares.empty();
      if (operation.padded) row += 2;
      const Index count = std::clamp<Index>(tokens, 0, std::max<Index>(room, 0));
      shares.push_back({sequence, count, learn, operation.form != Form::append,
                        operation.seed * 8 + shares.size() + 1});
      batch.push_back(
          {sequence->id, count, operation.padded ? row : SequenceTokens::behind_the_last, learn});
      row += count;
      tokens += operation.more;
    }
    if (operation.padded && !batch.empty()) row += 2;
    for (int layer = 0; layer < options().layers; ++layer) {
      if (operation.layer == Operation::all_layers || operation.layer % options().layers == layer)
        append_to_layer(operation, layer, shares, batch, row);
    }
  }

  void append_to_layer(const Operation &operation, int layer, std::span<const CacheModel::Share> shares,
                       const std::vector<SequenceTokens> &batch, Index count) {
    const unsigned seed = 64 * operation.seed + 8 * static_cast<unsigned>(layer);
    Tensor<float> q = rows(count, options().query_heads, seed),
                  k = rows(count, options().kv_heads, seed + 1),
                  v = rows(count, options().kv_heads, seed + 2), out = q;
    std::vector<bool> named(static_cast<std::size_t>(count));
    for_each_entry(batch, [&](const SequenceTokens &entry, Index first) {
      std::fill_n(named.begin() + first, entry.tokens, true);
    });
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (Tensor<float> *tensor : {&q, &k, &v}) {
      for (Index row = 0; row < count; ++row) {  // padding is not read
        if (!named[static_cast<std::size_t>(row)]) *tensor->view().row(row, 0) = nan;
      }
    }
    const std::vector<CacheModel::Outcome> outcomes = model_.plan(shares, layer);
    std::size_t pages = 0;
    for (const CacheModel::Outcome &outcome : outcomes) pages += static_cast<std::size_t>(outcome.pages);
    typename Place::Copy to_q(q), to_k(k), to_v(v), to_out(out);
    const bool done = make(pages > options().max_pages - model_.pages().used, [&] {
      if (operation.form == Form::attend) {
        cache_.attend(batch, layer, to_q.view(), to_k.view(), to_v.view(), to_out.view());
      } else if (operation.form == Form::append) {
        cache_.append(batch, layer, to_k.view(), to_v.view());
      } else {
        cache_.append(batch, layer, to_q.view(), to_k.view(), to_v.view());
      }
    });
    for (const CacheModel::Outcome &outcome : outcomes) {  // found out before pages are
      if (!outcome.coding) model_.learning.without_learning(layer);
    }
    if (!done) return;
    std::vector<std::vector<TokenModel>> tokens(batch.size());
    const Tensor<float> written = to_out.read();
    std::size_t share = 0;
    for_each_entry(batch, [&](const SequenceTokens &entry, Index first) {
      const LayerModel &before = shares[share].sequence->layers[static_cast<std::size_t>(layer)];
      tokens[share] = token_models(k, v, first, entry.tokens);
      if (operation.form == Form::attend && entry.tokens > 0)
        checks_.check_attention(before, tokens[share], before.length(),
                                std::as_const(q).view().slice(first, entry.tokens),
                                written.view().slice(first, entry.tokens));
      ++share;
    });
    for (Index row = 0; row < count; ++row) {
      const auto *is = written.view().row(row, 0), *was = std::as_const(out).view().row(row, 0);
      require(named[static_cast<std::size_t>(row)] || *is == *was,
              "the padding of an output was written");
    }
    model_.append(shares, layer, outcomes, tokens);
  }

  /// Calls visit(entry, first row).
  template <class Visit>
  static void for_each_entry(const std::vector<SequenceTokens> &batch, Visit &&visit) {
    Index row = 0;
    for (const SequenceTokens &entry : batch) {
      if (entry.first_row != SequenceTokens::behind_the_last) row = entry.first_row;
      visit(entry, row);
      row += entry.tokens;
    }
  }

  void read(const Operation &operation) {
    const int layer = std::max(operation.layer, 0) % options().layers;
    std::vector<SequenceTokens> batch;
    Index count = 0;
    const auto sequences = pick(operation);
    for (const SequenceModel *sequence : sequences) {
      const Index most = sequence->layers[static_cast<std::size_t>(layer)].length();
      batch.push_back({sequence->id, std::min<Index>(operation.tokens, most)});
      count += batch.back().tokens;
    }
    const Tensor<float> q = rows(count, options().query_heads, operation.seed), out = q;
    typename Place::Copy to_q(q), to_out(out);
    make(false, [&] { cache_.attend(batch, layer, to_q.view(), to_out.view()); });
    const Tensor<float> written = to_out.read();
    std::size_t at = 0;
    for_each_entry(batch, [&](const SequenceTokens &entry, Index first) {
      const LayerModel &state = sequences[at++]->layers[static_cast<std::size_t>(layer)];
      if (entry.tokens > 0)
        checks_.check_attention(state, {}, state.length() - entry.tokens,
                                q.view().slice(first, entry.tokens),
                                written.view().slice(first, entry.tokens));
    });
  }

  void truncate(const Operation &operation) {
    SequenceModel *sequence = pick_one(operation);
    if (sequence == nullptr) return;
    const Index kept = operation.tokens % (sequence->length() + 1);
    make(false, [&] { cache_.truncate(sequence->id, kept); });
    for (LayerModel &layer : sequence->layers) layer.truncate(kept);
  }

  void shift(const Operation &operation) {
    SequenceModel *sequence = pick_one(operation);
    if (sequence == nullptr) return;
    const Index length = sequence->length(), first = operation.first % (length + 1),
                last = first + operation.tokens % (length - first + 1);
    const Index by = options().rotary.empty() ? 0 : operation.by;
    make(false, [&] { cache_.shift(sequence->id, first, last, by); });
    for (int layer = 0; layer < options().layers; ++layer) {
      sequence->layers[static_cast<std::size_t>(layer)].shift(
          first, last, by, [&](TokenModel &token) { model_.turn(token, layer, by); });
    }
  }

 private:
  static constexpr Index most_tokens = 240;
};

}  // namespace squat::test
