// The benchmarks at one width, BENCH_BITS: an object each, so that they compile side by side.

#include <benchmark/benchmark.h>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "case.cuh"
#include "copy_bandwidth.cuh"
#include "filled_cache.cuh"
#include "pack_prompt.cuh"
#include "score_rules.hpp"
#include "stopwatch.cuh"
#include "workload.hpp"

namespace bench {
namespace {

using squat::Coding;
using squat::Index;

/// Attention of one token of every sequence; it is read only, so that every repetition meets the same
/// lengths.
template <int Bits>
void decode(benchmark::State &state, const Workload &workload, MaybeCoding coding) {
  Stopwatch stopwatch;
  FilledCache<Bits> filled(workload, coding, stopwatch.stream());
  const Tokens in(workload.shape, workload.sequences, workload.tokens, stopwatch.stream());
  const auto attend = [&] {
    filled.cache().attend(filled.batch(), 0, in.q(), in.out(), stopwatch.stream());
  };
  const Times times = stopwatch.time(attend);
  report(state, times);
  const double bytes = filled.bytes_read();
  state.counters["graph_us"] = stopwatch.time_replays(attend).median() / microsecond;
  state.counters["host_us"] = host_seconds(attend) / microsecond;
  state.counters["bytes_per_token"] = bytes / static_cast<double>(workload.sequences * workload.tokens);
  state.counters["share_of_copy_bandwidth"] = bytes / times.median() / copy_bandwidth();
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
}

/// The same under a rule.
template <int Bits>
void decode_ruled(benchmark::State &state, const Workload &workload, MaybeCoding coding, Rule rule) {
  Stopwatch stopwatch;
  FilledCache<Bits> filled(with_rule(options_of(workload.shape, coding, Bits), rule, workload.tokens),
                           stopwatch.stream());
  filled.add(workload.shape, workload.sequences, workload.tokens);
  const Tokens in(workload.shape, workload.sequences, workload.tokens, stopwatch.stream());
  squat::AttentionTensors<squat::half> tensors{.q = in.q(), .out = in.out()};
  const squat::cuda::DeviceBuffer<float> sums(
      static_cast<std::size_t>(workload.sequences * workload.shape.query_heads));
  if (rule == Rule::lse) tensors.lse = {sums.data(), workload.sequences, workload.shape.query_heads, 1};
  report(state,
         stopwatch.time([&] { filled.cache().attend(filled.batch(), 0, tensors, stopwatch.stream()); }));
}

/// Attention of the newest `count` tokens of every sequence, as of a piece of a prompt or of drafts:
/// each sees those before it. Read only, so that every repetition meets the same lengths. flops:
/// products and sums a second, as if every token saw all.
template <int Bits>
void chunk(benchmark::State &state, const Workload &workload, MaybeCoding coding, Index count) {
  Stopwatch stopwatch;
  FilledCache<Bits> filled(workload, coding, stopwatch.stream());
  const Tokens in(workload.shape, workload.sequences * count, workload.tokens, stopwatch.stream());
  std::vector<squat::SequenceTokens> batch = filled.batch();
  for (squat::SequenceTokens &sequence : batch) sequence.tokens = count;
  const auto attend = [&] { filled.cache().attend(batch, 0, in.q(), in.out(), stopwatch.stream()); };
  const Times times = stopwatch.time(attend);
  report(state, times);
  state.SetItemsProcessed(workload.sequences * count);
  const double products = 4.0 * workload.shape.query_heads * workload.shape.head_dim *
                          static_cast<double>(workload.sequences * count * workload.tokens);
  state.counters["flops"] = products / times.median();
}

/// A whole step, one token of every sequence: append, attention, and packing when pages are due. Its
/// mean counts the packing of one page of every sequence in `group` steps.
template <int Bits>
void step(benchmark::State &state, const Workload &workload, MaybeCoding coding) {
  Stopwatch stopwatch;
  FilledCache<Bits> filled(workload, coding, stopwatch.stream());
  const Tokens in(workload.shape, workload.sequences, workload.tokens, stopwatch.stream());
  const auto one = [&] {
    filled.cache().attend(filled.batch(), 0, in.q(), in.k(), in.v(), in.out(), stopwatch.stream());
  };
  const Times times = stopwatch.time(
      one, [] {}, filled.cache().options().page_tokens);
  report(state, times);
  state.counters["mean_us"] = times.mean() / microsecond;
  state.counters["graph_us"] = stopwatch.time_replays(one).median() / microsecond;
}

/// Appending one token to every sequence; the mean counts packing, as in step.
template <int Bits>
void append(benchmark::State &state, const Workload &workload, MaybeCoding coding) {
  Stopwatch stopwatch;
  FilledCache<Bits> filled(workload, coding, stopwatch.stream());
  const Tokens in(workload.shape, workload.sequences, workload.tokens, stopwatch.stream());
  const auto append = [&] {
    filled.cache().append(filled.batch(), 0, in.k(), in.v(), stopwatch.stream());
  };
  const Times times = stopwatch.time(
      append, [] {}, filled.cache().options().page_tokens);
  report(state, times);
  state.counters["mean_us"] = times.mean() / microsecond;
  state.counters["graph_us"] = stopwatch.time_replays(append).median() / microsecond;
}

/// Appending one token to every sequence where that makes a page of each due: kernels alone, packing
/// sequences * group tokens.
template <int Bits>
void pack_step(benchmark::State &state, const Workload &workload, MaybeCoding coding) {
  Stopwatch stopwatch;
  FilledCache<Bits> filled(workload, coding, stopwatch.stream());
  auto &cache = filled.cache();
  const squat::Options &options = cache.options();
  const Tokens in(workload.shape, workload.sequences, workload.tokens, stopwatch.stream());
  const auto append = [&] { cache.append(filled.batch(), 0, in.k(), in.v(), stopwatch.stream()); };
  const auto append_until_due = [&] {
    const Index packed_at = options.sinks + options.residual;  // and then every `group` tokens
    while ((cache.length(filled.batch().front().sequence) - packed_at + 1) % options.page_tokens != 0)
      append();
  };
  append_until_due();
  report(state, stopwatch.time(append, append_until_due));
  state.SetItemsProcessed(workload.sequences * options.page_tokens);
}

template <int Bits>
void pack(benchmark::State &state, const Workload &workload, MaybeCoding coding) {
  pack_prompt<Bits>(state, workload, options_of(workload.shape, coding, Bits));
}

/// A fork of a sequence of 32 layers. host_us: what the host takes, the median; the time is the
/// device's.
template <int Bits>
void fork_sequence(benchmark::State &state, const Workload &workload, MaybeCoding coding) {
  constexpr int layers = 32;
  Stopwatch stopwatch;
  FilledCache<Bits> filled(options_of(workload.shape, coding, Bits, layers), stopwatch.stream());
  filled.add(workload.shape, workload.sequences, workload.tokens);
  auto &cache = filled.cache();
  const squat::SequenceId parent = filled.batch().front().sequence;
  const std::size_t exact = cache.memory_report().exact;
  squat::SequenceId child;
  Times host;
  const auto fork = [&] {
    host.seconds.push_back(host_seconds([&] { child = cache.fork(parent, stopwatch.stream()); }));
  };
  report(state, stopwatch.time(fork, [&] {
    state.counters["child_bytes"] = static_cast<double>(cache.memory_report().exact - exact);
    cache.remove_sequence(child);
  }));
  state.counters["host_us"] = host.median() / microsecond;
}

/// Attention of 32 layers for as many sequences as fit in a budget of memory, learnt tables and scratch
/// included. items_per_second: tokens.
template <int Bits>
void throughput(benchmark::State &state, const Workload &workload, MaybeCoding coding) {
  constexpr double budget = 16.0 * (1 << 30);
  constexpr int layers = 32;
  Stopwatch stopwatch;
  FilledCache<Bits> filled(options_of(workload.shape, coding, Bits, layers), stopwatch.stream());
  const auto bytes = [&] { return static_cast<double>(filled.cache().memory_report().total()); };
  double used = 0;
  while (bytes() <= budget) {
    used = bytes();
    filled.add(workload.shape, 1, workload.tokens);
  }
  filled.remove_last();
  if (filled.batch().empty()) throw std::runtime_error("not one sequence fits");
  const auto sequences = static_cast<Index>(filled.batch().size());
  const Tokens in(workload.shape, sequences, workload.tokens, stopwatch.stream());
  const Times times = stopwatch.time_replays([&] {
    for (int layer = 0; layer < layers; ++layer) {
      filled.cache().attend(filled.batch(), layer, in.q(), in.out(), stopwatch.stream());
    }
  });
  report(state, times);
  state.counters["sequences"] = static_cast<double>(sequences);
  state.counters["cache_bytes"] = used;
  state.SetItemsProcessed(sequences);
}

using Run = std::function<void(benchmark::State &, const Workload &, MaybeCoding)>;

void add(const char *operation, const Run &run, const Workload &workload, NamedCoding named, int bits) {
  const std::string width = "k" + std::to_string(bits) + "v" + std::to_string(bits);
  register_case(std::string(operation) + "/" + named.name + "/" + width + "/" + workload.name(),
                [=](benchmark::State &state) { run(state, workload, named.coding); });
}

constexpr Shape llama2_7b{32, 32, head_dim}, llama3_70b{64, 8, head_dim};

}  // namespace

template <int Bits>
void register_width() {
  std::vector<NamedCoding> codings{{"default", {}}};  // plain keys, symmetric values
  if (Bits == 16) codings = {{"exact", Coding::plain}};
  if (Bits <= 4) {
    codings = {
        {"subspace", Coding::subspace}, {"orthogonal", Coding::orthogonal}, {"plain", Coding::plain}};
  }
  for (const NamedCoding &coding : codings) {
    for (const Workload &workload : {Workload{llama3_8b, 1, 32768},
                                     {llama3_8b, 1, 131072},
                                     {llama3_8b, 16, 4096},
                                     {llama3_8b, 64, 4096},
                                     {llama2_7b, 16, 4096},
                                     {llama3_70b, 1, 32768},
                                     {llama2_7b, 64, 330},
                                     {llama2_7b, 256, 330}}) {
      add("decode", decode<Bits>, workload, coding, Bits);
    }
    for (const Rule rule : rules) {
      add((std::string("decode_") + name_of(rule)).c_str(),
          [=](benchmark::State &state, const Workload &workload, MaybeCoding of) {
            decode_ruled<Bits>(state, workload, of, rule);
          },
          {llama3_8b, 64, 4096}, coding, Bits);
    }
    for (const Index tokens : {4096, 32768}) {
      for (const Index count : {4, 16, 64, 512}) {
        add(("chunk" + std::to_string(count)).c_str(),
            [=](benchmark::State &state, const Workload &workload, MaybeCoding of) {
              chunk<Bits>(state, workload, of, count);
            },
            {llama3_8b, 1, tokens}, coding, Bits);
      }
    }
    for (const Workload &workload : {Workload{llama3_8b, 1, 32768},
                                     {llama3_8b, 64, 4096},
                                     {llama2_7b, 64, 330},
                                     {llama2_7b, 256, 330}}) {
      add("step", step<Bits>, workload, coding, Bits);
    }
    add("append", append<Bits>, {llama3_8b, 64, 4096}, coding, Bits);
    add("pack", pack<Bits>, {llama3_8b, 1, 4096}, coding, Bits);
    add("pack_step", pack_step<Bits>, {llama3_8b, 4096 / group_of(coding.coding, Bits), 2048}, coding,
        Bits);
    add("fork", fork_sequence<Bits>, {llama3_8b, 1, 32768}, coding, Bits);
    add("throughput", throughput<Bits>, {llama2_7b, 0, 4096}, coding, Bits);
  }
}

template void register_width<BENCH_BITS>();

}  // namespace bench
