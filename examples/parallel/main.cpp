// Decodes over a context that is split over the ranks of an MPI job:
//
//   mpiexec -n 2 split_context --tokens 65536
//
// Queries, keys and values are drawn, each token's the same on every rank, and carry a rotary embedding.
// The context is appended without attention, as an engine does that computes a prompt's attention
// itself; then each step appends a token and attends to all of it. Prints what a step takes by the
// clock, how much of that is waiting for other ranks, and the time on a core that the slowest rank
// computes for, which other programs on the machine hardly change. With --check, rank 0 keeps a cache of
// all tokens besides, and compares.

#include <mpi.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <optional>
#include <span>
#include <squat/squat.hpp>
#include <vector>

#include "distance.hpp"
#include "mpi_transport.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/parallel/split_context.hpp"

namespace {

using squat::Index;
using Cache = squat::KVCache<squat::half, 2>;
using Rows = squat::TensorView<float>;

struct Arguments {
  squat::Options options{.layers = 1, .query_heads = 32, .kv_heads = 8, .head_dim = 128};
  Index tokens = 65536;
  int steps = 50;
  double time_limit = 30;
  bool check = false;
  int kill_rank = -1;
  int kill_step = 0;
};

/// The queries, keys and values of some tokens.
class Tokens {
 public:
  Tokens(const squat::Options &options, Index count)
      : table_(options.rotary.front()),
        q_(elements(count, options.query_heads, options.head_dim)),
        k_(elements(count, options.kv_heads, options.head_dim)),
        v_(k_),
        q(q_.data(), count, options.query_heads, options.head_dim),
        k(k_.data(), count, options.kv_heads, options.head_dim),
        v(v_.data(), count, options.kv_heads, options.head_dim) {}

  /// Draws those of the tokens from `first` on.
  void draw(Index first) {
    draw(q, first, 1);
    draw(k, first, 2);
    draw(v, first, 3);
    for (const Rows &rows : {q, k}) {
      for (Index token = 0; token < rows.tokens; ++token) {
        const squat::Turn turn(table_, first + token);
        for (Index head = 0; head < rows.heads; ++head) turn.apply(rows.row(token, head));
      }
    }
  }

 private:
  static std::vector<float> elements(Index tokens, Index heads, Index channels) {
    return std::vector<float>(static_cast<std::size_t>(tokens * heads * channels));
  }

  /// Channels are like the one before them, as those of models are in some directions more than others.
  static void draw(Rows rows, Index first, std::uint64_t kind) {
    for (Index token = 0; token < rows.tokens; ++token) {
      std::uint64_t state = 4 * static_cast<std::uint64_t>(first + token) + kind;
      for (Index head = 0; head < rows.heads; ++head) {
        float last = 0;
        for (Index i = 0; i < rows.head_dim; ++i) {
          // A step of SplitMix64 (Steele, Lea and Flood, 2014); its two halves add up to a triangle.
          std::uint64_t bits = state += 0x9e3779b97f4a7c15u;
          bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
          bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
          bits ^= bits >> 31;
          const float drawn = static_cast<float>(static_cast<std::int32_t>(bits)) +
                              static_cast<float>(static_cast<std::int32_t>(bits >> 32));
          rows.row(token, head)[i] = last = .7f * last + drawn * 5e-10f;
        }
      }
    }
  }

  const squat::RotaryTable &table_;
  std::vector<float> q_, k_, v_;

