#pragma once

// Appending whole pages of tokens to a sequence of a layer that has learnt: check, copies and packing.

#include <benchmark/benchmark.h>

#include "case.cuh"
#include "filled_cache.cuh"
#include "stopwatch.cuh"
#include "tokens.cuh"
#include "workload.hpp"

namespace bench {

template <int Bits, class Backend = BenchBackend>
void pack_prompt(benchmark::State &state, const Workload &workload, const squat::Options &options) {
  Stopwatch stopwatch;
  FilledCache<Bits, Backend> filled(options, stopwatch.stream());
  filled.add(workload.shape, 1, 1024);
  auto &cache = filled.cache();
  // A sequence that holds its sinks and a window: each call packs as many tokens as it brings.
  const squat::Index kept = options.sinks + options.residual;
  const Tokens before(workload.shape, kept, 0, stopwatch.stream());
  const Tokens in(workload.shape, workload.tokens, kept, stopwatch.stream());
  squat::SequenceId sequence;
  const auto begin = [&] {
    sequence = cache.add_sequence();
    cache.append(sequence, 0, before.k(), before.v(), stopwatch.stream());
    stopwatch.wait();
  };
  begin();
  const Times times =
      stopwatch.time([&] { cache.append(sequence, 0, in.k(), in.v(), stopwatch.stream()); },
                     [&] {
                       cache.remove_sequence(sequence);
                       begin();
                     });
  report(state, times);
  state.SetItemsProcessed(workload.tokens);
}

}  // namespace bench
