// Attention of one layer on the CPU, ours beside ggml's: decode steps and longer calls over the same
// keys and values. See README.md beside this file.

#include <fmt/format.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <exception>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "ggml/contender.hpp"
#include "squat/parallel/thread_pool.hpp"

namespace {

using bench::Coding;
using squat::Index;

struct Arguments {
  int threads = 1;
  int rounds = 9;
  int layers = 0;
  double milliseconds = 20;
  std::vector<std::string> types{"f16", "q8_0", "q4_0", "q4_1", "iq4_nl"};
  std::string filter;
  std::string json;
};

/// Attention of the last `queries` of `tokens` cached tokens.
struct Case {
  Index tokens, queries;
};

/// Those over equally many tokens share their caches and take turns.
constexpr Case cases[] = {{512, 1}, {4096, 1}, {4096, 16}, {4096, 128}, {4096, 512}, {16384, 1}};

/// So many that all layers have 64 MiB of float16 rows: more than a core finds in its caches.
int default_layers(Index tokens) { return static_cast<int>(std::max<Index>(1, 16384 / tokens)); }

/// One coding in one case.
struct Entry {
  Case of;
  Coding coding;
  int layers;
  std::shared_ptr<bench::Contender> cache;  ///< until it is timed
  bench::Attention attention;
  double bytes_per_token;
  double error = 0;  ///< of the output, relative, to attention over the floats in double precision
  std::vector<double> milliseconds{};  ///< a call, one figure a round
  int next_layer = 0;

