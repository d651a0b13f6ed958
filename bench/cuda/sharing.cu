// Decode steps over pages whose heads share the bits (CudaSharing), beside the same backend where each
// head has as many.

#include <benchmark/benchmark.h>

#include <string>

#include "case.cuh"
#include "filled_cache.cuh"
#include "stopwatch.cuh"
#include "workload.hpp"

namespace bench {
namespace {

template <int Bits>
void decode(benchmark::State &state, const Workload &workload, squat::Allocation allocation) {
  Stopwatch stopwatch;
  squat::Options options = options_of(workload.shape, squat::Coding::subspace, Bits);
  options.allocation = allocation;
  FilledCache<Bits, squat::CudaSharing<head_dim>> filled(options, stopwatch.stream());
  filled.add(workload.shape, workload.sequences, workload.tokens);
  const Tokens in(workload.shape, workload.sequences, workload.tokens, stopwatch.stream());
  const auto attend = [&] {
    filled.cache().attend(filled.batch(), 0, in.q(), in.out(), stopwatch.stream());
  };
  report(state, stopwatch.time(attend));
}

template <int Bits>
void add() {
  const std::string width = "/k" + std::to_string(Bits) + "v" + std::to_string(Bits) + "/";
  for (const Workload &workload :
       {Workload{llama3_8b, 1, 32768}, {llama3_8b, 16, 4096}, {llama3_8b, 64, 4096}}) {
    for (const bool shared : {false, true}) {
      const std::string name = std::string("decode_shared/") + (shared ? "layer" : "head") + width;
      register_case(name + workload.name(), [=](benchmark::State &state) {
        decode<Bits>(state, workload, shared ? squat::Allocation::layer : squat::Allocation::head);
      });
    }
  }
}

}  // namespace

void register_sharing() { add<2>(); }

}  // namespace bench
