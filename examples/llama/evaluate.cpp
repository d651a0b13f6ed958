// Measures what each coding of the cache does to a model's predictions and how fast it decodes.
//
// Teacher-forced: windows of the text, one behind the other. Each is fed as a prompt and then token by
// token, as an engine decodes. All windows advance together, a batch row each, so that the weights are
// read once a step; every window has a cache of its own, so each query meets the very cache state it
// would meet alone. A step of every coding is compared with the same step over exact caches before the
// next step begins.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <numeric>
#include <vector>

#include "cache_spec.hpp"
#include "engine.hpp"
#include "metrics.hpp"
#include "parallel_for.hpp"
#include "plot.hpp"
#include "tokenizer.hpp"

namespace {

using namespace llama;

struct Arguments {
  std::string model, text, csv, plot, prior, device = "cpu";
  int windows = 8, length = 2048, prompt = 512, first = 0;
  std::vector<std::string> codings = {"plain:k2v2:g32:w80", "orthogonal:k2v2:g64", "subspace:k2v2"};
};

/// One coding over all windows.
struct Run {
  CacheSpec spec;
  std::vector<int> sequences;  // of the engine, a window each
  std::vector<Prediction> predictions;
  double seconds = 0;  // of decoding
};

/// The tokens of the windows, which stand one behind the other in the text.
std::vector<int> read_windows(const Arguments& arguments, const Tokenizer& tokenizer) {
  const std::vector<int> tokens = encode_file(arguments.text, tokenizer);
  const auto first = static_cast<std::ptrdiff_t>(arguments.first);
  const auto wanted = static_cast<std::ptrdiff_t>(arguments.windows) * arguments.length;
  if (static_cast<std::ptrdiff_t>(tokens.size()) < first + wanted) {
    throw std::invalid_argument(
        fmt::format("{} has {} tokens, {} windows of {} from token {} on need {}", arguments.text,
                    tokens.size(), arguments.windows, arguments.length, first, first + wanted));
  }
  return {tokens.begin() + first, tokens.begin() + first + wanted};
}

/// Feeds tokens [first, first + count) of every window. Returns the logits after each window's last one.
const RowMatrix& step(Engine& engine, const Run& run, const std::vector<int>& tokens, int length,
                      int first, int count) {
  std::vector<Position> rows;
  for (int window = 0; window < static_cast<int>(run.sequences.size()); ++window) {
    for (int i = first; i < first + count; ++i) {
      rows.push_back({tokens[static_cast<std::size_t>(window * length + i)], i});
    }
  }
  return engine.forward(rows, run.sequences);
}

void show_progress(int done, int all) {
  if (!isatty(STDERR_FILENO)) return;
  fmt::print(stderr, "\r{} of {} tokens a window", done, all);
  if (done == all) fmt::print(stderr, "\n");
  std::fflush(stderr);
}

/// Decodes every window in step over all codings; runs[0] is the exact one.
void decode(Engine& engine, std::vector<Run>& runs, const std::vector<int>& tokens,
            const Arguments& arguments) {
  const int windows = arguments.windows, length = arguments.length;
  for (Run& run : runs) step(engine, run, tokens, length, 0, arguments.prompt);
  RowMatrix exact;
  for (int position = arguments.prompt; position + 1 < length; ++position) {
    for (Run& run : runs) {
      const auto start = std::chrono::steady_clock::now();
      const RowMatrix& logits = step(engine, run, tokens, length, position, 1);
      run.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (&run == &runs.front()) exact = logits;
      std::vector<Prediction> predictions(static_cast<std::size_t>(windows));
      parallel_for(windows, [&](int window) {
        const int next = tokens[static_cast<std::size_t>(window * length + position + 1)];
        predictions[static_cast<std::size_t>(window)] =
            compare(exact.row(window), logits.row(window), next);
      });
      run.predictions.insert(run.predictions.end(), predictions.begin(), predictions.end());
    }
    if (position % 16 == 0 || position + 2 == length) show_progress(position + 2, length);
  }
}

struct Row {
  Summary summary;
  double packed_bits = 0, total_bits = 0, tokens_per_second = 0, cache_bytes = 0;
};

Row measure(const Engine& engine, const Run& run) {
  Row row{.summary = summarize(run.predictions)};
  const auto windows = static_cast<double>(run.sequences.size());
  for (int sequence : run.sequences) {
    const squat::MemoryReport report = engine.memory_report(sequence);
    row.packed_bits = report.packed_bits_per_element;
    row.total_bits += report.total_bits_per_element / windows;
    row.cache_bytes += static_cast<double>(report.total()) / windows;
  }
  row.tokens_per_second = static_cast<double>(run.predictions.size()) / std::max(run.seconds, 1e-9);
  return row;
}

void write(const std::string& path, const std::string& text) {
  std::ofstream out(path);
  if (!(out << text) || !out.flush()) throw std::invalid_argument("cannot write " + path);
}

void report(const Engine& engine, const std::vector<Run>& runs, const Arguments& arguments) {
  std::string csv =
      "coding,key_bits,value_bits,group,window,sinks,packed_bits,total_bits,perplexity,kl_mean,kl_p99,"
      "top1,"
      "decode_tokens_per_second,cache_bytes\n";
  std::vector<PlotPoint> points;
  fmt::print("{:<30} {:>7} {:>7} {:>10} {:>9} {:>9} {:>7} {:>9} {:>9}\n", "coding", "packed", "total",
             "perplexity", "KL mean", "KL p99", "top-1 %", "tokens/s", "cache MB");
  for (const Run& run : runs) {
    const Row row = measure(engine, run);
    const squat::Options& options = engine.options(run.sequences.front());
    const Summary& s = row.summary;
    fmt::print("{:<30} {:>7.3f} {:>7.3f} {:>10.3f} {:>9.5f} {:>9.4f} {:>7.2f} {:>9.1f} {:>9.2f}\n",
               run.spec.text, row.packed_bits, row.total_bits, s.perplexity, s.kl_mean, s.kl_p99,
               100 * s.top1, row.tokens_per_second, 1e-6 * row.cache_bytes);
    csv += fmt::format("{},{},{},{},{},{},{:.4f},{:.4f},{:.5f},{:.7f},{:.6f},{:.5f},{:.2f},{:.0f}\n",
                       run.spec.coding + (run.spec.published ? ":published" : ""), run.spec.key_bits,
                       run.spec.value_bits, options.group, options.window, options.sinks,
                       row.packed_bits, row.total_bits, s.perplexity, s.kl_mean, s.kl_p99, s.top1,
                       row.tokens_per_second, row.cache_bytes);
    points.push_back({run.spec.text, row.total_bits, s.kl_mean});
  }
  if (!arguments.csv.empty()) write(arguments.csv, csv);
  if (!arguments.plot.empty()) write(arguments.plot, plot_svg(points));
}

void evaluate(const Arguments& arguments) {
  std::vector<Run> runs;
  runs.push_back({.spec = parse_cache_spec("exact"), .sequences = {}, .predictions = {}});
  for (const std::string& coding : arguments.codings) {
    if (coding != "exact")
      runs.push_back({.spec = parse_cache_spec(coding), .sequences = {}, .predictions = {}});
  }
  if (arguments.prompt >= arguments.length - 1) {
    throw std::invalid_argument(fmt::format("--prompt is {}, must be below --length {} minus 1",
                                            arguments.prompt, arguments.length));
  }
  const Gguf file = Gguf::open(arguments.model);
  const Tokenizer tokenizer(file);
  const std::vector<int> tokens = read_windows(arguments, tokenizer);
  const std::unique_ptr<Engine> engine = make_engine(arguments.device, file);
  if (arguments.length > engine->config().context) {
    throw std::invalid_argument(fmt::format("--length is {}, the model's context is {}",
                                            arguments.length, engine->config().context));
  }
  std::shared_ptr<const squat::Prior> prior;
  if (!arguments.prior.empty()) {
    std::ifstream in(arguments.prior, std::ios::binary);
    if (!in) throw std::invalid_argument("cannot open " + arguments.prior);
    prior = std::make_shared<squat::Prior>(squat::Prior::load(in));
  }
  for (Run& run : runs) {
    squat::Options options = run.spec.options_for(engine->config());
    if (options.coding == squat::Coding::subspace) options.prior = prior;
    options.statistics_tokens =
        std::min(arguments.prompt, options.statistics_tokens);  // short prompts count as such
    for (int window = 0; window < arguments.windows; ++window)
      run.sequences.push_back(engine->add_sequence(run.spec, options));
  }
  decode(*engine, runs, tokens, arguments);
  fmt::print("{}: {} windows of {} tokens, prompt {}\n", arguments.text, arguments.windows,
             arguments.length, arguments.prompt);
  report(*engine, runs, arguments);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app(
      "Feeds windows of a text to a Llama-architecture model (GGUF), a prompt and then token by token, "
      "and compares the "
      "predictions over coded caches with those over exact ones.\nWindows advance together, a batch row "
      "each; each has "
      "caches of its own, so every query meets the state it would meet alone.\n" +
      cache_spec_help());
  app.add_option("MODEL", arguments.model, "GGUF file")->required();
  app.add_option("TEXT-FILE", arguments.text, "Text, UTF-8")->required();
  app.add_option("--windows", arguments.windows, "Windows of the text")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--first", arguments.first, "Token of the text at which the first window begins")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--length", arguments.length, "Tokens of a window")
      ->check(CLI::Range(3, 1 << 20))
      ->capture_default_str();
  app.add_option("--prompt", arguments.prompt, "Tokens of a window's prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--codings", arguments.codings, "Codings to compare with exact")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--prior", arguments.prior,
                 "Statistics (collect_statistics) that subspace codings start from");
  app.add_option("--device", arguments.device, "Where the model and its caches are")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--csv", arguments.csv, "File for the table");
  app.add_option("--plot", arguments.plot, "File for a plot (SVG)");
  CLI11_PARSE(app, argc, argv);
  try {
    evaluate(arguments);
  } catch (const std::exception& error) {
    fmt::print(stderr, "evaluate: {}\n", error.what());
    return 1;
  }
  return 0;
}
