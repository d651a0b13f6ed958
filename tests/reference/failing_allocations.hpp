#pragma once

// Out of memory, whoever refuses it: nothing is lost.

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include "reference/sanitized.hpp"
#include "squat/cache/options.hpp"
#include "squat/core/error.hpp"

namespace squat::test {

/// Lets every allocation of `call` fail in turn (under sanitizers a quarter of those behind the first
/// 32, of which most are those of further layers and sequences), each time in a World that `prepare` has
/// made ready. Returns how many of them made the call throw. countdown: to the allocation that fails; 0:
/// none does. same(a, b): compares what World::seen(), outputs() and decode() give.
template <class World, class Prepare, class Call, class Same>
std::size_t expect_nothing_lost(const Options &options, std::size_t &countdown, Prepare &&prepare,
                                Call &&call, Same &&same) {
  World expected(options);
  prepare(expected);
  const std::vector<float> before = expected.seen();
  call(expected);
  const std::vector<float> after = expected.seen(), outputs = expected.outputs(),
                           decoded = expected.decode();
  std::size_t failed = 0;
  for (std::size_t n = 1;; n += sanitized && n > 32 ? 4 : 1) {
    SCOPED_TRACE(n);
    World world(options);
    prepare(world);
    bool thrown = false;
    countdown = n;
    try {
      call(world);
    } catch (const Error &) {
      thrown = true;
    }
    const bool reached = countdown == 0;
    countdown = 0;
    if (!reached) break;
    failed += thrown;
    if (thrown) {
      same(world.seen(), before);
      call(world);
    }
    same(world.outputs(), outputs);
    same(world.seen(), after);
    same(world.decode(), decoded);
  }
  return failed;
}

}  // namespace squat::test
