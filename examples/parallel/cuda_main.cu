// Decodes over contexts that are split over GPUs, a process each:
//
//   for rank in 0 1; do split_context_cuda --rank $rank --ranks 2 --address /tmp/a --tokens 1048576 &
//   done; wait
//
// Tokens are drawn on the GPU, as the benchmarks draw them, and appended without attention, as an engine
// does that computes a prompt's attention itself; then each step appends a token to every sequence and
// attends to all of it. Rank 0 prints a line of JSON: microseconds that a step takes in the mean, those
// that the slowest rank takes to attend to its own part, and those of the all-gather alone, one after
// the other without anything between. One rank has a cache alone, and no part in any of this. With
// --check, rank 0 keeps a cache of all tokens besides, and compares 300 more steps. With --graph, steps
// that are alike are captured once and replayed: the line has what such steps take besides, captures
// included, and --check compares them.

#include <cuda_runtime.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "distance.hpp"
#include "filled_cache.cuh"
#include "nccl_transport.cuh"
#include "squat/parallel/split_context.cuh"
#include "stopwatch.cuh"
#include "tokens.cuh"

namespace {

using squat::Index;
using Backend = squat::CudaOf<squat::cuda::OneOf<bench::head_dim>, squat::cuda::OneOf<128>>;
using Cache = squat::KVCache<squat::half, 2, 2, Backend>;
using Context = squat::SplitContext<Cache, NcclTransport>;
using Tensors = squat::AttentionTensors<squat::half>;

constexpr bench::Shape shape = bench::llama3_8b;

struct Arguments {
  int rank = 0, ranks = 1;
  std::string address;
  int sequences = 1;
  Index tokens = 65536;
  int steps = 200;
  double time_limit = 60;
  bool check = false;
  bool graph = false;
};

/// Sequences of the same tokens, and the calls that all of them are in.
template <class Sequences>
struct Batch {
  Batch(Sequences &its_sequences, const Arguments &its_arguments, cudaStream_t its_stream)
      : sequences(&its_sequences), arguments(&its_arguments), stream(its_stream) {
    for (int i = 0; i < arguments->sequences; ++i) ids.push_back(sequences->add_sequence());
  }

  /// Appends their tokens, the first of them with queries: codings learn from these. room(sequence): how
  /// many a call may bring.
  template <class Room>
  void fill(Room &&room) {
    constexpr Index piece = 4096;
    bench::Tokens in(shape, piece, 0, stream);
    for (Index first = 0; first < arguments->tokens;) {
      Index count = std::min(piece, arguments->tokens - first);
      for (const squat::SequenceId id : ids) count = std::min(count, room(id));
      in.make(first, stream);
      for (const squat::SequenceId id : ids) {
        const std::vector batch{squat::SequenceTokens{id, count}};
        const auto k = in.k().slice(0, count), v = in.v().slice(0, count);
        if constexpr (std::is_same_v<Sequences, Cache>) {
          if (first == 0) sequences->append(batch, 0, in.q().slice(0, count), k, v, stream);
          if (first > 0) sequences->append(batch, 0, k, v, stream);
        } else {
          Tensors tensors{.k = k, .v = v};
          if (first == 0) tensors.q = in.q().slice(0, count);
          sequences->attend(batch, 0, tensors, stream);
        }
      }
      first += count;
    }
    wait();
  }

  /// A token of every sequence: the same for all.
  void step(const Tensors &tensors) {
    std::vector<squat::SequenceTokens> batch;
    for (const squat::SequenceId id : ids) batch.push_back({id, 1});
    sequences->attend(batch, 0, tensors, stream);
  }

  void wait() const { squat::cuda::check(cudaStreamSynchronize(stream), "decoding"); }

  Sequences *sequences;
  const Arguments *arguments;
  cudaStream_t stream;
  std::vector<squat::SequenceId> ids;
};

/// Takes steps by graphs, each captured where those to come are alike. wait(): for the stream.
template <class Sequences, class Wait>
class Replays {
 public:
  Replays(Batch<Sequences> &batch, Wait wait) : batch_(&batch), wait_(std::move(wait)) {
    for (const squat::SequenceId id : batch.ids) steps_.push_back({id, 1});
  }
  ~Replays() {
    if (graph_ != nullptr) (void)cudaGraphExecDestroy(graph_);
  }
  Replays(const Replays &) = delete;
  Replays &operator=(const Replays &) = delete;

  /// The next: of the tensors that the one before was of.
  void step(const Tensors &tensors) {
    if (left_ == 0) capture(tensors);
    if (left_ == 0) return batch_->step(tensors);
    squat::cuda::check(cudaGraphLaunch(graph_, batch_->stream), "replay");
    --left_;
    if (++replayed_ == page_tokens || left_ == 0) count();
  }

  /// Tells of what was replayed since.
  void count() {
    const Index steps = std::exchange(replayed_, 0);
    if constexpr (is_split) batch_->sequences->advance(steps_, steps, batch_->stream);
    if constexpr (!is_split) batch_->sequences->count_steps(steps_, steps, batch_->stream);
  }

