// Decode steps over pages whose heads share the bits (CudaSharing), beside the same backend where each
// head has as many; over trellis codes (CudaTrellis, CudaSharingTrellis), and what packing a prompt of
// these takes.

#include <benchmark/benchmark.h>

#include <string>

#include "case.cuh"
#include "filled_cache.cuh"
#include "pack_prompt.cuh"
#include "stopwatch.cuh"
#include "workload.hpp"

namespace bench {
namespace {

using squat::Allocation, squat::Codes;

squat::Options options_of(const Workload &workload, int bits, Allocation allocation, Codes codes) {
  squat::Options options = bench::options_of(workload.shape, squat::Coding::subspace, bits);
  options.allocation = allocation;
  options.codes = codes;
  return options;
}

template <int Bits, class Backend>
void decode(benchmark::State &state, const Workload &workload, const squat::Options &options) {
  Stopwatch stopwatch;
  FilledCache<Bits, Backend> filled(options, stopwatch.stream());
  filled.add(workload.shape, workload.sequences, workload.tokens);
  const Tokens in(workload.shape, workload.sequences, workload.tokens, stopwatch.stream());
  const auto attend = [&] {
    filled.cache().attend(filled.batch(), 0, in.q(), in.out(), stopwatch.stream());
  };
  report(state, stopwatch.time(attend));
}

template <int Bits, class Backend>
void add_decode(const std::string &name, Allocation allocation, Codes codes) {
  for (const Workload &workload : {Workload{llama3_8b, 1, 32768},
                                   {llama3_8b, 1, 131072},
                                   {llama3_8b, 16, 4096},
                                   {llama3_8b, 64, 4096}}) {
    const std::string width = "/k" + std::to_string(Bits) + "v" + std::to_string(Bits) + "/";
    register_case(name + width + workload.name(), [=](benchmark::State &state) {
      decode<Bits, Backend>(state, workload, options_of(workload, Bits, allocation, codes));
    });
  }
}

}  // namespace

void register_sharing() {
  using squat::CudaSharing, squat::CudaSharingTrellis, squat::CudaTrellis;
  add_decode<2, CudaSharing<head_dim>>("decode_shared/head", Allocation::head, Codes::scalar);
  add_decode<2, CudaSharing<head_dim>>("decode_shared/layer", Allocation::layer, Codes::scalar);
  add_decode<2, CudaTrellis<head_dim>>("decode_trellis", Allocation::head, Codes::trellis);
  add_decode<2, CudaSharingTrellis<head_dim>>("decode_trellis/layer", Allocation::layer, Codes::trellis);
  const Workload prompt{llama3_8b, 1, 4096};
  register_case("pack/trellis/k2v2/" + prompt.name(), [=](benchmark::State &state) {
    pack_prompt<2, CudaTrellis<head_dim>>(state, prompt,
                                          options_of(prompt, 2, Allocation::head, Codes::trellis));
  });
  register_case("pack/trellis/layer/k2v2/" + prompt.name(), [=](benchmark::State &state) {
    pack_prompt<2, CudaSharingTrellis<head_dim>>(
        state, prompt, options_of(prompt, 2, Allocation::layer, Codes::trellis));
  });
}

}  // namespace bench
