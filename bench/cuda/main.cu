// Benchmarks of the CUDA backend, named as the CPU's (bench/cache_bench.cpp) with SEQUENCESxTOKENS for
// TOKENS. A time is the median of many launches, each with a cold L2 cache; see README.md beside bench/.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "copy_bandwidth.cuh"
#include "workload.hpp"

namespace {

void time_copy(benchmark::State &state) {
  for (auto _ : state) state.SetIterationTime(bench::copy_times().median());
  state.SetBytesProcessed(static_cast<std::int64_t>(2 * bench::copied_bytes));
}

void run(int argc, char **argv) {
  cudaDeviceProp device{};
  bench::check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  benchmark::AddCustomContext("device", device.name);
  benchmark::AddCustomContext("multiprocessors", std::to_string(device.multiProcessorCount));
  benchmark::AddCustomContext("l2_bytes", std::to_string(device.l2CacheSize));
  benchmark::AddCustomContext("cuda", std::to_string(CUDART_VERSION));
  benchmark::RegisterBenchmark("copy_bandwidth", time_copy)
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(1)
      ->UseManualTime();
  bench::register_width<16>();
  bench::register_width<8>();
  bench::register_width<4>();
  bench::register_width<3>();
  bench::register_width<2>();
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
