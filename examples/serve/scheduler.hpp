#pragma once

// Continuous batching: which requests run, and what a step of the model takes of each.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "budget.hpp"
#include "engine.hpp"
#include "figures.hpp"
#include "prefix_store.hpp"
#include "request.hpp"
#include "saved_sequences.hpp"
#include "task.hpp"
#include "tokenizer.hpp"

namespace engine::serve {

struct Limits {
  std::size_t bytes = std::size_t{64} << 20;  // of the cache
  std::size_t running = 32;                   // requests
  std::size_t chunk = 64;                     // tokens of a prompt in a step
  std::filesystem::path disk = std::filesystem::temp_directory_path();
};

/// Every step feeds the last token of each request that runs, and beside them the next chunk of one
/// prompt. A prompt begins as a fork of the sequence, running or kept, that begins most alike. Where
/// pages run out, kept sequences go first, those used least recently; then requests wait on disk, the
/// youngest first, and go on as if nothing had been. One thread calls it.
class Scheduler {
 public:
  Scheduler(Engine &engine, ModelCache &cache, const Tokenizer &tokenizer, const Limits &limits)
      : engine_(engine),
        cache_(cache),
        tokenizer_(tokenizer),
        limits_(limits),
        budget_(cache, limits.bytes, limits.chunk),
        prefixes_(cache),
        saved_(cache, limits.disk) {}
  /// Ends what runs.
  ~Scheduler() { cancel_all(); }

  /// Throws std::invalid_argument for a request that can never run.
  void submit(Request request, std::shared_ptr<Client> client, Clock::time_point arrival = Clock::now());
  void cancel_all();

  /// Whether there is nothing to do.
  bool idle() const { return waiting_.empty() && preempted_.empty() && running_.empty(); }
  void step();

  std::size_t waiting() const { return waiting_.size(); }
  std::size_t running() const { return running_.size(); }
  std::size_t preempted() const { return preempted_.size(); }
  std::size_t kept() const { return prefixes_.size(); }
  /// Tokens of completions so far, of requests that are not done too.
  std::size_t completion_tokens() const;
  /// That the cache takes now.
  std::size_t bytes() const;
  const Limits &limits() const { return limits_; }
  const Figures &figures() const { return figures_; }

 private:
  using Tasks = std::deque<std::unique_ptr<Task>>;

  void check(const Request &request) const;

  void drop_gone();
  void admit();
  bool start(Task &task);
  void begin(Task &task);
  bool resume(Task &task);
  /// The longest common beginning of a prompt with a sequence of the cache.
  Prefix find_prefix(const Task &task);

  /// Gives up kept sequences until so many bytes of pages more fit, and so many sequences beside those
  /// that run and are kept. Returns whether they do.
  bool make_room(std::size_t page_bytes, std::size_t more_sequences);
  std::size_t page_bytes_due() const;
  void preempt_youngest();
  void fit_step();

  void feed();
  void take_token(Task &task, const Eigen::RowVectorXf &logits);
  void end(Task &task, Finish finish);
  void end_and_keep(Task &task, Finish finish);
  void measure();

  Engine &engine_;
  ModelCache &cache_;
  const Tokenizer &tokenizer_;
  Limits limits_;
  Budget budget_;
  PrefixStore prefixes_;
  SavedSequences saved_;
  Tasks waiting_, preempted_, running_;  // the oldest in front
  std::uint64_t submitted_ = 0;
  Figures figures_;
};

}  // namespace engine::serve
