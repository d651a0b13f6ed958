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
/// - fail(n): the n-th allocation from now on fails, or, -n, the n-th call of Options::parallel; 0:
/// nothing does. Returns whether something has failed since
/// - settle(cache): throws what calls have left to be told
template <class Place, class T, int KeyBits, int ValueBits>
class CheckedCache {
 public:
  using Cache = typename Place::template Cache<T, KeyBits, ValueBits>;

  explicit CheckedCache(const Options &options)
      : cache_(options), model_(cache_.options(), KeyBits), checks_(cache_, model_) {}

 protected:
  /// Makes a call that is to be refused, or to succeed; then, where something is to fail, once more
  /// without that. Returns whether it succeeded. Where it throws, all is as it was.
  template <class Call>
  bool make(bool refused, Call &&call) {
    const int at = refused ? 0 : fails_at_;
    fails_at_ = 0;
    std::optional<Seen> before;
    if (refused || at != 0) before = seen();
    std::optional<std::string> error = error_of(call, at);
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
  int fails_at_ = 0;                 // what fails in the next call, see Place::fail()
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
  std::optional<std::string> error_of(Call &call, int at) {
    std::optional<std::string> error;
    Place::fail(at);
    try {
      call();
      Place::settle(cache_);
    } catch (const Error &thrown) {
      error = thrown.what();
    } catch (const std::exception &thrown) {
      Place::fail(0);
      throw Violation(std::string("no Error, but ") + thrown.what());
    }
    failed_ = Place::fail(0);
    return error;
  }

  bool failed_ = false;  // something did, as it was to
};

}  // namespace squat::test
