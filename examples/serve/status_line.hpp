#pragma once

// What is going on, in one line of the terminal.

#include <fmt/format.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <string>

#include "clock.hpp"
#include "scheduler.hpp"

namespace engine::serve {

class StatusLine {
 public:
  ~StatusLine() {
    if (shown_) fmt::print(stderr, "\r\033[K");
  }

  /// At most four times a second, and only where standard error is a terminal.
  void show(const Scheduler &scheduler) {
    const double seconds = seconds_since(last_);
    if (!terminal_ || (shown_ && seconds < .25)) return;
    const std::size_t tokens = scheduler.completion_tokens();
    fmt::print(
        stderr,
        "\r\033[K{} running, {} waiting, {} on disk, {} kept | {:.1f} of {:.1f} MB | {:.0f} tokens/s",
        scheduler.running(), scheduler.waiting(), scheduler.preempted(), scheduler.kept(),
        megabytes(scheduler.bytes()), megabytes(scheduler.limits().bytes),
        shown_ && tokens > tokens_ ? static_cast<double>(tokens - tokens_) / seconds : 0.0);
    std::fflush(stderr);
    shown_ = true;
    last_ = Clock::now();
    tokens_ = tokens;
  }

 private:
  static double megabytes(std::size_t bytes) { return 1e-6 * static_cast<double>(bytes); }

  bool terminal_ = isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
  Clock::time_point last_ = Clock::now();
  std::size_t tokens_ = 0;
};

}  // namespace engine::serve
