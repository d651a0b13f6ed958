#pragma once

// A serving pattern for as long as it is wanted: requests arrive, share prefixes, grow, are preempted
// and go on, in a cache that is always nearly full. Memory must stay where it is.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <ostream>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"

namespace squat::test {

/// What is measured from time to time.
struct SoakSample {
  double seconds = 0;
  double process_mib = 0;  ///< resident
  double device_mib = 0;   ///< in use on the device
  double cache_mib = 0;    ///< MemoryReport::total()
  std::size_t pages = 0, shared_pages = 0, running = 0, preempted = 0;
  std::size_t requests = 0, tokens = 0, preemptions = 0, evictions = 0;  ///< so far
};

/// Place: where the cache and its tensors are: Cache, Copy of a Tensor<float>, options(Options), settle(
/// cache), device_mib().
template <class Place>
class Soak {
 public:
  explicit Soak(std::filesystem::path folder)
      : cache_(Place::options(options())),
        folder_(std::move(folder)),
        rows_(cache_.options(), pool_rows, 1),
        q_(rows_.q),
        k_(rows_.k),
        v_(rows_.v),
        out_(rows_.out) {}

  /// Calls visit(sample) every `every` seconds, for `seconds`; throws where the cache is not as it must
  /// be.
  template <class Visit>
  void run(double seconds, double every, Visit &&visit) {
    begin_ = std::chrono::steady_clock::now();
    for (double next = 0; now() < seconds;) {
      tick();
      if (now() < next) continue;
      visit(sample());
      next += every;
    }
    visit(sample());
    finish();
  }

 private:
  static constexpr Index pool_rows = 2048, piece = 96;
  static constexpr std::size_t most_running = 24, most_prefixes = 6, kinds_of_prefixes = 12;