 private:
  static constexpr Index page_tokens = 128;
  static constexpr bool is_split = std::is_same_v<Sequences, Context>;

  /// A cache's graph holds longer, and is captured anew as often as one of a split context.
  void capture(const Tensors &tensors) {
    left_ = page_tokens;
    if constexpr (is_split) left_ = batch_->sequences->steps_alike(steps_);
    if (left_ == 0) return;
    squat::cuda::check(cudaStreamBeginCapture(batch_->stream, cudaStreamCaptureModeThreadLocal),
                       "capture");
    batch_->step(tensors);
    cudaGraph_t captured = nullptr;
    squat::cuda::check(cudaStreamEndCapture(batch_->stream, &captured), "capture");
    if (graph_ != nullptr) {
      wait_();  // none of it is under way
      squat::cuda::check(cudaGraphExecDestroy(std::exchange(graph_, nullptr)), "graph");
    }
    squat::cuda::check(cudaGraphInstantiate(&graph_, captured, 0), "graph");
    squat::cuda::check(cudaGraphDestroy(captured), "graph");
  }

  Batch<Sequences> *batch_;
  Wait wait_;
  std::vector<squat::SequenceTokens> steps_;
  cudaGraphExec_t graph_ = nullptr;
  Index left_ = 0, replayed_ = 0;
};

/// Microseconds of each of `count` pieces of work, in the mean. wait: for the stream, before so much is
/// in its queue that the host would have to wait elsewhere.
template <class Wait, class Work>
double microseconds(cudaStream_t stream, int count, Wait &&wait, Work &&work) {
  constexpr int most_queued = 200;
  bench::Event begin, end;
  begin.record(stream);
  for (int i = 0; i < count; ++i) {
    if (i > 0 && i % most_queued == 0) wait();
    work();
  }
  end.record(stream);
  wait();
  return 1e6 * end.seconds_since(begin) / count;
}

std::vector<squat::half> on_host(squat::TensorView<squat::half> rows, cudaStream_t stream) {
  std::vector<squat::half> host(static_cast<std::size_t>(rows.tokens * rows.heads * rows.head_dim));
  squat::cuda::download<squat::half>(rows.data, host, stream);
  return host;
}

/// One row for every sequence, of tokens that follow one another as those of one would.
struct Rows {
  Rows(const Arguments &arguments, cudaStream_t stream)
      : in(shape, arguments.sequences, arguments.tokens, stream) {}
  Tensors tensors() { return {.q = in.q(), .k = in.k(), .v = in.v(), .out = in.out()}; }
  bench::Tokens in;
};

struct Figures {
  double step = 0, part = 0, gather = 0;  // microseconds
  double graph = 0;                       // of a step by graphs
  std::size_t bytes = 0;                  // from other ranks, of a step
  double error = 0;                       // of outputs, beside one cache's
};

constexpr int warm_up = 10;

Figures decode_alone(const Arguments &arguments, cudaStream_t stream) {
  Cache cache(bench::options_of(shape, {}, 2));
  Batch batch(cache, arguments, stream);
  batch.fill([](squat::SequenceId) { return Index{1} << 32; });
  Rows rows(arguments, stream);
  for (int i = 0; i < warm_up; ++i) batch.step(rows.tensors());
  batch.wait();
  Figures figures;
  const auto wait = [&] { batch.wait(); };
  figures.step = microseconds(stream, arguments.steps, wait, [&] { batch.step(rows.tensors()); });
  if (arguments.graph) {
    Replays replays(batch, wait);
    for (int i = 0; i < warm_up; ++i) replays.step(rows.tensors());
    batch.wait();
    figures.graph = microseconds(stream, arguments.steps, wait, [&] { replays.step(rows.tensors()); });
    replays.count();
  }
  cache.check(stream);
  return figures;
}

Figures decode(const Arguments &arguments, cudaStream_t stream) {
  NcclTransport transport(arguments.rank, arguments.ranks, arguments.address, arguments.time_limit);
  const squat::Options options = bench::options_of(shape, {}, 2);
  Cache cache(options);
  Context context(cache, transport);
  Batch batch(context, arguments, stream);
  batch.fill([&](squat::SequenceId id) { return context.room(id); });
  Rows rows(arguments, stream);
  const auto meet = [&] {
    const std::vector<std::byte> mine(1);
    std::vector<std::byte> all(static_cast<std::size_t>(transport.ranks()));
    transport.all_gather(mine, all);
  };
  for (int i = 0; i < warm_up; ++i) batch.step(rows.tensors());
  transport.wait(stream);
  Figures figures;
  meet();
  const std::size_t bytes = transport.bytes();
  const auto wait = [&] { transport.wait(stream); };
  figures.step = microseconds(stream, arguments.steps, wait, [&] { batch.step(rows.tensors()); });
  cache.check(stream);
  figures.bytes = (transport.bytes() - bytes) / static_cast<std::size_t>(arguments.steps);

  Replays replays(batch, wait);
  if (arguments.graph) {
    for (int i = 0; i < warm_up; ++i) replays.step(rows.tensors());
    wait();
    meet();
    figures.graph = microseconds(stream, arguments.steps, wait, [&] { replays.step(rows.tensors()); });
    replays.count();
    cache.check(stream);
  }

  // A rank's own part, and the all-gather, alone.
  std::vector<squat::SequenceTokens> part;
  for (const squat::SequenceId id : batch.ids) part.push_back({context.local(id, arguments.rank), 1});
  Tensors read{.q = rows.in.q(), .out = rows.in.out(), .causal = false};
  const double own =
      microseconds(stream, arguments.steps, wait, [&] { cache.attend(part, 0, read, stream); });
  std::vector<double> parts(static_cast<std::size_t>(arguments.ranks));
  transport.all_gather(std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(parts)));
  figures.part = *std::max_element(parts.begin(), parts.end());
  const std::size_t share = figures.bytes / static_cast<std::size_t>(arguments.ranks - 1);
  const squat::cuda::DeviceBuffer<std::byte> mine(share),
      all(share * static_cast<std::size_t>(arguments.ranks));
  const auto gather = [&] {
    transport.all_gather(std::span<const std::byte>(mine.data(), mine.size()),
                         std::span<std::byte>(all.data(), all.size()), stream);
  };
  for (int i = 0; i < warm_up; ++i) gather();
  transport.wait(stream);
  meet();
  figures.gather = microseconds(stream, arguments.steps, wait, gather);
  if (!arguments.check) return figures;

