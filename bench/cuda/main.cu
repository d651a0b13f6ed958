// Benchmarks of the CUDA backend, named as the CPU's (bench/cache_bench.cpp) with SEQUENCESxTOKENS for
// TOKENS. A time is the median of many launches, each with a cold L2 cache; see README.md beside bench/.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "case.cuh"
#include "copy_bandwidth.cuh"
#include "workload.hpp"

namespace {

void time_copy(benchmark::State &state) {
  bench::report(state, bench::copy_times());
  state.SetBytesProcessed(static_cast<std::int64_t>(2 * bench::copied_bytes));
}

void run(int argc, char **argv) {
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) == cudaSuccess) {  // else --help and lists are all there is
    benchmark::AddCustomContext("device", device.name);
    benchmark::AddCustomContext("multiprocessors", std::to_string(device.multiProcessorCount));
    benchmark::AddCustomContext("l2_bytes", std::to_string(device.l2CacheSize));
  }
  benchmark::AddCustomContext("cuda", std::to_string(CUDART_VERSION));
  bench::register_case("copy_bandwidth", time_copy);
#define WIDTH(bits) bench::register_width<bits>();
  BENCH_WIDTHS
#undef WIDTH
  bench::register_learning();
  bench::register_sharing();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) throw std::invalid_argument("see --help");
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}

}  // namespace

int main(int argc, char **argv) {
  try {
    run(argc, argv);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "squat_cuda_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
