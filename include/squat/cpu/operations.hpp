#pragma once

// The CPU backend: the operations KVCache calls, see cache/backend.hpp for what
// each must do.

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "squat/attention/context.hpp"
#include "squat/cpu/attend_head.hpp"
#include "squat/cpu/buffer.hpp"
#include "squat/cpu/pack_page.hpp"
#include "squat/cpu/page_layout.hpp"
#include "squat/cpu/row_store.hpp"
#include "squat/cpu/unpack_page.hpp"
#include "squat/cpu/workspace.hpp"
#include "squat/options.hpp"
#include "squat/quantize/key_quantizer.hpp"
#include "squat/quantize/query_statistics.hpp"
#include "squat/tensor.hpp"

namespace squat::cpu::inline SQUAT_CPU_NAMESPACE {

template <class T, int KeyBits, int ValueBits>
class Operations {
 public:
  using Rows = RowStore<T>;
  using Memory = Buffer<std::byte>;

  explicit Operations(const Options &options)
      : options_(options),
        layout_(options),
        workspace_(options.parallel),
        statistics_(heads_of_all_layers()),
        quantizers_(heads_of_all_layers(),
                    KeyQuantizer(options.coding, *options.fit, options.orthogonal)) {}

  std::size_t page_bytes() const { return layout_.page_bytes(); }

  Rows make_rows(Index capacity) const { return {options_.kv_heads, options_.head_dim, capacity}; }

  /// Adds `count` tokens, rows from `first` on, the first of which stands at
  /// `position`, to the statistics of a layer. Without queries (q.tokens = 0)
  /// keys alone are added. The keys of sinks are left out.
  template <Element S>
  void observe(int layer, TensorView<const S> q, TensorView<const S> k, Index first, Index count,
               Index position) {
    const Index d = options_.head_dim, heads = heads_per_kv_head();
    for_each_kv_head(
        std::max<Index>(heads, 1) * observed_rows * d * Index{sizeof(float)},
        [&](Index head, Scratch scratch) {
          std::unique_ptr<QueryStatistics> &statistics = statistics_[state_index(layer, head)];
          if (!statistics) statistics = std::make_unique<QueryStatistics>(d, options_.group);
          auto *rows = scratch.take<float>(heads * observed_rows * d);
          for (Index run = first; run < first + count; run += observed_rows) {
            const Index tokens = std::min(observed_rows, first + count - run);
            const Index exempt = std::clamp<Index>(options_.sinks - (position + run - first), 0, tokens);
            for (Index token = exempt; token < tokens; ++token) {
              copy_row(k.row(run + token, head), d, rows + (token - exempt) * d);
            }
            statistics->add_keys({rows, tokens - exempt, d});
            if (q.tokens == 0) continue;
            for (Index row = 0; row < tokens * heads; ++row) {
              copy_row(q.row(run + row / heads, head * heads + row % heads), d, rows + row * d);
            }
            statistics->add_queries({rows, tokens * heads, d});
          }
        });
  }

  /// Fixes the codings of a layer from its statistics, which are needed no
  /// longer.
  void learn(int layer) {
    for_each_kv_head(0, [&](Index head, Scratch) {
      std::unique_ptr<QueryStatistics> &statistics = statistics_[state_index(layer, head)];
      quantizers_[state_index(layer, head)].learn(*statistics);
      statistics.reset();
    });
  }

  /// Makes the scratch memory of pack() for `pages` pages at a time, so that
  /// pack() itself cannot fail.
  void reserve_pack(Index pages) { workspace_.reserve(pages * options_.kv_heads, pack_bytes()); }

