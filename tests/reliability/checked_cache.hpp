#pragma once

// A cache beside its model: calls succeed where they are to, and leave everything as it was where they
// throw.

#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache_checks.hpp"
#include "cache_model.hpp"

namespace squat::test {

/// Place says where a cache and its tensors are:
/// - Cache<T, KeyBits, ValueBits>; Copy, made of a Tensor<float>: view() for calls, read() as it is then
/// - dequantize(cache, sequence, layer, k, v), into tensors on the host
/// - tolerance(bits): how far attention may be from that over the rows held; turned: how far rows may
/// be from where they were turned to
/// - fails_at(): the countdown to the allocation that fails, 0 where none does
/// - settle(cache): throws what calls have left to be told
template <class Place, class T, int KeyBits, int ValueBits>
class CheckedCache {
 public:
  using Cache = typename Place::template Cache<T, KeyBits, ValueBits>;

  explicit CheckedCache(const Options &options)
      : cache_(options), model_(cache_.options(), KeyBits), checks_(cache_, model_) {}

 protected:
  /// Makes a call that is to be refused, or to succeed; then, where an allocation is to fail, once more
  /// without that. Returns whether it succeeded. Where it throws, all is as it was.
  template <class Call>
  bool make(bool refused, Call &&call) {
    std::size_t countdown = std::exchange(fails_at_, 0);
    if (refused) countdown = 0;
    std::optional<Seen> before;
    if (refused || countdown > 0) before = seen();
    std::optional<std::string> error = error_of(call, countdown);
    if (error && failed_) {
      expect_as_before(*before, *error);
      error = error_of(call, 0);
    }
    require(error.has_value() == refused, error ? *error : "a call was not refused");
    if (error) expect_as_before(*before, *error);
    return !error;
  }

  void check_touched() {
    for (SequenceModel &sequence : model_.sequences) {
      if (std::find(touched_.begin(), touched_.end(), sequence.id) != touched_.end())
        checks_.check(sequence);
    }
    checks_.check_report();
  }
  void check_all() {
    for (SequenceModel &sequence : model_.sequences) checks_.check(sequence);
    checks_.check_report();
  }

  Cache cache_;
  CacheModel model_;
  CacheChecks<Place, T, KeyBits, ValueBits> checks_;
  std::size_t fails_at_ = 0;         // the allocation of the next call that fails, 0: none
  std::vector<SequenceId> touched_;  // by the operation in progress

 private:
  /// What can be seen of a cache.
  struct Seen {
    std::vector<Bytes> sequences;
    std::array<std::size_t, 5> counts{};
    bool operator==(const Seen &) const = default;
  };
  Seen seen() {
    Seen seen;
    for (const SequenceModel &sequence : model_.sequences)
      seen.sequences.push_back(saved(cache_, sequence.id));
    const MemoryReport report = cache_.memory_report();
    seen.counts = {report.pages_used, report.shared_pages, cache_.free_pages(),
                   static_cast<std::size_t>(report.packed_tokens),
                   static_cast<std::size_t>(report.exact_tokens)};
    return seen;
  }

  void expect_as_before(const Seen &before, const std::string &error) {
    const Seen now = seen();
    for (std::size_t i = 0; i < before.sequences.size(); ++i)
      require(now.sequences[i] == before.sequences[i], "sequence ", i,
              " has changed in a call that threw: ", error);
    require(now.counts == before.counts, "pages or tokens have changed in a call that threw: ", error);
  }

  /// What a call throws, nothing where it succeeds.
  template <class Call>
  std::optional<std::string> error_of(Call &call, std::size_t countdown) {
    std::optional<std::string> error;
    Place::fails_at() = countdown;
    try {
      call();
      Place::settle(cache_);
    } catch (const Error &thrown) {
      error = thrown.what();
    } catch (const std::exception &thrown) {
      Place::fails_at() = 0;
      throw Violation(std::string("no Error, but ") + thrown.what());
    }
    failed_ = countdown > 0 && Place::fails_at() == 0;
    Place::fails_at() = 0;
    return error;
  }

  bool failed_ = false;  // an allocation did
};

}  // namespace squat::test