 public:
  const Rows q, k, v;
};

struct Figures {
  std::vector<double> steps, waits;  // seconds by the clock, of each step
  double computing = 0;              // seconds on a core, of the slowest rank's best step
  double gather = 0;                 // seconds by the clock, of the fastest all_gather
  std::size_t bytes = 0;             // from other ranks, of a step
  double error = 0;                  // the largest of a step, beside one cache
};

Figures decode(const Arguments &arguments, MpiTransport &transport) {
  Cache cache(arguments.options);
  squat::SplitContext context(cache, transport);
  const squat::SequenceId sequence = context.add_sequence();
  std::optional<Cache> one;
  if (arguments.check && transport.rank() == 0) one.emplace(arguments.options);
  const squat::SequenceId in_one = one ? one->add_sequence() : squat::SequenceId{};

  // Codings learn from the first tokens, whose queries come along.
  constexpr Index piece = 1024;
  for (Index first = 0; first < arguments.tokens;) {
    const Index count = std::min({piece, arguments.tokens - first, context.room(sequence)});
    Tokens tokens(arguments.options, count);
    tokens.draw(first);
    const std::vector batch{squat::SequenceTokens{sequence, count}};
    const auto queries = first == 0 ? tokens.q : Rows();
    context.attend(batch, 0, squat::AttentionTensors<float>{.q = queries, .k = tokens.k, .v = tokens.v});
    if (one && first == 0) one->append(in_one, 0, tokens.q, tokens.k, tokens.v);
    if (one && first > 0) one->append(in_one, 0, tokens.k, tokens.v);
    first += count;
  }

  Figures figures;
  double computing = std::numeric_limits<double>::max();
  Tokens token(arguments.options, 1);
  std::vector<float> out(static_cast<std::size_t>(token.q.heads * token.q.head_dim)), expected(out);
  const Rows rows(out.data(), 1, token.q.heads, token.q.head_dim);
  for (int step = 0; step < arguments.steps; ++step) {
    if (transport.rank() == arguments.kill_rank && step == arguments.kill_step) std::raise(SIGKILL);
    token.draw(arguments.tokens + step);
    const std::vector batch{squat::SequenceTokens{sequence, 1}};
    const Seconds waited = transport.seconds();
    const std::size_t bytes = transport.bytes();
    const Seconds begin = Seconds::now();
    context.attend(
        batch, 0, squat::AttentionTensors<float>{.q = token.q, .k = token.k, .v = token.v, .out = rows});
    const Seconds took = Seconds::now() - begin, wait = transport.seconds() - waited;
    figures.steps.push_back(took.clock);
    figures.waits.push_back(wait.clock);
    computing = std::min(computing, (took - wait).core);
    figures.bytes = transport.bytes() - bytes;
    if (!one) continue;
    one->attend(in_one, 0, token.q, token.k, token.v,
                Rows(expected.data(), 1, rows.heads, rows.head_dim));
    figures.error = std::max(figures.error, distance(out, expected));
  }
  std::vector<double> of_ranks(static_cast<std::size_t>(transport.ranks()));
  transport.all_gather(std::as_bytes(std::span(&computing, 1)),
                       std::as_writable_bytes(std::span(of_ranks)));
  figures.computing = *std::max_element(of_ranks.begin(), of_ranks.end());
  figures.gather = *std::min_element(figures.waits.begin(), figures.waits.end());
  return figures;
}

/// Returns whether the outputs were those of one cache, where that was asked.
bool report(const Arguments &arguments, const Figures &figures, int ranks) {
  std::vector<double> steps = figures.steps;
  std::sort(steps.begin(), steps.end());
  const auto best = std::min_element(figures.steps.begin(), figures.steps.end());
  const double wait = figures.waits[static_cast<std::size_t>(best - figures.steps.begin())];
  std::printf("%td tokens, ranks: %d\n", arguments.tokens, ranks);
  std::printf("a step takes %.0f us at best, %.1f %% of it waiting for others, and %.0f in the median\n",
              1e6 * *best, 100 * wait / *best, 1e6 * steps[steps.size() / 2]);
  std::printf(
      "the slowest rank computes for %.0f us on a core; others send %zu bytes, in %.1f us at best\n",
      1e6 * figures.computing, figures.bytes, 1e6 * figures.gather);
  if (!arguments.check) return true;
  constexpr double tolerance = 5e-3;  // of queries and weights that kernels round to 8 bits
  std::printf("outputs differ from one cache's by %.2g at most, %g are allowed\n", figures.error,
              tolerance);
  return figures.error <= tolerance;
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app("Decodes over a context that is split over the ranks of an MPI job.");
  app.add_option("--tokens", arguments.tokens, "Tokens of the context")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--steps", arguments.steps, "Tokens to decode")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--time-limit", arguments.time_limit, "Seconds to wait for the other ranks")
      ->capture_default_str();
  app.add_flag("--check", arguments.check, "Compare with one cache of all tokens, at rank 0");
  app.add_option("--kill-rank", arguments.kill_rank, "A rank that dies, to see what the others do");
  app.add_option("--kill-step", arguments.kill_step, "When it does");
  CLI11_PARSE(app, argc, argv);
  std::vector<float> frequencies;
  for (int pair = 0; pair < arguments.options.head_dim / 2; ++pair)
    frequencies.push_back(std::pow(
        1e4f, -2.0f * static_cast<float>(pair) / static_cast<float>(arguments.options.head_dim)));
  arguments.options.rotary = {{.inverse_frequencies = frequencies}};

  MPI_Init(&argc, &argv);
  bool good = false;
  try {
    MpiTransport transport(MPI_COMM_WORLD, arguments.time_limit);
    const Figures figures = decode(arguments, transport);
    good = transport.rank() != 0 || report(arguments, figures, transport.ranks());
  } catch (const std::exception &error) {
    // Ranks that are left cannot meet in MPI_Finalize().
    std::fprintf(stderr, "%s\n", error.what());
    std::_Exit(EXIT_FAILURE);
  }
  MPI_Finalize();
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