  /// Packs consecutive groups of tokens into `pages`. Tokens come from the tail
  /// first, then from the rows of k and v from `first` on, rounded to T as the
  /// tail would have.
  template <Element S>
  void pack(int layer, std::span<const PageView> pages, ExactRows<T> tail, TensorView<const S> k,
            TensorView<const S> v, Index first) {
    const Index d = options_.head_dim, group = options_.group;
    const Index items = static_cast<Index>(pages.size()) * options_.kv_heads;
    workspace_.for_each(items, [&](Index item, Scratch scratch) {
      const Index page = item / options_.kv_heads, head = item % options_.kv_heads;
      std::byte *data = pages[static_cast<std::size_t>(page)].data;
      auto *rows = scratch.take<float>(group * d);
      const auto gather = [&](TensorView<const S> tensor, auto tail_row) {
        for (Index token = 0; token < group; ++token) {
          const Index source = page * group + token;
          float *row = rows + token * d;
          if (source < tail.tokens) {
            copy_row(tail_row(source), d, row);
          } else {
            copy_rounded(tensor.row(first + source - tail.tokens, head), row);
          }
        }
      };
      gather(k, [&](Index token) { return tail.key(head, token, d); });
      pack_keys<T>(layout_, quantizers_[state_index(layer, head)], rows, data, head, scratch);
      gather(v, [&](Index token) { return tail.value(head, token, d); });
      pack_values<T>(layout_, *options_.fit, rows, data, head, scratch);
    });
  }

  /// Attends for every job of a batch: to its context and, causally, to the
  /// rows of k and v that stand where its queries stand. k.tokens = 0: the
  /// queries' own keys are in the context.
  template <Element S>
  void attend(std::span<const SequenceJob<T>> jobs, TensorView<const S> q, TensorView<const S> k,
              TensorView<const S> v, TensorView<S> out) {
    const Index heads = heads_per_kv_head();
    const Index block = std::max<Index>(1, most_rows / heads);
    items_.clear();
    Index rows = 0;
    for (const SequenceJob<T> &job : jobs) {
      for (Index first = 0; first < job.tokens; first += block) {
        const Index tokens = std::min(block, job.tokens - first);
        rows = std::max(rows, tokens * heads);
        for (Index head = 0; head < options_.kv_heads; ++head)
          items_.push_back({&job, head, first, tokens});
      }
    }
    workspace_.reserve(static_cast<Index>(items_.size()), Head::scratch_bytes(layout_, rows));
    workspace_.for_each(static_cast<Index>(items_.size()), [&](Index index, Scratch scratch) {
      attend_item(items_[static_cast<std::size_t>(index)], q, k, v, out, scratch);
    });
  }

  /// Writes the cached keys and values of a sequence and layer, [tokens,
  /// kv_heads, head_dim].
  template <Element S>
  void dequantize(const Context<T> &context, TensorView<S> k, TensorView<S> v) {
    const Index d = options_.head_dim;
    for_each_kv_head(2 * layout_.group * d * Index{sizeof(float)}, [&](Index head, Scratch scratch) {
      Index position = 0;
      const auto copy_exact = [&](const ExactRows<T> &rows) {
        for (Index token = 0; token < rows.tokens; ++token, ++position) {
          write_row(rows.key(head, token, d), 1, k.row(position, head));
          write_row(rows.value(head, token, d), 1, v.row(position, head));
        }
      };
      copy_exact(context.sinks);
      for (const PageView &page : context.pages) {
        dequantize_page(page, head, k.slice(position, page.tokens), v.slice(position, page.tokens),
                        scratch);
        position += page.tokens;
      }
      copy_exact(context.tail);
    });
  }

  std::size_t statistics_bytes() const {
    std::size_t sum = 0;
    for (const auto &statistics : statistics_) {
      if (statistics) sum += QueryStatistics::bytes(options_.head_dim);
    }
    return sum;
  }

  std::size_t bases_bytes() const {
    std::size_t sum = 0;
    for (const KeyQuantizer &quantizer : quantizers_) sum += quantizer.bytes();
    return sum;
  }

  std::size_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  using Head = HeadAttention<T, KeyBits, ValueBits>;

  /// A block of tokens of one job and KV head.
  struct Item {
    const SequenceJob<T> *job;
    Index head;
    Index first;
    Index tokens;
  };

  static constexpr Index most_rows = 128;     // query rows of an item
  static constexpr Index observed_rows = 64;  // tokens observed at a time

  std::size_t heads_of_all_layers() const {
    return static_cast<std::size_t>(options_.layers) * static_cast<std::size_t>(options_.kv_heads);
  }
  std::size_t state_index(int layer, Index head) const {
    return static_cast<std::size_t>(layer * options_.kv_heads + head);
  }
  Index heads_per_kv_head() const { return options_.query_heads / options_.kv_heads; }

  std::size_t pack_bytes() const {
    return pack_scratch_bytes(layout_) + Scratch::bytes<float>(layout_.group * layout_.head_dim);
  }

