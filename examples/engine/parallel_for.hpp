#pragma once

// A loop over the threads of OpenMP that lets exceptions out. One turn leaves the threads to what it
// calls.

#include <exception>

namespace engine {

template <class Run>
void parallel_for(int count, Run &&run) {
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) if (count > 1)
  for (int i = 0; i < count; ++i) {
    try {
      run(i);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace engine
