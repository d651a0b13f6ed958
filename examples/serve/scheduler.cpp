#include "scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "sample.hpp"

namespace engine::serve {

void Scheduler::check(const Request &request) const {
  const auto most = static_cast<std::size_t>(engine_.config().context);
  const std::size_t tokens = request.prompt.size() + static_cast<std::size_t>(request.max_tokens);
  if (request.prompt.empty()) throw std::invalid_argument("the prompt is empty");
  if (tokens > most) {
    throw std::invalid_argument(
        fmt::format("prompt and max_tokens are {} + {}, the model's context is {}",
                    request.prompt.size(), request.max_tokens, most));
  }
  const std::size_t bytes = budget_.bytes_of(tokens);
  if (bytes > budget_.bytes()) {
    throw std::invalid_argument(fmt::format("{} tokens take {} bytes of the cache, which may have {}",
                                            tokens, bytes, budget_.bytes()));
  }
}

void Scheduler::submit(Request request, std::shared_ptr<Client> client, Clock::time_point arrival) {
  check(request);
  waiting_.push_back(std::make_unique<Task>(submitted_++, std::move(request), std::move(client)));
  waiting_.back()->arrival = arrival;
}

void Scheduler::cancel_all() {
  for (auto &task : running_) {
    cache_.remove_sequence(task->sequence);
    end(*task, Finish::cancelled);
  }
  for (auto &task : preempted_) {
    saved_.drop(task->number);
    end(*task, Finish::cancelled);
  }
  for (auto &task : waiting_) end(*task, Finish::cancelled);
  running_.clear();
  preempted_.clear();
  waiting_.clear();
}

void Scheduler::step() {
  const Clock::time_point begin = Clock::now();
  drop_gone();
  admit();
  fit_step();
  if (!running_.empty()) feed();
  figures_.seconds += seconds_since(begin);
}

std::size_t Scheduler::completion_tokens() const {
  std::size_t tokens = figures_.completion_tokens;
  for (const Tasks *tasks : {&running_, &preempted_}) {
    for (const auto &task : *tasks) tokens += task->generated();
  }
  return tokens;
}

std::size_t Scheduler::bytes() const {
  const squat::MemoryReport report = cache_.memory_report();
  return report.pages_used + report.exact + report.bases + report.statistics;
}

// ---- who runs

void Scheduler::drop_gone() {
  const auto drop = [&](Tasks &tasks, auto &&release) {
    std::erase_if(tasks, [&](const std::unique_ptr<Task> &task) {
      if (!task->client->is_gone()) return false;
      release(*task);
      end(*task, Finish::cancelled);
      return true;
    });
  };
  drop(running_, [&](const Task &task) { cache_.remove_sequence(task.sequence); });
  drop(preempted_, [&](const Task &task) { saved_.drop(task.number); });
  drop(waiting_, [](const Task &) {});
}

/// Those on disk first. Of prompts, one runs at a time: the next one may begin like it.
void Scheduler::admit() {
  const auto in_prompt = [](const auto &task) { return task->in_prompt(); };
  const auto move_first = [&](Tasks &from) {
    const auto place = std::find_if(running_.begin(), running_.end(), [&](const auto &other) {
      return other->number > from.front()->number;
    });
    running_.insert(place, std::move(from.front()));
    from.pop_front();
  };
  while (running_.size() < limits_.running && !preempted_.empty()) {
    if (!resume(*preempted_.front())) return;
    move_first(preempted_);
  }
  if (running_.size() < limits_.running && !waiting_.empty() &&
      std::none_of(running_.begin(), running_.end(), in_prompt) && start(*waiting_.front()))
    move_first(waiting_);
}

/// A task starts, or goes on, where all its tokens fit and another page of every request that runs.
bool Scheduler::start(Task &task) {
  const std::size_t ahead = running_.size() * budget_.page_bytes();
  begin(task);
  const squat::SequenceTokens rest{task.sequence,
                                   static_cast<squat::Index>(task.request.prompt.size() - task.fed)};
  // Of layers with a window no more than it keeps: a prompt comes in chunks.
  const std::size_t pages =
      std::min(cache_.page_bytes_due(std::span(&rest, 1)), budget_.page_bytes_of(task.tokens.size()));
  if (make_room(pages + ahead, 1)) return true;
  cache_.remove_sequence(task.sequence);
  return false;
}

/// As a fork of another sequence, unless there is none, or one whose windows have passed what is shared.
void Scheduler::begin(Task &task) {
  const Prefix prefix = find_prefix(task);
  task.fed = task.shared = 0;
  if (prefix.tokens > 0) {
    try {
      task.sequence = cache_.fork(prefix.sequence, static_cast<squat::Index>(prefix.tokens));
      task.fed = task.shared = prefix.tokens;
      return;
    } catch (const squat::Error &) {
    }
  }
  task.sequence = cache_.add_sequence();
}

bool Scheduler::resume(Task &task) {
  const std::size_t ahead = running_.size() * budget_.page_bytes();
  if (!make_room(budget_.page_bytes_of(task.fed) + ahead, 1)) return false;
  task.sequence = saved_.load(task.number);
  return true;
}

Prefix Scheduler::find_prefix(const Task &task) {
  // One token at least is computed, for its logits.
  const std::span<const int> prompt = std::span(task.tokens).first(task.tokens.size() - 1);
  Prefix longest = prefixes_.find(prompt);
  for (const auto &other : running_) {
    const std::size_t common = common_beginning(std::span(other->tokens).first(other->fed), prompt);
    if (common > longest.tokens) longest = {other->sequence, common};
  }
  const auto page = static_cast<std::size_t>(cache_.group(0).options().page_tokens);
  return longest.tokens >= page ? longest : Prefix{};
}

// ---- room

bool Scheduler::make_room(std::size_t page_bytes, std::size_t more_sequences) {
  while (!budget_.fits(running_.size() + prefixes_.size() + more_sequences, page_bytes)) {
    if (!prefixes_.evict()) return false;
    ++figures_.evictions;
  }
  return true;
}

std::size_t Scheduler::page_bytes_due() const {
  std::vector<squat::SequenceTokens> batch;
  for (const auto &task : running_) {
    const auto count = static_cast<squat::Index>(task->next(limits_.chunk).size());
    batch.push_back({task->sequence, count});
  }
  return cache_.page_bytes_due(batch);
}

void Scheduler::preempt_youngest() {
  std::unique_ptr<Task> task = std::move(running_.back());
  running_.pop_back();
  saved_.save(task->number, task->sequence);
  preempted_.push_front(std::move(task));
  ++figures_.preemptions;
}

void Scheduler::fit_step() {
  while (!running_.empty() && !make_room(page_bytes_due(), 0)) {
    if (running_.size() > 1) {
      preempt_youngest();
    } else {
      end_and_keep(*running_.front(), Finish::length);
      running_.clear();
    }
  }
}

// ---- a step of the model

void Scheduler::feed() {
  std::vector<int> tokens;
  std::vector<SequenceRows> rows;
  for (const auto &task : running_) {
    const std::span<const int> next = task->next(limits_.chunk);
    tokens.insert(tokens.end(), next.begin(), next.end());
    rows.push_back({&cache_, task->sequence, static_cast<squat::Index>(next.size())});
  }
  const RowMatrix &logits = engine_.forward(tokens, rows);
  measure();
  Tasks left;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::unique_ptr<Task> task = std::move(running_[i]);
    task->fed += static_cast<std::size_t>(rows[i].tokens);
    if (task->fed == task->tokens.size()) {
      take_token(*task, logits.row(static_cast<Eigen::Index>(i)));
    }
    if (!task->finish) left.push_back(std::move(task));
  }
  running_ = std::move(left);
}