  template <class Run>
  void for_each_kv_head(Index bytes, Run &&run) {
    workspace_.reserve(options_.kv_heads, static_cast<std::size_t>(bytes) + 128);
    workspace_.for_each(options_.kv_heads, run);
  }

  template <Element S>
  void copy_rounded(const S *from, float *to) const {
    copy_row(from, options_.head_dim, to);
    if constexpr (!std::is_same_v<S, T> && !std::is_same_v<T, float>) {
      std::transform(to, to + options_.head_dim, to,
                     [](float x) { return static_cast<float>(static_cast<T>(x)); });
    }
  }

  template <Element S>
  void attend_item(const Item &item, TensorView<const S> q, TensorView<const S> k, TensorView<const S> v,
                   TensorView<S> out, Scratch scratch) const {
    const SequenceJob<T> &job = *item.job;
    const Index heads = heads_per_kv_head(), d = options_.head_dim;
    Head attention(layout_, item.head, item.tokens * heads, scratch);
    attention.begin(q, job.first_row + item.first, item.tokens, heads, job.past + item.first,
                    options_.attention_scale);
    if (k.tokens > 0) {
      attention.exact(k.row(job.first_row, item.head), k.token_stride, v.row(job.first_row, item.head),
                      v.token_stride, job.past, job.tokens);
    }
    Index position = 0;
    const auto exact = [&](const ExactRows<T> &rows) {
      attention.exact(rows.key(item.head, 0, d), d, rows.value(item.head, 0, d), d, position,
                      rows.tokens);
      position += rows.tokens;
    };
    exact(job.context.sinks);
    for (const PageView &page : job.context.pages) {
      attention.page(page.data, position, page.tokens);
      position += page.tokens;
    }
    exact(job.context.tail);
    attention.finish(out, job.first_row + item.first, heads);
  }

  template <class From, Element S>
  void write_row(const From *from, Index stride, S *to) const {
    for (Index i = 0; i < options_.head_dim; ++i)
      to[i] = static_cast<S>(static_cast<float>(from[i * stride]));
  }

  template <Element S>
  void dequantize_page(const PageView &page, Index head, TensorView<S> k, TensorView<S> v,
                       Scratch scratch) const {
    const Index d = options_.head_dim, group = layout_.group;
    if constexpr (KeyBits == 16) {
      const auto *keys = layout_.template keys<Exact16<T>>(page.data, head);
      for (Index token = 0; token < page.tokens; ++token)
        write_row(keys + token * d, 1, k.row(token, head));
    } else {
      auto *keys = scratch.take<float>(group * d);
      unpack_keys(layout_, page.data, head, keys);
      for (Index token = 0; token < page.tokens; ++token)
        write_row(keys + token, group, k.row(token, head));
    }
    if constexpr (ValueBits == 16) {
      const auto *values = layout_.template values<Exact16<T>>(page.data, head);
      for (Index token = 0; token < page.tokens; ++token)
        write_row(values + token * d, 1, v.row(token, head));
    } else {
      auto *values = scratch.take<float>(group * d);
      unpack_values(layout_, page.data, head, values);
      for (Index token = 0; token < page.tokens; ++token) {
        float *value = values + token * d;
        if (layout_.value_coding == ValueCoding::symmetric) rotate_hadamard(value, d);
        write_row(value, 1, v.row(token, head));
      }
    }
  }

  Options options_;
  PageLayout<KeyBits, ValueBits> layout_;
  Workspace workspace_;
  std::vector<std::unique_ptr<QueryStatistics>> statistics_;  // [layers, kv_heads], while learning
  std::vector<KeyQuantizer> quantizers_;                      // [layers, kv_heads]
  std::vector<Item> items_;                                   // of the call in progress
};

}  // namespace squat::cpu::inline SQUAT_CPU_NAMESPACE

namespace squat {

inline namespace SQUAT_CPU_NAMESPACE {

/// The CPU backend. Its name holds the instruction set it is compiled for, so
/// that objects built with different flags do not share code.
struct Cpu {
  template <class T, int KeyBits, int ValueBits>
  using Operations = cpu::Operations<T, KeyBits, ValueBits>;
};

}  // namespace SQUAT_CPU_NAMESPACE

}  // namespace squat
