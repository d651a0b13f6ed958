// Microbenchmarks of one layer of one sequence, packed and exact.
//
// Names: OPERATION/CODING/kKvV/qQ_kvH_dD/TOKENS, for example decode/subspace/k2v2/q32_kv8_d128/16384.
// Exact is k16v16 in half precision, the baseline of every ratio; trellis is subspace with trellis
// codes. See README.md beside this file.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "score_rules.hpp"
#include "squat/coding/subspace_basis.hpp"
#include "squat/cpu/kernels/float_vector.hpp"
#include "squat/cpu/kernels/row_blocks.hpp"
#include "squat/cpu/page_memory.hpp"
#include "squat/parallel/thread_pool.hpp"
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

/// Random tensors [tokens, heads, head_dim], each channel like the one before it: from noise no coding
/// would learn.
struct Inputs {
  Inputs(const Shape &shape, Index count)
      : tokens(count),
        q(shape, shape.query_heads, count),
        k(shape, shape.kv_heads, count),
        v(shape, shape.kv_heads, count),
        out(q) {}

  struct Tensor {
    Tensor(const Shape &shape, int head_count, Index count)
        : heads(head_count),
          head_dim(shape.head_dim),
          elements(static_cast<std::size_t>(count * heads * head_dim)) {
      std::mt19937 random(static_cast<unsigned>(count + head_count));
      std::normal_distribution<float> normal;
      std::generate(elements.begin(), elements.end(),
                    [&, last = 0.0f]() mutable { return last = .7f * last + .7f * normal(random); });
    }
    TensorView<float> view(Index count) { return {elements.data(), count, heads, head_dim}; }
    int heads, head_dim;
    std::vector<float> elements;
  };

  Index tokens;
  Tensor q, k, v, out;
};

/// The cache's default, or one that is named.
struct MaybeCoding {
  std::optional<Coding> coding{};
  squat::Codes codes = squat::Codes::scalar;
};

squat::Options options_of(const Shape &shape, const MaybeCoding &coding, int layers = 1) {
  squat::Options options{.layers = layers,
                         .query_heads = shape.query_heads,
                         .kv_heads = shape.kv_heads,
                         .head_dim = shape.head_dim,
                         .coding = coding.coding,
                         .codes = coding.codes};
  if (coding.coding == Coding::plain) options.page_tokens = 32;
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

/// A cache of `tokens` tokens in every layer, learnt from its first ones.
template <int Bits>
squat::SequenceId fill(Cache<Bits> &cache, const Shape &shape, Index tokens) {
  const squat::SequenceId sequence = cache.add_sequence();
  const Index run = std::min<Index>(tokens, 1024);
  Inputs in(shape, run);
  for (Index first = 0; first < tokens; first += run) {
    const Index count = std::min(run, tokens - first);
    for (int layer = 0; layer < cache.options().layers; ++layer)
      cache.append(sequence, layer, in.q.view(count), in.k.view(count), in.v.view(count));
  }
  return sequence;
}

/// Attention of the newest tokens of a full cache; it is read only, so that every repetition meets the
/// same length. with_sums: logarithms of the softmaxes' sums too.
template <int Bits>
void attend_over(benchmark::State &state, const squat::Options &options, const Shape &shape,
                 Index tokens, Index newest = 1, bool with_sums = false) {
  Cache<Bits> cache(options);
  const squat::SequenceId sequence = fill(cache, shape, tokens);
  Inputs in(shape, newest);
  std::vector<float> sums(static_cast<std::size_t>(newest * shape.query_heads));
  squat::AttentionTensors<float> tensors{.q = in.q.view(newest), .out = in.out.view(newest)};
  if (with_sums) tensors.lse = {sums.data(), newest, shape.query_heads, 1};
  const std::array batch{squat::SequenceTokens{sequence, newest}};
  for (auto _ : state) {
    cache.attend(batch, 0, tensors);
    benchmark::DoNotOptimize(in.out.elements.data());
  }
  const squat::MemoryReport report = cache.memory_report();
  const double row = 2.0 * shape.kv_heads * shape.head_dim;
  const double bytes = static_cast<double>(report.pages_used) +
                       static_cast<double>(report.exact_tokens) * row * sizeof(squat::half);
  state.counters["bytes_per_token"] = bytes / static_cast<double>(tokens);
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes * static_cast<double>(state.iterations())));
}

