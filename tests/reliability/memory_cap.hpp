#pragma once

// A limit to the memory that a call may take.

#include <sys/resource.h>

#include <algorithm>

#include "reference/sanitized.hpp"

namespace squat::test {

/// No more than 512 MiB in all while it lives. Sanitizers, which reserve terabytes, have limits of their
/// own.
class MemoryCap {
 public:
  MemoryCap() {
    if (sanitized) return;
    getrlimit(RLIMIT_DATA, &before_);
    rlimit capped = before_;
    capped.rlim_cur = std::min<rlim_t>(before_.rlim_cur, rlim_t{512} << 20);
    setrlimit(RLIMIT_DATA, &capped);
  }
  ~MemoryCap() {
    if (!sanitized) setrlimit(RLIMIT_DATA, &before_);
  }
  MemoryCap(const MemoryCap &) = delete;
  MemoryCap &operator=(const MemoryCap &) = delete;

 private:
  rlimit before_{};
};

}  // namespace squat::test
