#pragma once

// One figure: a benchmark that is run once and measures its own repetitions.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "stopwatch.cuh"

namespace bench {

inline constexpr double microsecond = 1e-6;

/// The median is the time of the one iteration that Google Benchmark is told of.
inline void report(benchmark::State &state, const Times &times) {
  for (auto _ : state) state.SetIterationTime(times.median());
  const auto [least, most] = std::minmax_element(times.seconds.begin(), times.seconds.end());
  state.counters["least_us"] = *least / microsecond;
  state.counters["most_us"] = *most / microsecond;
}

/// run(state) may throw: that ends this benchmark alone.
template <class Run>
void register_case(const std::string &name, Run run) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [run = std::move(run)](benchmark::State &state) {
                                 try {
                                   run(state);
                                 } catch (const std::exception &error) {
                                   state.SkipWithError(error.what());
                                 }
                               })
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(1)
      ->UseManualTime();
}

}  // namespace bench