template <int Bits>
void decode(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  attend_over<Bits>(state, options_of(shape, coding), shape, tokens);
}

/// Attention of the last `Newest` tokens: a piece of a prompt, or a turn of a chat.
template <int Bits, int Newest>
void chunk(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  attend_over<Bits>(state, options_of(shape, coding), shape, tokens, Newest);
}

/// The same over all the machine's threads.
template <int Bits>
void decode_parallel(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  squat::ThreadPool pool;
  squat::Options options = options_of(shape, coding);
  options.parallel = pool.parallel();
  attend_over<Bits>(state, options, shape, tokens);
}

/// The same under a rule.
template <int Bits>
void decode_ruled(benchmark::State &state, const Shape &shape, Index tokens, bench::Rule rule) {
  attend_over<Bits>(state, bench::with_rule(options_of(shape, {}), rule, tokens), shape, tokens, 1,
                    rule == bench::Rule::lse);
}

/// Appending one token, packing included when its page is due.
template <int Bits>
void append(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  Cache<Bits> cache(options_of(shape, coding));
  const squat::SequenceId sequence = fill(cache, shape, tokens);
  Inputs in(shape, 1);
  for (auto _ : state) cache.append(sequence, 0, in.k.view(1), in.v.view(1));
  state.SetItemsProcessed(state.iterations());
}

/// Appending `tokens` tokens, whole pages of them, to a cache that has learnt.
template <int Bits>
void pack(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  Cache<Bits> cache(options_of(shape, coding));
  const squat::SequenceId sequence = fill(cache, shape, 1024);
  const Index kept = cache.length(sequence);
  Inputs in(shape, tokens);
  for (auto _ : state) {
    cache.append(sequence, 0, in.k.view(tokens), in.v.view(tokens));
    state.PauseTiming();
    if (cache.length(sequence) > 16384) cache.truncate(sequence, kept);
    state.ResumeTiming();
  }
  const double pages = static_cast<double>(tokens * shape.kv_heads) / 128;
  state.counters["seconds_per_head_page"] =
      benchmark::Counter(pages * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.SetItemsProcessed(state.iterations() * tokens);
}

/// Saving a sequence to memory, without its coding.
template <int Bits>
void save(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  Cache<Bits> cache(options_of(shape, coding));
  const squat::SequenceId sequence = fill(cache, shape, tokens);
  std::vector<std::byte> bytes;
  cache.save(sequence, bytes, {.codings = false});
  for (auto _ : state) {
    squat::SpanSink sink{std::span<std::byte>(bytes)};
    cache.save(sequence, sink, {.codings = false});
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes.size()) * state.iterations());
}

/// Loading it beside the sequence itself, and removing it.
template <int Bits>
void load(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  Cache<Bits> cache(options_of(shape, coding));
  const squat::SequenceId sequence = fill(cache, shape, tokens);
  std::vector<std::byte> bytes;
  cache.save(sequence, bytes, {.codings = false});
  for (auto _ : state) cache.remove_sequence(cache.load(bytes));
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes.size()) * state.iterations());
}

/// A fork of a sequence of 32 layers. child_bytes: what it holds alone.
void fork_sequence(benchmark::State &state, Shape shape, Index tokens) {
  Cache<2> cache(options_of(shape, {Coding::subspace}, 32));
  const squat::SequenceId parent = fill(cache, shape, tokens);
  const std::size_t before = cache.memory_report().exact;
  for (auto _ : state) {
    const squat::SequenceId child = cache.fork(parent);
    state.PauseTiming();
    state.counters["child_bytes"] = static_cast<double>(cache.memory_report().exact - before);
    cache.remove_sequence(child);
    state.ResumeTiming();
  }
}

