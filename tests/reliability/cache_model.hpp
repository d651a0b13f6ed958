#pragma once

// The simple cache that random operations hold the real one to: for every sequence and layer the rows
// that were handed over, in double precision, and where the rules put them: sinks, pages, tail.

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "learning_model.hpp"
#include "reference/reference_attention.hpp"

namespace squat::test {

/// What is known of the row that a cache holds for a token.
enum class Held {
  same,    ///< it is the row that was read last, bit by bit
  turned,  ///< that row, turned
  exact,   ///< the row that was handed over, as exact rows and tails keep it
  packed   ///< the same, as pages keep it
};

struct TokenModel {
  std::vector<double> k, v;  ///< handed over, and turned since
  std::vector<float> held_k, held_v;
  Held held = Held::exact;
};

/// An entry of a page table. Pages are what they are, whoever holds them.
struct PageModel {
  std::shared_ptr<int> page;
  Index tokens = 0;  ///< that count
};

struct LayerModel {
  CodingHandle coding;
  std::vector<TokenModel> tokens;
  std::vector<PageModel> pages;
  Index sinks = 0;
  Index next_position = 0;

  Index length() const { return static_cast<Index>(tokens.size()); }
  Index paged() const {
    Index sum = 0;
    for (const PageModel &page : pages) sum += page.tokens;
    return sum;
  }
  Index tail() const { return length() - sinks - paged(); }

  void truncate(Index kept) {
    next_position -= length() - kept;
    Index left = kept - std::min(kept, sinks);
    sinks = std::min(kept, sinks);
    std::size_t page = 0;
    for (; page < pages.size() && left > 0; ++page)
      left -= pages[page].tokens = std::min(pages[page].tokens, left);
    pages.resize(page);
    tokens.resize(static_cast<std::size_t>(kept));
  }

  /// Drops the tokens [first, last); what follows is turned, see turn().
  template <class Turn>
  void shift(Index first, Index last, Index by, Turn &&turn) {
    std::vector<PageModel> kept;
    Index begin = sinks;
    for (const PageModel &page : pages) {
      const Index end = begin + page.tokens;
      for (const Index left :
           {std::clamp(first, begin, end) - begin, end - std::clamp(last, begin, end)}) {
        if (left > 0) kept.push_back({page.page, left});
      }
      begin = end;
    }
    pages = std::move(kept);
    const auto of_sinks = [&](Index at) { return std::min(at, sinks); };
    sinks -= of_sinks(last) - of_sinks(first);
    tokens.erase(tokens.begin() + first, tokens.begin() + last);
    next_position += by;
    for (Index at = first; at < length() && by != 0; ++at) turn(tokens[static_cast<std::size_t>(at)]);
  }
};

struct SequenceModel {
  SequenceId id;
  std::vector<LayerModel> layers;

  Index length() const {
    Index least = layers.front().length();
    for (const LayerModel &layer : layers) least = std::min(least, layer.length());
    return least;
  }
};

class CacheModel {
 public:
  /// options: in force.
  CacheModel(const Options &options, int key_bits) : learning(options, key_bits), options_(options) {}

  LearningModel learning;
  std::vector<SequenceModel> sequences;

  std::vector<LayerModel> new_layers() {
    std::vector<LayerModel> layers(static_cast<std::size_t>(options_.layers));
    for (int layer = 0; layer < options_.layers; ++layer)
      layers[static_cast<std::size_t>(layer)].coding = learning.coding_for(layer);
    return layers;
  }

  /// Tokens of one sequence in a call.
  struct Share {
    SequenceModel *sequence;
    Index tokens;
    bool learn;
    bool queries;
    std::uint64_t name;
  };

  /// What a call that appends does to a sequence.
  struct Outcome {
    CodingHandle coding;  // null: the layer's own that has learnt nothing
    Index sinks = 0;
    Index pages = 0;
  };
  std::vector<Outcome> plan(std::span<const Share> shares, int layer) const {
    std::vector<Outcome> outcomes;
    for (const Share &share : shares) {
      const LayerModel &state = share.sequence->layers[static_cast<std::size_t>(layer)];
      Index more = 0;
      for (const Share &other : shares) {
        const CodingHandle &coding = other.sequence->layers[static_cast<std::size_t>(layer)].coding;
        if (other.learn && coding == state.coding && learning.observes(*coding)) more += other.tokens;
      }
      Outcome &outcome = outcomes.emplace_back(Outcome{state.coding, 0, 0});
      if (share.tokens == 0) continue;
      bool learnt = learning.learnt(*state.coding, more);
      if (!learnt && learning.waited(state.length() + share.tokens, share.tokens)) {
        learnt = true;
        outcome.coding = nullptr;
      }
      if (state.pages.empty() && state.tail() == 0)
        outcome.sinks = std::min<Index>(share.tokens, options_.sinks - state.sinks);
      Index tail = state.tail() + share.tokens - outcome.sinks;
      for (; learnt && tail - options_.page_tokens >= options_.residual; tail -= options_.page_tokens)
        ++outcome.pages;
    }
    return outcomes;
  }