  const Index taken = (arguments.graph ? 2 : 1) * Index{warm_up + arguments.steps};
  // What comes next, over more than a run, beside one cache that has come to the same place.
  std::unique_ptr<Cache> one;
  std::unique_ptr<Batch<Cache>> in_one;
  if (arguments.rank == 0) {
    one = std::make_unique<Cache>(options);
    in_one = std::make_unique<Batch<Cache>>(*one, arguments, stream);
    in_one->fill([](squat::SequenceId) { return Index{1} << 32; });
    for (Index i = 0; i < taken; ++i) in_one->step(rows.tensors());
  }
  constexpr int checked = 300;
  for (int i = 0; i < checked; ++i) {
    rows.in.make(arguments.tokens + taken + i, stream);
    std::vector<squat::half> expected;
    if (in_one) in_one->step(rows.tensors());
    if (in_one) expected = on_host(rows.in.out(), stream);
    if (arguments.graph) replays.step(rows.tensors());
    if (!arguments.graph) batch.step(rows.tensors());
    transport.wait(stream);
    if (in_one)
      figures.error = std::max(figures.error, distance(on_host(rows.in.out(), stream), expected));
  }
  return figures;
}

void report(const Arguments &arguments, const Figures &figures) {
  int device = 0;
  cudaDeviceProp properties{};
  squat::cuda::check(cudaGetDevice(&device), "device");
  squat::cuda::check(cudaGetDeviceProperties(&properties, device), "device");
  std::printf(
      "{\"device\": \"%s\", \"gpus\": %d, \"sequences\": %d, \"tokens\": %td, \"shape\": \"%s\", "
      "\"bits\": 2, \"step_us\": %.2f, \"graph_us\": %.2f, \"part_us\": %.2f, \"gather_us\": %.2f, "
      "\"bytes\": %zu, \"error\": %.2g}\n",
      properties.name, arguments.ranks, arguments.sequences, arguments.tokens, shape.name().c_str(),
      figures.step, figures.graph, figures.part, figures.gather, figures.bytes, figures.error);
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app("Decodes over contexts that are split over GPUs, a process each.");
  app.add_option("--rank", arguments.rank, "Which of the processes this is");
  app.add_option("--ranks", arguments.ranks, "How many there are")->check(CLI::Range(1, 4096));
  app.add_option("--address", arguments.address,
                 "A file that is not there, by which ranks find each other");
  app.add_option("--sequences", arguments.sequences, "Sequences of a batch")->check(CLI::Range(1, 4096));
  app.add_option("--tokens", arguments.tokens, "Tokens of each")
      ->check(CLI::Range(1024, 1 << 24))
      ->capture_default_str();
  app.add_option("--steps", arguments.steps, "Tokens to decode")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--time-limit", arguments.time_limit, "Seconds to wait for the other ranks");
  app.add_flag("--check", arguments.check, "Compare with one cache of all tokens, at rank 0");
  app.add_flag("--graph", arguments.graph, "Replay steps that are alike, too");
  CLI11_PARSE(app, argc, argv);
  constexpr double tolerance = 5e-3;  // as over MPI, see main.cpp
  try {
    int devices = 0;
    squat::cuda::check(cudaGetDeviceCount(&devices), "devices");
    squat::cuda::check(cudaSetDevice(arguments.rank % std::max(1, devices)), "device");
    cudaStream_t stream = nullptr;
    squat::cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    const Figures figures =
        arguments.ranks == 1 ? decode_alone(arguments, stream) : decode(arguments, stream);
    if (arguments.rank == 0) report(arguments, figures);
    squat::cuda::check(cudaStreamDestroy(stream), "stream");
    return figures.error <= tolerance ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::fflush(stderr);
    std::_Exit(EXIT_FAILURE);  // what waits for other ranks would wait on
  }
}
