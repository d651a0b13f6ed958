#pragma once

// OpenMP's threads for Options::parallel. Compile with OpenMP (-fopenmp);
// without it tasks run one after another.

#include "squat/core/parallel.hpp"

namespace squat {

/// Options::parallel over OpenMP's threads. Tasks are handed out one by one, so
/// that a slow thread holds nobody up.
inline Parallel openmp_parallel() {
  return [](int count, Task task) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1)
#endif
    for (int index = 0; index < count; ++index) task(index);
  };
}

}  // namespace squat
