// Scratch memory of tasks that run side by side.

#include "squat/cpu/workspace.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>

#include "squat/parallel/thread_pool.hpp"

namespace squat::test::workspace_test {
namespace {

/// Who works in which memory.
class Users {
 public:
  void enter(const std::byte *memory) {
    const std::lock_guard lock(mutex_);
    ++counts_[memory];
    at_once_ = at_once_ || counts_[memory] > 1;
  }
  void leave(const std::byte *memory) {
    const std::lock_guard lock(mutex_);
    --counts_[memory];
  }
  std::size_t places() const { return counts_.size(); }
  bool two_at_once() const { return at_once_; }

 private:
  std::mutex mutex_;
  std::map<const std::byte *, int> counts_;
  bool at_once_ = false;
};

TEST(Workspace, TasksThatRunAtOnceHaveMemoryOfTheirOwnAndNoMoreThanThat) {
  constexpr unsigned threads = 4;
  ThreadPool pool(threads);
  cpu::Workspace workspace(pool.parallel());
  workspace.reserve(1000, 64);
  Users users;
  std::atomic<int> ran = 0;
  for (int round = 0; round < 20; ++round) {
    workspace.for_each(1000, [&](Index, cpu::Scratch scratch) {
      const auto *memory = scratch.take<std::byte>(64);
      users.enter(memory);
      ++ran;
      users.leave(memory);
    });
  }
  EXPECT_EQ(ran, 20 * 1000);
  EXPECT_FALSE(users.two_at_once());
  EXPECT_LE(users.places(), threads);
}

TEST(Workspace, MemoryIsFreeAgainAfterATaskThrew) {
  cpu::Workspace workspace([](int count, Task task) {
    for (int index = 0; index < count; ++index) {
      try {
        task(index);
      } catch (const std::runtime_error &) {
      }
    }
  });
  workspace.reserve(1000, 64);
  std::set<const std::byte *> places;
  workspace.for_each(1000, [&](Index item, cpu::Scratch scratch) {
    places.insert(scratch.take<std::byte>(64));
    if (item % 7 == 0) throw std::runtime_error("item");
  });
  EXPECT_EQ(places.size(), 1u);
}

}  // namespace
}  // namespace squat::test::workspace_test
