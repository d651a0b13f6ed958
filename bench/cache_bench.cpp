// Microbenchmarks of one layer of one sequence: packing, appending and decoding, packed and exact.
//
// Names: OPERATION/CODING/kKvV/qQ_kvH_dD/TOKENS, for example decode/plain/k2v2/q32_kv8_d128/16384. Exact
// is k16v16 in half precision, the baseline of every ratio.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "squat/squat.hpp"

namespace {

using squat::Coding;
using squat::Index;
using squat::TensorView;

struct Shape {
  int query_heads, kv_heads, head_dim;

  std::string name() const {
    return "q" + std::to_string(query_heads) + "_kv" + std::to_string(kv_heads) + "_d" +
           std::to_string(head_dim);
  }
};

/// Random tensors [tokens, heads, head_dim].
struct Inputs {
  Inputs(const Shape& shape, Index count)
      : tokens(count),
        q(shape, shape.query_heads, count),
        k(shape, shape.kv_heads, count),
        v(shape, shape.kv_heads, count),
        out(q) {}

  struct Tensor {
    Tensor(const Shape& shape, int head_count, Index count)
        : heads(head_count),
          head_dim(shape.head_dim),
          elements(static_cast<std::size_t>(count * heads * head_dim)) {
      std::mt19937 random(static_cast<unsigned>(count + head_count));
      std::normal_distribution<float> normal;
      std::generate(elements.begin(), elements.end(), [&] { return normal(random); });
    }
    TensorView<float> view(Index count) { return {elements.data(), count, heads, head_dim}; }
    int heads, head_dim;
    std::vector<float> elements;
  };

  Index tokens;
  Tensor q, k, v, out;
};

squat::Options options_of(const Shape& shape, Coding coding) {
  squat::Options options{.layers = 1,
                         .query_heads = shape.query_heads,
                         .kv_heads = shape.kv_heads,
                         .head_dim = shape.head_dim,
                         .coding = coding};
  if (coding == Coding::plain) options.group = 32;
  squat::RotaryTable rotary;
  for (int i = 0; i < shape.head_dim; i += 2) {
    rotary.inverse_frequencies.push_back(
        std::pow(5e5f, -static_cast<float>(i) / static_cast<float>(shape.head_dim)));
  }
  options.rotary = {rotary};
  return options;
}

template <int Bits>
using Cache = squat::KVCache<squat::half, Bits>;

/// A cache of `tokens` tokens, learnt from its first ones.
template <int Bits>
squat::SequenceId fill(Cache<Bits>& cache, const Shape& shape, Index tokens) {
  const squat::SequenceId sequence = cache.add_sequence();
  const Index run = std::min<Index>(tokens, 1024);
  Inputs in(shape, run);
  for (Index first = 0; first < tokens; first += run) {
    const Index count = std::min(run, tokens - first);
    cache.append(sequence, 0, in.q.view(count), in.k.view(count), in.v.view(count));
  }
  return sequence;
}

/// Attention of one token over a full cache; it is read only, so that every repetition meets the same
/// length.
template <int Bits>
void decode(benchmark::State& state, Shape shape, Coding coding, Index tokens) {
  Cache<Bits> cache(options_of(shape, coding));
  const squat::SequenceId sequence = fill(cache, shape, tokens);
  Inputs in(shape, 1);
  for (auto _ : state) {
    cache.attend(sequence, 0, in.q.view(1), in.out.view(1));
    benchmark::DoNotOptimize(in.out.elements.data());
  }
  const squat::MemoryReport report = cache.memory_report();
  const double row = 2.0 * shape.kv_heads * shape.head_dim;
  const double bytes = static_cast<double>(report.pages_used) +
                       static_cast<double>(report.exact_tokens) * row * sizeof(squat::half);
  state.counters["bytes_per_token"] = bytes / static_cast<double>(tokens);
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes * static_cast<double>(state.iterations())));
}

/// Appending one token, packing included when its page is due.
template <int Bits>
void append(benchmark::State& state, Shape shape, Coding coding, Index tokens) {
  Cache<Bits> cache(options_of(shape, coding));
  const squat::SequenceId sequence = fill(cache, shape, tokens);
  Inputs in(shape, 1);
  for (auto _ : state) cache.append(sequence, 0, in.k.view(1), in.v.view(1));
  state.SetItemsProcessed(state.iterations());
}

/// Packing the pages of a prompt; time a page of one KV head is in `seconds_per_head_page`.
template <int Bits>
void pack(benchmark::State& state, Shape shape, Coding coding, Index tokens) {
  Cache<Bits> cache(options_of(shape, coding));
  const squat::SequenceId learnt = fill(cache, shape, 1024);
  const Index group = cache.options().group;
  Inputs in(shape, tokens);
  for (auto _ : state) {
    state.PauseTiming();
    cache.truncate(learnt, cache.options().sinks);
    state.ResumeTiming();
    cache.append(learnt, 0, in.k.view(tokens), in.v.view(tokens));
  }
  const auto pages = static_cast<double>((tokens - cache.options().window) / group * shape.kv_heads);
  state.counters["seconds_per_head_page"] =
      benchmark::Counter(pages * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.SetItemsProcessed(state.iterations() * tokens);
}

using Run = void (*)(benchmark::State&, Shape, Coding, Index);

void add(const std::string& operation, const char* coding_name, int bits, Coding coding,
         const Shape& shape, Index tokens, Run run) {
  const std::string width = std::to_string(bits);
  const std::string name = operation + "/" + coding_name + "/k" + width + "v" + width + "/" +
                           shape.name() + "/" + std::to_string(tokens);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    run(state, shape, coding, tokens);
  })->Unit(benchmark::kMicrosecond);
}

void add_all(const char* operation, const Shape& shape, Index tokens, Run two, Run four, Run eight,
             Run exact) {
  add(operation, "exact", 16, Coding::plain, shape, tokens, exact);
  for (const auto& [name, coding] : {std::pair{"plain", Coding::plain},
                                     {"orthogonal", Coding::orthogonal},
                                     {"subspace", Coding::subspace}}) {
    add(operation, name, 2, coding, shape, tokens, two);
    add(operation, name, 4, coding, shape, tokens, four);
    add(operation, name, 8, coding, shape, tokens, eight);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const Shape& shape : {Shape{32, 8, 128}, Shape{9, 3, 64}}) {
    for (Index tokens : {1024, 4096, 16384})
      add_all("decode", shape, tokens, decode<2>, decode<4>, decode<8>, decode<16>);
    add_all("append", shape, 1024, append<2>, append<4>, append<8>, append<16>);
    add_all("pack", shape, 4096, pack<2>, pack<4>, pack<8>, pack<16>);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
