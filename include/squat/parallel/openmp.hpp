#pragma once

// OpenMP's threads for Options::parallel. Compile with OpenMP (-fopenmp);
// without it tasks run one after another.

#include <exception>

#include "squat/core/parallel.hpp"

namespace squat {

/// Options::parallel over OpenMP's threads. Tasks are handed out one by one, so
/// that a slow thread holds nobody up. The first exception that a task throws, which must not leave
/// OpenMP's loop, is thrown when all have ended.
inline Parallel openmp_parallel() {
  return [](int count, Task task) {
    std::exception_ptr error;
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1)
#endif
    for (int index = 0; index < count; ++index) {
      try {
        task(index);
      } catch (...) {
#if defined(_OPENMP)
#pragma omp critical(squat_openmp_parallel)
#endif
        if (!error) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
  };
}

}  // namespace squat