void Scheduler::take_token(Task &task, const Eigen::RowVectorXf &logits) {
  if (task.generated() == 0) task.seconds_to_first_token = seconds_since(task.arrival);
  if (task.request.max_tokens == 0) return end_and_keep(task, Finish::length);
  const int token = sample(logits, task.request.temperature, task.random);
  if (token == tokenizer_.end_of_text()) return end_and_keep(task, Finish::stop);
  task.tokens.push_back(token);
  const std::string text = task.text.push(tokenizer_.decode(token));
  if (!text.empty()) task.client->on_text(text);
  if (task.text.stopped()) return end_and_keep(task, Finish::stop);
  if (task.generated() == static_cast<std::size_t>(task.request.max_tokens))
    end_and_keep(task, Finish::length);
}

void Scheduler::end_and_keep(Task &task, Finish finish) {
  const std::string rest = task.text.rest();
  if (!rest.empty()) task.client->on_text(rest);
  prefixes_.keep(std::span(task.tokens).first(task.fed), task.sequence);
  ++figures_.requests;
  figures_.prompt_tokens += task.request.prompt.size();
  figures_.shared_tokens += task.shared;
  figures_.completion_tokens += task.generated();
  figures_.seconds_to_first_token.push_back(task.seconds_to_first_token);
  end(task, finish);
}

void Scheduler::end(Task &task, Finish finish) {
  task.finish = finish;
  task.client->on_end({.finish = finish,
                       .prompt_tokens = task.request.prompt.size(),
                       .shared_tokens = task.shared,
                       .completion_tokens = task.generated(),
                       .seconds_to_first_token = task.seconds_to_first_token,
                       .tokens = task.tokens});
}

void Scheduler::measure() {
  figures_.most_running = std::max(figures_.most_running, running_.size());
  figures_.most_bytes = std::max(figures_.most_bytes, bytes());
  figures_.most_shared_pages = std::max(figures_.most_shared_pages, cache_.memory_report().shared_pages);
}

}  // namespace engine::serve