  /// Appends rows, of each share its own, as planned.
  void append(std::span<const Share> shares, int layer, const std::vector<Outcome> &outcomes,
              std::span<std::vector<TokenModel>> rows) {
    std::vector<CodingHandle> teaches;
    for (const Share &share : shares)
      teaches.push_back(share.sequence->layers[static_cast<std::size_t>(layer)].coding);
    for (std::size_t i = 0; i < shares.size(); ++i) {
      LayerModel &state = shares[i].sequence->layers[static_cast<std::size_t>(layer)];
      if (!outcomes[i].coding) {
        state.coding = learning.without_learning(layer);
      } else if (shares[i].learn) {
        const bool of_keys = state.length() + shares[i].tokens > options_.sinks;
        learning.observe(*teaches[i], shares[i].tokens,
                         of_keys || shares[i].queries ? shares[i].name : 0);
      }
      Index at = state.sinks + state.paged() + outcomes[i].sinks;
      state.sinks += outcomes[i].sinks;
      for (TokenModel &row : rows[i]) state.tokens.push_back(std::move(row));
      state.next_position += shares[i].tokens;
      for (Index page = 0; page < outcomes[i].pages; ++page) {
        state.pages.push_back({std::make_shared<int>(), options_.page_tokens});
        for (Index token = 0; token < options_.page_tokens; ++token, ++at)
          state.tokens[static_cast<std::size_t>(at)].held = Held::packed;
      }
    }
  }

  /// Turns a token's keys by some positions.
  void turn(TokenModel &token, int layer, Index by) const {
    const RotaryTable &table =
        options_.rotary[options_.rotary.size() == 1 ? 0 : static_cast<std::size_t>(layer)];
    const auto turn_row = [&](auto *row) {
      for (Index pair = 0; pair < table.pair_count(); ++pair) {
        const auto [a, b] = table.channels(pair);
        const double frequency =
            static_cast<double>(table.inverse_frequencies[static_cast<std::size_t>(pair)]);
        const double angle = static_cast<double>(by) * frequency;
        const double c = std::cos(angle), s = std::sin(angle);
        const auto x = static_cast<double>(row[a]), y = static_cast<double>(row[b]);
        using Scalar = std::remove_reference_t<decltype(*row)>;
        row[a] = static_cast<Scalar>(x * c - y * s);
        row[b] = static_cast<Scalar>(x * s + y * c);
      }
    };
    for (Index head = 0; head < options_.kv_heads; ++head) {
      turn_row(token.k.data() + head * options_.head_dim);
      turn_row(token.held_k.data() + head * options_.head_dim);
    }
    token.held = Held::turned;
  }

  // ---- pages of all sequences

  struct Pages {
    std::size_t used = 0, shared = 0, held = 0;
  };
  Pages pages() const {
    Pages pages;
    std::map<const int *, std::size_t> holders;
    for (const SequenceModel &sequence : sequences) {
      for (const int *page : pages_of(sequence)) ++holders[page], ++pages.held;
    }
    pages.used = holders.size();
    for (const auto &[page, count] : holders) pages.shared += count > 1;
    return pages;
  }
  static std::set<const int *> pages_of(const SequenceModel &sequence) {
    std::set<const int *> pages;
    for (const LayerModel &layer : sequence.layers) {
      for (const PageModel &page : layer.pages) pages.insert(page.page.get());
    }
    return pages;
  }
  bool has_packed(const CodingHandle &coding) const {
    return std::any_of(sequences.begin(), sequences.end(), [&](const SequenceModel &sequence) {
      const LayerModel &layer = sequence.layers[static_cast<std::size_t>(coding->layer)];
      return layer.coding == coding && !layer.pages.empty();
    });
  }

 private:
  const Options &options_;
};

}  // namespace squat::test
