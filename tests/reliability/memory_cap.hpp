#pragma once

// A limit to the memory that a call may take.

#include <sys/resource.h>

#include <algorithm>

#if defined(__SANITIZE_ADDRESS__)
#define SQUAT_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SQUAT_TEST_SANITIZED
#endif
#endif

namespace squat::test {

/// No more than 512 MiB in all while it lives. Sanitizers, which reserve terabytes, have limits of their
/// own.
class MemoryCap {
 public:
  MemoryCap() {
#if !defined(SQUAT_TEST_SANITIZED)
    getrlimit(RLIMIT_DATA, &before_);
    rlimit capped = before_;
    capped.rlim_cur = std::min<rlim_t>(before_.rlim_cur, rlim_t{512} << 20);
    setrlimit(RLIMIT_DATA, &capped);
#endif
  }
  ~MemoryCap() {
#if !defined(SQUAT_TEST_SANITIZED)
    setrlimit(RLIMIT_DATA, &before_);
#endif
  }
  MemoryCap(const MemoryCap &) = delete;
  MemoryCap &operator=(const MemoryCap &) = delete;

 private:
  [[maybe_unused]] rlimit before_{};
};

}  // namespace squat::test
