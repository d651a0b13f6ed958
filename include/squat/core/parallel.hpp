#pragma once

// How an engine lends its threads to the cache.

#include <functional>
#include <memory>
#include <type_traits>

namespace squat {

/// A reference to a callable `task(int index)`. It owns nothing, so making one
/// never allocates.
class Task {
 public:
  /// The callable outlives the task.
  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Task>) Task(const Callable &callable)
      : object_(std::addressof(callable)),
        call_([](const void *object, int index) { (*static_cast<const Callable *>(object))(index); }) {}

  /// Calls it.
  void operator()(int index) const { call_(object_, index); }

 private:
  const void *object_;
  void (*call_)(const void *, int);
};

/// Runs `task(0) ... task(count - 1)`, in any order and on any threads, and
/// returns when all have ended. No result depends on which thread runs a task
/// or in which order. It may throw, what a task has thrown or for reasons of its own, once every task
/// that has begun has ended: the call that it works for throws the same, and the cache is as it was.
using Parallel = std::function<void(int count, Task task)>;

/// By `parallel`, or in order where it is empty.
inline void run_tasks(const Parallel &parallel, int count, Task task) {
  if (parallel) return parallel(count, task);
  for (int index = 0; index < count; ++index) task(index);
}

}  // namespace squat
