// What a layer does once, before its first page: the statistics of its first tokens, and what its
// codings make of them. The operations that KVCache calls, without its checks and copies.

#include <benchmark/benchmark.h>

#include <string>
#include <utility>

#include "case.cuh"
#include "filled_cache.cuh"
#include "squat/parallel/thread_pool.hpp"
#include "stopwatch.cuh"

namespace bench {
namespace {

using squat::Coding;
using squat::Index;
using Operations = BenchBackend::Operations<squat::half, 2, 2>;
using View = squat::TensorView<const squat::half>;

constexpr Index tokens = 4096;

squat::Options resolved(Coding coding) {
  return squat::checks::resolve(options_of(llama3_8b, coding, 2), 2, 2);
}

/// Adds all of `in`, a sequence's first tokens, to what a layer learns from.
void observe(Operations &operations, Index layer, const Tokens &in, cudaStream_t stream) {
  Operations::Call call;
  call.coding = layer;
  call.tokens = tokens;
  operations.observe<squat::half>(call, in.q(), in.k(), in.v(), 0, tokens, stream);
}

/// Adding `tokens` tokens, all KV heads, to the statistics of a layer.
void statistics(benchmark::State &state, Coding coding) {
  Stopwatch stopwatch;
  Operations operations(resolved(coding));
  const Index layer = operations.add_coding(0);
  const Tokens in(llama3_8b, tokens, 0, stopwatch.stream());
  const auto add = [&] { observe(operations, layer, in, stopwatch.stream()); };
  report(state, stopwatch.time(add));
  state.counters["host_us"] = host_seconds(add) / microsecond;
  state.SetItemsProcessed(tokens);
}

/// The coding of a layer, all KV heads, from its statistics: what the host takes with all of its
/// threads, and the way to the GPU.
void learn(benchmark::State &state, Coding coding) {
  Stopwatch stopwatch;
  squat::ThreadPool pool;
  squat::Options options = resolved(coding);
  options.parallel = pool.parallel();
  Operations operations(std::move(options));
  const Tokens in(llama3_8b, tokens, 0, stopwatch.stream());
  Times times;
  for (int i = 0; i < Stopwatch::repetitions; ++i) {
    const Index layer = operations.add_coding(0);
    observe(operations, layer, in, stopwatch.stream());
    stopwatch.wait();
    times.seconds.push_back(host_seconds([&] {
      operations.learn(layer, stopwatch.stream());
      stopwatch.wait();
    }));
    operations.remove_coding(layer);
  }
  report(state, times);
}

}  // namespace

void register_learning() {
  for (const auto &[name, coding] :
       {std::pair{"subspace", Coding::subspace}, {"orthogonal", Coding::orthogonal}}) {
    const Workload workload{llama3_8b, 1, tokens};
    const std::string place = std::string("/") + name + "/k2v2/" + workload.name();
    register_case("statistics" + place,
                  [coding = coding](benchmark::State &state) { statistics(state, coding); });
    register_case("basis" + place, [coding = coding](benchmark::State &state) { learn(state, coding); });
  }
}

}  // namespace bench