  static Options options() {
    Options options{.layers = 3, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
    options.page_tokens = 32;
    options.residual = 32;
    options.statistics_tokens = 256;
    options.max_pages = 400;
    options.rotary = {rotary_table(1e4, 64)};
    return options;
  }

  struct Prefix {
    std::size_t kind;
    SequenceId sequence;
    Index tokens;
    std::size_t used;  // the tick
  };
  struct Request {
    std::size_t number;
    SequenceId sequence;
    Index length, prompt, end;  // tokens that are there, of the prompt, and in all
  };

  // ---- serving

  void tick() {
    ++ticks_;
    if (running_.size() + waiting_.size() < most_running && below(3) == 0) arrive();
    resume();
    prefill();
    decode();
    Place::settle(cache_);
  }

  void arrive() {
    const std::size_t kind = std::min(below(kinds_of_prefixes), below(kinds_of_prefixes));  // some often
    const auto same = [&](const Prefix &prefix) { return prefix.kind == kind; };
    auto found = std::find_if(prefixes_.begin(), prefixes_.end(), same);
    if (found == prefixes_.end()) {
      if (prefixes_.size() >= most_prefixes) evict();
      Prefix prefix{kind, cache_.add_sequence(), 64 + 32 * static_cast<Index>(kind), ticks_};
      bool there = true;
      for (Index first = 0; first < prefix.tokens && there; first += piece)
        there = feed({{prefix.sequence, std::min(piece, prefix.tokens - first)}});
      if (!there) return cache_.remove_sequence(prefix.sequence);
      found = prefixes_.insert(prefixes_.end(), prefix);
    }
    found->used = ticks_;
    const Index prompt = found->tokens + 1 + static_cast<Index>(below(200));
    running_.push_back({requests_++, cache_.fork(found->sequence), found->tokens, prompt,
                        prompt + 1 + static_cast<Index>(below(150))});
  }

  /// One request's next piece of its prompt.
  void prefill() {
    const auto found = std::find_if(running_.begin(), running_.end(),
                                    [](const Request &each) { return each.length < each.prompt; });
    if (found == running_.end()) return;
    const SequenceId sequence = found->sequence;
    const Index count = std::min(piece, found->prompt - found->length);
    if (!feed({{sequence, count}})) return;
    for (Request &each : running_) each.length += each.sequence == sequence ? count : 0;
  }

  /// A token for all requests whose prompts are there.
  void decode() {
    std::vector<SequenceTokens> batch;
    for (const Request &each : running_) {
      if (each.length >= each.prompt) batch.push_back({each.sequence, 1});
    }
    if (batch.empty() || !feed(batch)) return;
    for (Request &each : running_) each.length += each.length >= each.prompt ? 1 : 0;
    for (const Request &each : running_) {
      if (cache_.length(each.sequence) != each.length)
        throw std::runtime_error("a request lost its tokens");
      if (each.length >= each.end) cache_.remove_sequence(each.sequence);
    }
    std::erase_if(running_, [](const Request &each) { return each.length >= each.end; });
  }

  /// Appends and attends in all layers. Makes room before, for which requests may have to leave the
  /// batch, the last first; returns whether any was left.
  bool feed(std::vector<SequenceTokens> batch) {
    while (cache_.free_pages() < pages_for(batch)) {
      const std::size_t free = cache_.free_pages();
      if (!evict() && !preempt()) return false;
      if (cache_.free_pages() < free) throw std::runtime_error("eviction took pages");
      std::erase_if(batch, [&](const SequenceTokens &entry) {
        return std::any_of(waiting_.begin(), waiting_.end(),
                           [&](const Request &each) { return each.sequence == entry.sequence; });
      });
    }
    if (batch.empty()) return false;
    const Index count = tokens_of(batch);
    const Index first = static_cast<Index>(below(static_cast<std::size_t>(pool_rows - count)));
    for (int layer = 0; layer < cache_.options().layers; ++layer) {
      cache_.attend(batch, layer, q_.view(first, count), k_.view(first, count), v_.view(first, count),
                    out_.view(first, count));
    }
    tokens_ += static_cast<std::size_t>(count);
    return true;
  }

  static Index tokens_of(const std::vector<SequenceTokens> &batch) {
    Index count = 0;
    for (const SequenceTokens &entry : batch) count += entry.tokens;
    return count;
  }
  /// That it may fill, and some to spare.
  std::size_t pages_for(const std::vector<SequenceTokens> &batch) const {
    const auto full = static_cast<std::size_t>(tokens_of(batch) / cache_.options().page_tokens);
    return static_cast<std::size_t>(cache_.options().layers) * (batch.size() + full + 9);
  }

  /// Removes the prefix that was used least lately. Its forks keep what they share.
  bool evict() {
    if (prefixes_.empty()) return false;
    const auto oldest =
        std::min_element(prefixes_.begin(), prefixes_.end(),
                         [](const Prefix &a, const Prefix &b) { return a.used < b.used; });
    cache_.remove_sequence(oldest->sequence);
    prefixes_.erase(oldest);
    ++evictions_;
    return true;
  }

  std::filesystem::path file_of(const Request &request) const {
    return folder_ / (std::to_string(request.number) + ".snapshot");
  }

  /// Saves the request that came last and removes it, but for one that is alone.
  bool preempt() {
    if (running_.size() < 2) return false;
    const Request victim = running_.back();
    std::ofstream out(file_of(victim), std::ios::binary);
    cache_.save(victim.sequence, out, {.codings = false});
    cache_.remove_sequence(victim.sequence);
    running_.pop_back();
    waiting_.push_back(victim);
    ++preemptions_;
    return true;
  }

  /// Loads the request that waits longest, where there is room for it.
  void resume() {
    if (waiting_.empty()) return;
    Request request = waiting_.front();
    const auto pages =
        static_cast<std::size_t>(cache_.options().layers * request.end / cache_.options().page_tokens);
    if (cache_.free_pages() < 2 * pages + 30) return;
    {
      std::ifstream in(file_of(request), std::ios::binary);
      request.sequence = cache_.load(in);
    }
    if (cache_.length(request.sequence) != request.length)
      throw std::runtime_error("a load lost tokens");
    std::filesystem::remove(file_of(request));
    waiting_.erase(waiting_.begin());
    running_.push_back(request);
  }

  /// Everybody leaves, and nothing is left.
  void finish() {
    for (const Request &each : running_) cache_.remove_sequence(each.sequence);
    for (const Request &each : waiting_) std::filesystem::remove(file_of(each));
    while (evict()) {
    }
    const MemoryReport left = cache_.memory_report();
    if (left.pages_used != 0 || left.exact != 0 || left.shared_pages != 0 ||
        cache_.free_pages() != cache_.options().max_pages)
      throw std::runtime_error("pages or rows are left of sequences that are gone");
  }

  // ---- measuring

  double now() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

  static double process_mib() {
    std::ifstream file("/proc/self/status");
    for (std::string word; file >> word;) {
      double kib = 0;
      if (word == "VmRSS:" && file >> kib) return kib / 1024;
    }
    return 0;
  }

  SoakSample sample() const {
    const MemoryReport report = cache_.memory_report();
    constexpr double mib = 1 << 20;
    return {.seconds = now(),
            .process_mib = process_mib(),
            .device_mib = Place::device_mib(),
            .cache_mib = static_cast<double>(report.total()) / mib,
            .pages = cache_.options().max_pages - cache_.free_pages(),
            .shared_pages = report.shared_pages,
            .running = running_.size(),
            .preempted = waiting_.size(),
            .requests = requests_,
            .tokens = tokens_,
            .preemptions = preemptions_,
            .evictions = evictions_};
  }

  std::size_t below(std::size_t count) { return random_() % count; }

  typename Place::Cache cache_;
  std::filesystem::path folder_;
  Inputs<> rows_;
  typename Place::Copy q_, k_, v_, out_;
  std::mt19937 random_{1};
  std::vector<Prefix> prefixes_;
  std::vector<Request> running_, waiting_;
  std::chrono::steady_clock::time_point begin_;
  std::size_t ticks_ = 0, requests_ = 0, tokens_ = 0, preemptions_ = 0, evictions_ = 0;
};

/// The most of a figure in some part of a run.
template <class Figure>
double most(const std::vector<SoakSample> &samples, double first, double last,
            Figure SoakSample::*figure) {
  double most = 0;
  for (const SoakSample &sample : samples) {
    const double part = sample.seconds / samples.back().seconds;
    if (part >= first && part <= last) most = std::max(most, static_cast<double>(sample.*figure));
  }
  return most;
}

/// Runs for so long, and writes samples as CSV to the file named, if one is. Returns whether memory,
/// once all is warm, stayed where it was and everything that was to happen did, to the end.
template <class Place>
bool soak(double seconds, double every, const std::string &csv) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("squat_soak_" + std::to_string(std::random_device()()));
  std::filesystem::create_directories(folder);
  std::ofstream file;
  if (!csv.empty()) file.open(csv);
  file
      << "seconds,process_mib,device_mib,cache_mib,pages,shared_pages,running,preempted,requests,tokens,"
         "preemptions,evictions\n";
  std::vector<SoakSample> samples;
  bool fine = true;
  try {
    Soak<Place>(folder).run(seconds, every, [&](const SoakSample &s) {
      samples.push_back(s);
      file << s.seconds << ',' << s.process_mib << ',' << s.device_mib << ',' << s.cache_mib << ','
           << s.pages << ',' << s.shared_pages << ',' << s.running << ',' << s.preempted << ','
           << s.requests << ',' << s.tokens << ',' << s.preemptions << ',' << s.evictions << std::endl;
    });
  } catch (const std::exception &wrong) {
    std::printf("after %zu samples: %s\n", samples.size(), wrong.what());
    fine = false;
  }
  std::filesystem::remove_all(folder);
  const SoakSample &last = samples.back();
  std::printf("%.0f s: %zu requests, %zu tokens, %zu evictions, %zu preemptions\n", last.seconds,
              last.requests, last.tokens, last.evictions, last.preemptions);
  const auto flat = [&](const char *name, double SoakSample::*figure) {
    constexpr double warm = .4, later = .7, growth = 1.02, mib = 4;
    const double before = most(samples, warm, later, figure), after = most(samples, later, 1, figure);
    std::printf("%s: %.1f MiB, then %.1f\n", name, before, after);
    return after <= growth * before + mib;
  };
  fine &= flat("process", &SoakSample::process_mib);
  fine &= flat("device", &SoakSample::device_mib);
  fine &= flat("cache", &SoakSample::cache_mib);
  const double before_the_end = most(samples, 0, .9, &SoakSample::tokens);
  return fine && static_cast<double>(last.tokens) > before_the_end && last.evictions > 0 &&
         last.preemptions > 0 && most(samples, 0, 1, &SoakSample::shared_pages) > 0;
}

}  // namespace squat::test