/// A prompt of `tokens` tokens: its attention, and the statistics, the basis and the packing.
template <int Bits>
void prompt(benchmark::State &state, Shape shape, MaybeCoding coding, Index tokens) {
  Inputs in(shape, tokens);
  for (auto _ : state) {
    Cache<Bits> cache(options_of(shape, coding));
    cache.attend(cache.add_sequence(), 0, in.q.view(tokens), in.k.view(tokens), in.v.view(tokens),
                 in.out.view(tokens));
  }
  state.SetItemsProcessed(state.iterations() * tokens);
}

/// The subspace basis of one KV head.
void basis(benchmark::State &state, Index head_dim) {
  const auto moment = [&](unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const Eigen::MatrixXd x =
        Eigen::MatrixXd::NullaryExpr(head_dim, 512, [&] { return normal(random); });
    return Eigen::MatrixXd(x * x.transpose());
  };
  const Eigen::MatrixXd queries = moment(1), keys = moment(2);
  for (auto _ : state) benchmark::DoNotOptimize(squat::learn_subspace_basis(queries, keys, 2));
}

/// Reading memory of as many bytes as 16,384 exact tokens of 32/8/128 take, of the kind that pages lie
/// in: what a core can read at most.
void read_bandwidth(benchmark::State &state) {
  using squat::cpu::FloatVector;
  constexpr std::size_t bytes = std::size_t{64} << 20, elements = bytes / sizeof(float);
  constexpr std::size_t lanes = squat::cpu::float_lanes;
  const squat::cpu::PageMemory memory(bytes);
  auto *numbers = reinterpret_cast<float *>(memory.data());
  std::fill_n(numbers, elements, 1.0f);
  for (auto _ : state) {
    FloatVector sums[8];
    SQUAT_UNROLL(8)
    for (FloatVector &sum : sums) sum = squat::cpu::broadcast(0);
    for (std::size_t i = 0; i < elements; i += 8 * lanes) {
      SQUAT_UNROLL(8)
      for (std::size_t j = 0; j < 8; ++j) {
        sums[j] = sums[j] + squat::cpu::load_floats(numbers + i + j * lanes);
      }
    }
    // Of one sum: all of them, asked for by address, would be stored at every step.
    SQUAT_UNROLL(8)
    for (int j = 1; j < 8; ++j) sums[0] = sums[0] + sums[j];
    benchmark::DoNotOptimize(squat::cpu::sum_lanes(sums[0]));
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * state.iterations());
}

using Run = void (*)(benchmark::State &, Shape, MaybeCoding, Index);

/// What runs on one thread is timed by its CPU time, so that other programs on the machine do not count
/// but for the memory they use.
enum class Threads { one, all };

/// One operation at every width it is instantiated for.
struct Operation {
  const char *name;
  Run two, three, four, eight, exact;
  Threads threads = Threads::one;
};

template <class Register>
void for_each_coding(const Operation &operation, Register &&add) {
  add("exact", 16, MaybeCoding(), operation.exact);
  using Named = std::pair<const char *, MaybeCoding>;
  for (const auto &[name, coding] : {Named{"plain", {Coding::plain}},
                                     {"orthogonal", {Coding::orthogonal}},
                                     {"subspace", {Coding::subspace}},
                                     {"trellis", {Coding::subspace, squat::Codes::trellis}}}) {
    add(name, 2, coding, operation.two);
    add(name, 3, coding, operation.three);
    add(name, 4, coding, operation.four);
  }
  add("default", 8, MaybeCoding(), operation.eight);  // plain keys, symmetric values
}

void add_all(const Operation &operation, const Shape &shape, Index tokens) {
  for_each_coding(operation, [&](const char *coding_name, int bits, MaybeCoding coding, Run run) {
    const std::string width = std::to_string(bits);
    const std::string name = std::string(operation.name) + "/" + coding_name + "/k" + width + "v" +
                             width + "/" + shape.name() + "/" + std::to_string(tokens);
    auto *registered = benchmark::RegisterBenchmark(
        name.c_str(), [=](benchmark::State &state) { run(state, shape, coding, tokens); });
    registered->Unit(benchmark::kMicrosecond);
    if (operation.threads == Threads::all) registered->UseRealTime();
  });
}

