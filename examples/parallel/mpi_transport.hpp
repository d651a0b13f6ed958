#pragma once

// How the ranks of an MPI communicator reach each other: a squat::RankTransport.

#include <mpi.h>
#include <time.h>

#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <thread>

#include "squat/core/error.hpp"

/// Times that have passed: by the clock, and of the calling thread on a core.
struct Seconds {
  double clock = 0;
  double core = 0;

  static Seconds now() {
    const auto of = [](clockid_t which) {
      timespec time{};
      clock_gettime(which, &time);
      return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    };
    return {of(CLOCK_MONOTONIC), of(CLOCK_THREAD_CPUTIME_ID)};
  }
  Seconds operator-(const Seconds &other) const { return {clock - other.clock, core - other.core}; }
  Seconds operator+(const Seconds &other) const { return {clock + other.clock, core + other.core}; }
};

/// Collectives that do not block, and a time limit for them: MPI itself waits for ever where a rank has
/// died. Throws squat::Error then, after which ranks that are left cannot go on together: end with
/// MPI_Abort() or without MPI_Finalize().
class MpiTransport {
 public:
  /// seconds: how long a call waits for the other ranks.
  MpiTransport(MPI_Comm communicator, double seconds) : communicator_(communicator), limit_(seconds) {
    MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN);
    check(MPI_Comm_rank(communicator_, &rank_));
    check(MPI_Comm_size(communicator_, &ranks_));
  }

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }

  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
    const Timer timer(*this);
    const int count = count_of(mine.size());
    MPI_Request request;
    check(MPI_Iallgather(mine.data(), count, MPI_BYTE, all.data(), count, MPI_BYTE, communicator_,
                         &request));
    wait(request);
    bytes_ += all.size() - mine.size();
  }

  void broadcast(std::span<std::byte> bytes) {
    const Timer timer(*this);
    MPI_Request request;
    check(MPI_Ibcast(bytes.data(), count_of(bytes.size()), MPI_BYTE, 0, communicator_, &request));
    wait(request);
    bytes_ += rank_ == 0 ? 0 : bytes.size();
  }

  /// What all calls have taken, waiting for other ranks among it, and bytes that came from them.
  Seconds seconds() const { return seconds_; }
  std::size_t bytes() const { return bytes_; }

 private:
  /// Counts what a call takes.
  class Timer {
   public:
    explicit Timer(MpiTransport &transport) : transport_(transport) {}
    ~Timer() { transport_.seconds_ = transport_.seconds_ + (Seconds::now() - begin_); }
    Timer(const Timer &) = delete;
    Timer &operator=(const Timer &) = delete;

   private:
    MpiTransport &transport_;
    Seconds begin_ = Seconds::now();
  };

  static int count_of(std::size_t bytes) {
    constexpr auto most = static_cast<std::size_t>(std::numeric_limits<int>::max());
    if (bytes > most) squat::throw_invalid("bytes", bytes, "at most what MPI counts in one call,", most);
    return static_cast<int>(bytes);
  }

  void check(int code) const {
    if (code == MPI_SUCCESS) return;
    std::string text(MPI_MAX_ERROR_STRING, ' ');
    int size = 0;
    MPI_Error_string(code, text.data(), &size);
    text.resize(static_cast<std::size_t>(size));
    throw squat::Error("rank " + std::to_string(rank_) + ": MPI: " + text);
  }

  void wait(MPI_Request &request) const {
    constexpr int busy_tests = 1000;  // then others may have the core
    const double begin = Seconds::now().clock;
    for (int tests = 0;; ++tests) {
      int done = 0;
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
      if (done != 0) return;
      if (tests < busy_tests) continue;
      if (Seconds::now().clock - begin > limit_)
        throw squat::Error("rank " + std::to_string(rank_) + ": no word from the other ranks for " +
                           std::to_string(limit_) + " s");
      std::this_thread::yield();
    }
  }

  MPI_Comm communicator_;
  double limit_;
  int rank_ = 0;
  int ranks_ = 1;
  Seconds seconds_;
  std::size_t bytes_ = 0;
};
