#pragma once

// Counts what a program allocates and makes one allocation of it fail. Included before everything else:
// it makes Eigen refuse to allocate where a test says so.

#include <cstddef>
#include <cstdlib>

#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) \
  if (!(condition)) std::abort()

namespace squat::test {

/// Of operator new, and Eigen's of malloc.
extern std::size_t allocations;
/// Bytes that operator new has handed out and not got back.
extern std::size_t bytes_held;
/// Which of the next allocations fails, 1 the next; 0: none. It counts down, and is 0 once one has
/// failed.
extern std::size_t fails_at;

}  // namespace squat::test
