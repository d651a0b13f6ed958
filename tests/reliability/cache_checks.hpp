#pragma once

// A cache against its model: what it says of itself, and the rows and the attention that it gives.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cache_model.hpp"
#include "reference/saved.hpp"
#include "reference/snapshot_sections.hpp"

namespace squat::test {

/// What a cache promised and did not keep.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws Violation with a text of all that is given, unless it holds.
template <class... Part>
void require(bool holds, const Part &...parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw Violation(text.str());
}

/// The relative distance of two rows.
template <class A, class B>
double distance(const A *a, const B *b, Index count) {
  double difference = 0, norm = 0;
  for (Index i = 0; i < count; ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return norm > 0 ? std::sqrt(difference / norm) : difference > 0 ? 1e9 : 0;
}

/// Place: where tensors are, see random_run.hpp.
template <class Place, class T, int KeyBits, int ValueBits>
class CacheChecks {
 public:
  using Cache = typename Place::template Cache<T, KeyBits, ValueBits>;

  CacheChecks(Cache &cache, CacheModel &model) : cache_(cache), model_(model) {}

  /// Its counts, its coding, its rows. What is read is what is held from now on.
  void check(SequenceModel &sequence) {
    check_snapshot(sequence);
    for (std::size_t layer = 0; layer < sequence.layers.size(); ++layer)
      check_rows(sequence.id, static_cast<int>(layer), sequence.layers[layer]);
  }

  /// What the cache says of all sequences.
  void check_report() {
    const MemoryReport report = cache_.memory_report();
    Index packed = 0, exact = 0;
    for (const SequenceModel &sequence : model_.sequences) {
      require(cache_.length(sequence.id) == sequence.length(), "length ", cache_.length(sequence.id),
              ", not ", sequence.length());
      for (const LayerModel &layer : sequence.layers) {
        packed += layer.paged();
        exact += layer.length() - layer.paged();
      }
    }
    const CacheModel::Pages pages = model_.pages();
    require(report.packed_tokens == packed, "packed_tokens ", report.packed_tokens, ", not ", packed);
    require(report.exact_tokens == exact, "exact_tokens ", report.exact_tokens, ", not ", exact);
    require(report.shared_pages == pages.shared, "shared_pages ", report.shared_pages, ", not ",
            pages.shared);
    require(cache_.free_pages() == cache_.options().max_pages - pages.used ||
                cache_.options().max_pages > 1000,
            "free_pages ", cache_.free_pages(), " of ", cache_.options().max_pages, ", used are ",
            pages.used);
    for (const SequenceModel &sequence : model_.sequences) {
      std::set<const int *> alone = CacheModel::pages_of(sequence);
      for (const SequenceModel &other : model_.sequences) {
        if (&other == &sequence) continue;
        for (const int *page : CacheModel::pages_of(other)) alone.erase(page);
      }
      const FreedPages freed = cache_.freed_if_removed(sequence.id);
      require(freed.pages == alone.size(), "freed_if_removed ", freed.pages, ", not ", alone.size());
    }
    if (model_.learning.together()) return;  // pages of several sizes
    const std::size_t bytes = cache_.page_bytes(0);
    require(report.pages_used == pages.used * bytes, "pages_used ", report.pages_used, ", not ",
            pages.used, " pages of ", bytes);
    require(report.saved_by_sharing == (pages.held - pages.used) * bytes, "saved_by_sharing ",
            report.saved_by_sharing, ", not ", pages.held - pages.used, " pages of ", bytes);
  }

  /// Attention of a few of a sequence's queries, which stand behind `past` tokens. exact: rows that the
  /// call brought, which are seen as they came.
  void check_attention(const LayerModel &before, const std::vector<TokenModel> &own, Index past,
                       TensorView<const float> q, TensorView<const float> out) const {
    const Options &options = cache_.options();
    const auto rows = static_cast<std::size_t>(options.kv_heads * options.head_dim);
    const auto tokens = static_cast<Index>(before.tokens.size() + own.size());
    Tensor<float> k(tokens, options.kv_heads, options.head_dim), v = k, exact_k = k, exact_v = v;
    std::size_t at = 0;
    const auto add = [&](const TokenModel &token, bool held) {
      for (std::size_t i = 0; i < rows; ++i, ++at) {
        exact_k.elements[at] = static_cast<float>(token.k[i]);
        exact_v.elements[at] = static_cast<float>(token.v[i]);
        k.elements[at] = held ? token.held_k[i] : exact_k.elements[at];
        v.elements[at] = held ? token.held_v[i] : exact_v.elements[at];
      }
    };
    for (const TokenModel &token : before.tokens) add(token, true);
    for (const TokenModel &token : own) add(token, false);
    for (const Index first : {Index{0}, std::max<Index>(0, q.tokens - 3)}) {
      const Index count = std::min<Index>(3, q.tokens - first);
      const auto distance_from = [&](Tensor<float> &keys, Tensor<float> &values) {
        return attention_distance<float>(q.slice(first, count), std::as_const(keys).view(),
                                         std::as_const(values).view(), out.slice(first, count),
                                         past + first);
      };
      const double from_held = distance_from(k, v);
      // Of three queries of a small head, chance makes more than of many.
      const double most = 2.5 * Place::tolerance(std::min(KeyBits, ValueBits));
      require(from_held <= most, "attention is ", from_held, " from that over the rows held, more than ",
              most);
      if (KeyBits < 16 || ValueBits < 16) continue;
      const double from_exact = distance_from(exact_k, exact_v);
      require(from_exact <= 2 * most, "attention is ", from_exact, " from the exact one");
    }
  }

 private:
  /// What rounding to T changes at most, twice.
  static constexpr double of_elements = std::is_same_v<T, float>  ? 1e-6
                                        : std::is_same_v<T, half> ? 1e-3
                                                                  : 8e-3;

  void check_snapshot(const SequenceModel &sequence) {
    const Bytes bytes = saved(cache_, sequence.id);
    std::size_t counted = 0, coded = 0;
    for_each_section(
        bytes, [&](const detail::SectionHeader &header, std::span<const std::byte> payload) {
          const LayerModel &layer = sequence.layers[header.layer];
          if (header.section == detail::Section::counts) {
            detail::LayerCounts counts{};
            std::memcpy(&counts, payload.data(), std::min(sizeof counts, payload.size()));
            const std::array found = {static_cast<Index>(counts.sinks), static_cast<Index>(counts.tail),
                                      static_cast<Index>(counts.pages),
                                      static_cast<Index>(counts.next_position)};
            const std::array expected = {layer.sinks, layer.tail(),
                                         static_cast<Index>(layer.pages.size()), layer.next_position};
            constexpr const char *names[] = {"sinks", "tail", "pages", "next_position"};
            for (std::size_t i = 0; i < found.size(); ++i)
              require(found[i] == expected[i], "layer ", header.layer, ": ", names[i], " ", found[i],
                      ", not ", expected[i]);
            ++counted;
          }
          if (header.section == detail::Section::coding) {
            detail::CodingHeader coding;
            std::memcpy(&coding, payload.data(), sizeof coding);
            check_coding(layer, coding);
            ++coded;
          }
        });
    require(counted == sequence.layers.size() && coded == counted, "sections are missing");
  }

  /// Codings that have seen the same are the same, and no others.
  void check_coding(const LayerModel &layer, const detail::CodingHeader &found) {
    const CodingModel &coding = *layer.coding;
    const bool learnt = model_.learning.learnt(coding);
    require((found.ready == 1) == learnt, "layer ", coding.layer, ": coding is ",
            found.ready == 1 ? "learnt" : "not learnt");
    const auto observed = static_cast<Index>(found.observed);
    require(learnt || observed == coding.observed, "layer ", coding.layer, ": coding has observed ",
            observed, " tokens, not ", coding.observed);
    if (model_.learning.together()) return;  // what one learns changes all
    const std::uint64_t seen = 2 * coding.content + found.ready;
    const auto [named, first] = fingerprints_.try_emplace({coding.layer, seen}, found.fingerprint);
    require(named->second == found.fingerprint, "layer ", coding.layer,
            ": the coding has changed, and nothing was learnt");
    const auto [content, alone] = contents_.try_emplace({coding.layer, found.fingerprint}, seen);
    require(content->second == seen, "layer ", coding.layer,
            ": the coding is the same, and other tokens were learnt");
  }

  void check_rows(SequenceId id, int layer, LayerModel &state) {
    const Options &options = cache_.options();
    const Index d = options.head_dim;
    Tensor<float> k(state.length(), options.kv_heads, d), v = k;
    Place::dequantize(cache_, id, layer, k, v);
    std::array<double, 2> difference{}, norm{};  // of the page's rows so far, keys and values
    Index packed = 0;
    const double rounding = std::max(Place::turned, of_elements);
    for (Index at = 0; at < state.length(); ++at) {
      TokenModel &token = state.tokens[static_cast<std::size_t>(at)];
      const bool of_tail = at >= state.sinks + state.paged(), of_sinks = at < state.sinks;
      const bool of_page = !of_tail && !of_sinks, bytes = of_tail && options.tail == TailCoding::int8;
      for (const bool keys : {true, false}) {
        const float *row = (keys ? k : v).view().row(at, 0);
        const std::vector<double> &exact = keys ? token.k : token.v;
        std::vector<float> &held = keys ? token.held_k : token.held_v;
        const auto where = [&] {
          return std::string(of_sinks  ? "sink"
                             : of_tail ? "tail's"
                                       : "page's") +
                 (keys ? " key " : " value ") + std::to_string(at) + " of layer " +
                 std::to_string(layer);
        };
        const auto elements = static_cast<Index>(exact.size());
        if (token.held == Held::same) {
          require(std::equal(held.begin(), held.end(), row), where(), " has changed by ",
                  distance(row, held.data(), elements));
        } else if (token.held == Held::turned) {
          require(distance(row, held.data(), elements) <= (bytes     ? .03
                                                           : of_page ? Place::turned
                                                                     : rounding),
                  where(), " was turned, and is ", distance(row, held.data(), elements), " off");
        } else if (token.held == Held::exact) {
          require(distance(row, exact.data(), elements) <= (bytes ? .02 : 1e-6), where(), " is ",
                  distance(row, exact.data(), elements), " off");
        } else {
          const std::size_t i = keys ? 0 : 1;
          for (Index c = 0; c < elements; ++c) {
            const auto x = exact[static_cast<std::size_t>(c)];
            difference[i] += std::pow(static_cast<double>(row[c]) - x, 2);
            norm[i] += x * x;
          }
        }
        std::copy_n(row, elements, held.begin());
      }
      if (token.held == Held::packed && ++packed % options.page_tokens == 0) {
        for (const bool keys : {true, false}) {
          const std::size_t i = keys ? 0 : 1;
          const double off = std::sqrt(difference[i] / norm[i]);
          require(off <= packed_error(keys ? KeyBits : ValueBits), "a page's ", keys ? "keys" : "values",
                  " are ", off, " off in layer ", layer);
          difference[i] = norm[i] = 0;
        }
      }
      token.held = Held::same;
    }
  }

  /// Relative errors that no page of text passes; of rows of another token they are some 1.4. Where bits
  /// are shared, keys or values of some head may have the fewest.
  double packed_error(int width) const {
    const bool shared = width <= 4 && *cache_.options().allocation != Allocation::head;
    return width == 2 || shared ? .95 : width == 3 ? .8 : width == 4 ? .7 : width == 8 ? .1 : 2e-3;
  }

  Cache &cache_;
  CacheModel &model_;
  std::map<std::pair<int, std::uint64_t>, std::uint64_t> fingerprints_, contents_;
};

}  // namespace squat::test