#define BENCH_NAME_OF(macro) BENCH_TEXT(macro)
#define BENCH_TEXT(text) #text

}  // namespace

int main(int argc, char **argv) {
  const Operation decodes{"decode", decode<2>, decode<3>, decode<4>, decode<8>, decode<16>};
  const Operation parallel_decodes{"decode_parallel",  decode_parallel<2>, decode_parallel<3>,
                                   decode_parallel<4>, decode_parallel<8>, decode_parallel<16>,
                                   Threads::all};
  const auto chunks = []<int Newest>(const char *name) {
    return Operation{
        name, chunk<2, Newest>, chunk<3, Newest>, chunk<4, Newest>, chunk<8, Newest>, chunk<16, Newest>};
  };
  const Operation chunks16 = chunks.operator()<16>("chunk16"),
                  chunks128 = chunks.operator()<128>("chunk128"),
                  chunks512 = chunks.operator()<512>("chunk512");
  const Operation appends{"append", append<2>, append<3>, append<4>, append<8>, append<16>};
  const Operation packs{"pack", pack<2>, pack<3>, pack<4>, pack<8>, pack<16>};
  const Operation prompts{"prompt", prompt<2>, prompt<3>, prompt<4>, prompt<8>, prompt<16>};
  const Operation saves{"save", save<2>, save<3>, save<4>, save<8>, save<16>};
  const Operation loads{"load", load<2>, load<3>, load<4>, load<8>, load<16>};
  benchmark::RegisterBenchmark("read_bandwidth", read_bandwidth)->Unit(benchmark::kMicrosecond);
  for (const Shape &shape : {Shape{32, 8, 128}, Shape{9, 3, 64}, Shape{64, 8, 128}, Shape{8, 8, 64}}) {
    for (Index tokens : {128, 256, 512, 1024, 4096, 16384, 65536, 262144})
      add_all(decodes, shape, tokens);
    for (Index tokens : {1024, 65536}) add_all(parallel_decodes, shape, tokens);
    add_all(appends, shape, 1024);
    for (Index tokens : {128, 4096}) add_all(packs, shape, tokens);
    add_all(prompts, shape, 4096);
    for (const Operation &operation : {chunks16, chunks128, chunks512}) add_all(operation, shape, 4096);
    for (const Operation &operation : {saves, loads}) add_all(operation, shape, 65536);
  }
  constexpr Shape ruled{32, 8, 128};
  for (const bench::Rule rule : bench::rules) {
    const std::string name = std::string("decode_") + name_of(rule);
    const auto add = [&](const char *coding,
                         void (*run)(benchmark::State &, const Shape &, Index, bench::Rule)) {
      benchmark::RegisterBenchmark((name + coding + ruled.name() + "/16384").c_str(), run, ruled,
                                   Index{16384}, rule)
          ->Unit(benchmark::kMicrosecond);
    };
    add("/subspace/k2v2/", decode_ruled<2>);
    add("/exact/k16v16/", decode_ruled<16>);
  }
  constexpr Shape forked{32, 8, 128};
  benchmark::RegisterBenchmark(("fork/subspace/k2v2/" + forked.name() + "/32768").c_str(), fork_sequence,
                               forked,
                               32768)
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(50);  // so that it is filled once
  for (Index head_dim : {64, 128, 256}) {
    benchmark::RegisterBenchmark(("basis/d" + std::to_string(head_dim)).c_str(), basis, head_dim)
        ->Unit(benchmark::kMicrosecond);
  }
  benchmark::AddCustomContext("compiler", __VERSION__);
  benchmark::AddCustomContext("instruction_set", BENCH_NAME_OF(SQUAT_CPU_NAMESPACE));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