  double median() const {
    std::vector<double> sorted = milliseconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

using Entries = std::vector<Entry>;

/// CPU time of this thread, so that other programs on the machine count only for the memory they use.
/// With several threads the clock's, for ggml's wait busily.
double seconds_now(int threads) {
  timespec time{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Calls, each in the layer behind the last one's, until they have taken as long as they are to.
void time_round(Entry &entry, const Arguments &arguments) {
  const double start = seconds_now(arguments.threads);
  double passed = 0;
  int calls = 0;
  do {
    entry.attention.run(entry.next_layer);
    entry.next_layer = (entry.next_layer + 1) % entry.layers;
    ++calls;
    passed = 1e3 * (seconds_now(arguments.threads) - start);
  } while (passed < arguments.milliseconds);
  entry.milliseconds.push_back(passed / calls);
}

/// Of the last 16 queries: double precision takes its time.
double error_of(const Entry &entry, squat::test::Inputs<> &rows) {
  entry.attention.run(0);
  const Case of = entry.of;
  const Index checked = std::min<Index>(of.queries, 16), past = of.tokens - checked;
  return squat::test::attention_distance<float>(rows.q.view(past, checked), rows.k.view(), rows.v.view(),
                                                entry.attention.out.slice(of.queries - checked, checked),
                                                past);
}

/// The cases over `tokens` tokens whose names the filter finds, caches filled and outputs checked.
Entries make_entries(Index tokens, const std::vector<Coding> &codings, squat::test::Inputs<> &rows,
                     const Arguments &arguments) {
  const std::regex filter(arguments.filter);
  const int layers = arguments.layers > 0 ? arguments.layers : default_layers(tokens);
  std::vector<std::shared_ptr<bench::Contender>> caches(codings.size());
  Entries entries;
  for (const Case &of : cases) {
    if (of.tokens != tokens) continue;
    for (std::size_t i = 0; i < codings.size(); ++i) {
      const std::string name = fmt::format("{}/{}/{}", codings[i].full_name(), tokens, of.queries);
      if (!std::regex_search(name, filter)) continue;
      if (!caches[i]) caches[i] = codings[i].make({rows, tokens, layers});
      entries.push_back({of, codings[i], layers, caches[i],
                         caches[i]->attention(rows.q.view(tokens - of.queries, of.queries)),
                         caches[i]->bytes_per_token()});
      entries.back().error = error_of(entries.back(), rows);
    }
  }
  return entries;
}

/// What the entries of one case are compared with; NaN where a filter has left it out.
struct Baselines {
  double exact = std::numeric_limits<double>::quiet_NaN();  ///< ours
  double peer = std::numeric_limits<double>::quiet_NaN();   ///< ggml's fastest quantized type

  void add(const Entry &entry) {
    const bool ours = entry.coding.library == "squat";
    if (ours && entry.coding.exact) exact = entry.median();
    if (!ours && !entry.coding.exact) peer = std::fmin(peer, entry.median());
  }
};

void print_table(const Entries &entries) {
  for (const Case &of : cases) {
    Baselines baselines;
    const auto for_each = [&](auto &&visit) {
      for (const Entry &entry : entries) {
        if (entry.of.tokens == of.tokens && entry.of.queries == of.queries) visit(entry);
      }
    };
    for_each([&](const Entry &entry) { baselines.add(entry); });
    bool begun = false;
    for_each([&](const Entry &entry) {
      if (!std::exchange(begun, true)) {
        fmt::print("\n{} quer{} over {} tokens, {} layer(s)\n\n", of.queries,
                   of.queries == 1 ? "y" : "ies", of.tokens, entry.layers);
        fmt::print(
            "| coding | ms | times as fast as exact | as ggml's best | bytes a token | error |\n");
        fmt::print("|---|---|---|---|---|---|\n");
      }
      fmt::print("| {} | {:.3f} | {:.2f} | {:.2f} | {:.0f} | {:.4f} |\n", entry.coding.full_name(),
                 entry.median(), baselines.exact / entry.median(), baselines.peer / entry.median(),
                 entry.bytes_per_token, entry.error);
    });
  }
}

nlohmann::json as_json(const Entries &entries, const Arguments &arguments) {
  nlohmann::json results = nlohmann::json::array();
  for (const Entry &entry : entries) {
    results.push_back({{"library", entry.coding.library},
                       {"coding", entry.coding.name},
                       {"tokens", entry.of.tokens},
                       {"queries", entry.of.queries},
                       {"layers", entry.layers},
                       {"median_ms", entry.median()},
                       {"rounds_ms", entry.milliseconds},
                       {"bytes_per_token", entry.bytes_per_token},
                       {"relative_error", entry.error}});
  }
  return {{"context",
           {{"compiler", __VERSION__},
            {"squat_instruction_set", bench::squat_instruction_set()},
            {"ggml_instruction_set", bench::ggml_instruction_set()},
            {"ggml_source", bench::ggml_source()},
            {"threads", arguments.threads},
            {"clock", arguments.threads == 1 ? "cpu" : "wall"}}},
          {"results", results}};
}

/// Rows of float16 err by 0.0003, with ik_llama.cpp's bfloat16 by 0.003; llama.cpp's own sums of float16
/// by 0.02 over 16,384 tokens.
void check_exact(const Entries &entries) {
  for (const Entry &entry : entries) {
    if (entry.coding.exact && !(entry.error < .05)) {
      throw std::runtime_error(fmt::format("{} over {} tokens errs by {:.3f} of its RMS, at most 0.05",
                                           entry.coding.full_name(), entry.of.tokens, entry.error));
    }
  }
}

void compare(const Arguments &arguments) {
  squat::ThreadPool pool(static_cast<unsigned>(arguments.threads));
  std::vector<Coding> codings;
  const auto add = [&](const std::vector<Coding> &more) {
    codings.insert(codings.end(), more.begin(), more.end());
  };
  for (const bench::RowOrder order : {bench::RowOrder::by_token, bench::RowOrder::by_head}) {
    add(bench::ggml_codings(arguments.types, order, arguments.threads));
  }
  add(bench::squat_codings(arguments.threads == 1 ? squat::Parallel() : pool.parallel()));
  fmt::print("{}, squat: {}, ggml: {}, {} thread(s)\n", __VERSION__, bench::squat_instruction_set(),
             bench::ggml_instruction_set(), arguments.threads);
  Entries all;
  for (const Index tokens : {512, 4096, 16384}) {
    const squat::Options shape{
        .query_heads = bench::query_heads, .kv_heads = bench::kv_heads, .head_dim = bench::head_dim};
    squat::test::Inputs<> rows(shape, tokens, 1);
    squat::test::embed(rows, bench::rotary_table());
    Entries entries = make_entries(tokens, codings, rows, arguments);
    check_exact(entries);
    for (int round = 0; round < arguments.rounds; ++round) {
      for (Entry &entry : entries) time_round(entry, arguments);
    }
    for (Entry &entry : entries) {
      entry.attention = {};
      entry.cache.reset();
    }
    print_table(entries);
    std::move(entries.begin(), entries.end(), std::back_inserter(all));
  }
  if (!arguments.json.empty()) {
    std::ofstream(arguments.json) << as_json(all, arguments).dump(2) << '\n';
  }
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app(
      "Times attention over our caches and over ggml's, one layer of 32 query heads on 8 KV heads.");
  app.option_defaults()->always_capture_default();
  app.add_option("--threads", arguments.threads,
                 "Threads; with one its CPU time counts, else the clock's")
      ->check(CLI::Range(1, 256));
  app.add_option("--types", arguments.types, "ggml's types of keys and values")->delimiter(',');
  app.add_option("--filter", arguments.filter,
                 "Regular expression of LIBRARY CODING/TOKENS/QUERIES, for example '/4096/1$'");
  app.add_option("--layers", arguments.layers,
                 "Layers that calls take in turn; 0: so many that float16 rows are 64 MiB")
      ->check(CLI::Range(0, 1024));
  app.add_option("--rounds", arguments.rounds, "Rounds, of which the median counts")
      ->check(CLI::Range(1, 1000));
  app.add_option("--milliseconds", arguments.milliseconds, "What each coding takes of a round, at least")
      ->check(CLI::PositiveNumber);
  app.add_option("--json", arguments.json, "The file to write");
  CLI11_PARSE(app, argc, argv);
  try {
    compare(arguments);
  } catch (const std::exception &error) {
    fmt::print(stderr, "compare_ggml: {}\n", error.what());
    return 1;
  }
  return 0;
}
