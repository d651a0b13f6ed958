#pragma once

// What the codings of a cache have seen, by the rules that squat/cache/options.hpp states: the model
// that random operations hold a cache to. All tokens are of text.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "squat/squat.hpp"

namespace squat::test {

struct CodingModel {
  int layer = 0;
  bool learns = false;        ///< or has learnt; not where it is fixed, nothing learnt
  Index observed = 0;         ///< up to what it takes to learn
  std::uint64_t content = 0;  ///< codings of a layer that hold the same have the same
};
using CodingHandle = std::shared_ptr<CodingModel>;

class LearningModel {
 public:
  static constexpr std::uint64_t untouched = 0, nothing = 1, of_prior = 2, of_sinks = 3;

  /// options: in force.
  LearningModel(const Options &options, int key_bits) : options_(options) {
    const Index first_page = options.sinks + options.residual + options.page_tokens;
    if (key_bits < 16 && *options.coding != Coding::plain)
      takes_ = options.prior ? first_page : std::max<Index>(options.statistics_tokens, first_page);
    together_ = takes_ > 0 && *options.allocation == Allocation::model;
    begins_learnt_ =
        takes_ > 0 && options.prior && (frozen() || (together_ && options.prior->knows_attention()));
    without_.resize(static_cast<std::size_t>(options.layers));
    for (int layer = 0; layer < options.layers && !per_sequence(); ++layer) own_.push_back(add(layer));
  }

  bool per_sequence() const { return options_.learning == LearningMode::per_sequence; }
  bool frozen() const { return options_.learning == LearningMode::frozen; }
  bool learns_at_all() const { return takes_ > 0; }
  bool together() const { return together_; }
  Index takes() const { return takes_; }

  /// The coding of a layer that new sequences get.
  CodingHandle &own(int layer) { return own_[static_cast<std::size_t>(layer)]; }
  CodingHandle coding_for(int layer) { return per_sequence() ? add(layer) : own(layer); }

  CodingHandle add(int layer) {
    auto coding = std::make_shared<CodingModel>();
    coding->layer = layer;
    begin(*coding);
    codings_.push_back(coding);
    return coding;
  }

  /// The one that has learnt nothing, which the cache keeps once it is there.
  CodingHandle without_learning(int layer) {
    CodingHandle &coding = without_[static_cast<std::size_t>(layer)];
    if (coding) return coding;
    coding = add(layer);
    *coding = {.layer = layer, .content = nothing};
    return coding;
  }

  /// Whether pages can be packed once `more` tokens are observed.
  bool learnt(const CodingModel &coding, Index more = 0) const {
    if (!coding.learns) return true;
    if (!together_) return coding.observed + more >= takes_;
    bool all = true;
    for_each([&](const CodingHandle &each) { all &= !each->learns || each->observed >= takes_; });
    return all;
  }

  /// Whether a sequence of `length` tokens, `count` of them of this call, has waited long enough.
  bool waited(Index length, Index count) const { return length - (together_ ? count : 0) >= 2 * takes_; }

  bool observes(const CodingModel &coding) const {
    return !frozen() && coding.learns && coding.observed < takes_;
  }

  /// name: tells these tokens from all others; 0 where they say nothing, being sinks without queries.
  void observe(CodingModel &coding, Index count, std::uint64_t name) const {
    if (!observes(coding) || count == 0) return;
    count = std::min(count, takes_ - coding.observed);
    coding.observed += count;
    if (name == 0 && coding.content == untouched) coding.content = of_sinks;
    if (name == 0) return;
    coding.content = (coding.content * 1000003 + name) * 1000003 + static_cast<std::uint64_t>(count) + 3;
  }

  /// How many codings of a layer learn or have learnt.
  int held(int layer) const {
    int count = 0;
    for_each([&](const CodingHandle &each) { count += each->layer == layer && each->learns; });
    return count;
  }

  /// One of a layer that can pack and holds the same, but `except`; null if there is none.
  CodingHandle same(const CodingModel &found, const CodingHandle &except) const {
    CodingHandle same;
    for_each([&](const CodingHandle &each) {
      if (each != except && each->layer == found.layer && learnt(*each) &&
          each->content == found.content)
        same = each;
    });
    return same;
  }

  void forget(CodingModel &coding) const { begin(coding); }

 private:
  void begin(CodingModel &coding) const {
    coding.learns = takes_ > 0;
    coding.observed = begins_learnt_ && !per_sequence() ? takes_ : 0;
    coding.content = coding.observed > 0 ? of_prior : untouched;
  }

  template <class Visit>
  void for_each(Visit &&visit) const {
    for (const std::weak_ptr<CodingModel> &weak : codings_) {
      if (const CodingHandle coding = weak.lock()) visit(coding);
    }
  }

  const Options &options_;
  Index takes_ = 0;
  bool together_ = false, begins_learnt_ = false;
  std::vector<std::weak_ptr<CodingModel>> codings_;
  std::vector<CodingHandle> own_, without_;
};

}  // namespace squat::test
