// Measures what each coding of the cache does to a model's predictions.
//
// Teacher-forced: windows of the text, one behind the other. Each is fed as a prompt and then token by
// token, as an engine decodes. Windows and codings advance together, a batch row each, so that the
// weights are read once a step (decode_windows.hpp).

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <vector>

#include "cache_spec.hpp"
#include "decode_windows.hpp"
#include "engine.hpp"
#include "metrics.hpp"
#include "plot.hpp"
#include "text_windows.hpp"
#include "tokenizer.hpp"

namespace {

using namespace engine;

struct Arguments : TextWindows {
  Arguments() : TextWindows{.windows = 8, .length = 2048, .prompt = 512} {}

  std::string csv, plot, prior, device = "cpu";
  int batch = 32;
  std::vector<std::string> codings = {"plain:k2v2:g32:w80", "orthogonal:k2v2:g64", "subspace:k2v2"};
};

void show_progress(int done, int all) {
  if (!isatty(STDERR_FILENO)) return;
  fmt::print(stderr, "\r{} of {} tokens{}", done, all, done == all ? "\n" : "");
  std::fflush(stderr);
}

struct Row {
  Summary summary;
  double packed_bits = 0, total_bits = 0, cache_bytes = 0;
};

Row measure(const CodingRun &run) {
  Row row{.summary = summarize(run.predictions)};
  const auto windows = static_cast<double>(run.memory.size());
  for (const squat::MemoryReport &memory : run.memory) {
    row.packed_bits = memory.packed_bits_per_element;
    row.total_bits += memory.total_bits_per_element / windows;
    row.cache_bytes += static_cast<double>(memory.total()) / windows;
  }
  return row;
}

void write(const std::string &path, const std::string &text) {
  std::ofstream out(path);
  if (!(out << text) || !out.flush()) throw std::invalid_argument("cannot write " + path);
}

void report(const std::vector<CodingRun> &runs, const Arguments &arguments) {
  std::string csv =
      "coding,key_bits,value_bits,group,window,sinks,packed_bits,total_bits,perplexity,kl_mean,kl_p99,"
      "top1,cache_bytes\n";
  std::vector<PlotPoint> points;
  fmt::print("{:<34} {:>7} {:>7} {:>10} {:>9} {:>9} {:>7} {:>9}\n", "coding", "packed", "total",
             "perplexity", "KL mean", "KL p99", "top-1 %", "cache MB");
  for (const CodingRun &run : runs) {
    const Row row = measure(run);
    const squat::Options &options = run.options.groups.front().options;
    const Summary &s = row.summary;
    fmt::print("{:<34} {:>7.3f} {:>7.3f} {:>10.3f} {:>9.5f} {:>9.4f} {:>7.2f} {:>9.2f}\n", run.spec.text,
               row.packed_bits, row.total_bits, s.perplexity, s.kl_mean, s.kl_p99, 100 * s.top1,
               1e-6 * row.cache_bytes);
    csv += fmt::format("{},{},{},{},{},{},{:.4f},{:.4f},{:.5f},{:.7f},{:.6f},{:.5f},{:.0f}\n",
                       run.spec.coding + (run.spec.published ? ":published" : ""), run.spec.key_bits,
                       run.spec.value_bits, options.page_tokens, options.residual, options.sinks,
                       row.packed_bits, row.total_bits, s.perplexity, s.kl_mean, s.kl_p99, s.top1,
                       row.cache_bytes);
    points.push_back({run.spec.text, row.total_bits, s.kl_mean});
  }
  if (!arguments.csv.empty()) write(arguments.csv, csv);
  if (!arguments.plot.empty()) write(arguments.plot, plot_svg(points));
}

/// Subspace codings get what collect_statistics wrote: a prior of each group of layers.
void set_priors(const std::string &path, std::vector<CodingRun> &runs) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::invalid_argument("cannot open " + path);
  for (std::size_t group = 0; group < runs.front().options.groups.size(); ++group) {
    const auto prior = std::make_shared<squat::Prior>(squat::Prior::load(in));
    for (CodingRun &run : runs) {
      squat::Options &options = run.options.groups[group].options;
      if (options.coding == squat::Coding::subspace) options.prior = prior;
    }
  }
}

void evaluate(const Arguments &arguments) {
  std::vector<CodingRun> runs;
  for (const CacheSpec &spec : parse_codings(arguments.codings))
    runs.push_back({.spec = spec, .options = {}});
  arguments.check_prompt();
  const Gguf file = Gguf::open(arguments.model);
  const Tokenizer tokenizer(file);
  const std::vector<int> tokens =
      arguments.cut(encode_file(arguments.text, tokenizer), tokenizer.begin_of_text());
  const std::unique_ptr<Engine> engine = make_engine(arguments.device, file);
  arguments.check_context(engine->config().context);
  for (CodingRun &run : runs) {
    run.options = run.spec.options_for(engine->config());
    for (squat::LayerGroup &group : run.options.groups) {
      int &tokens_to_learn = group.options.statistics_tokens;
      tokens_to_learn = std::min(arguments.prompt, tokens_to_learn);  // short prompts count as such
    }
  }
  if (!arguments.prior.empty()) set_priors(arguments.prior, runs);
  const Windows windows{tokens, arguments.windows, arguments.length, arguments.prompt};
  const auto start = std::chrono::steady_clock::now();
  decode_windows(*engine, windows, arguments.batch, runs,
                 [&](int done) { show_progress(done, arguments.windows * arguments.length); });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  fmt::print("{}: {} window{} of {} tokens, prompt {}, over {} caches in {:.1f} s\n", arguments.text,
             arguments.windows, arguments.windows == 1 ? "" : "s", arguments.length, arguments.prompt,
             runs.size(), seconds.count());
  report(runs, arguments);
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app(
      "Feeds windows of a text to a model (GGUF), a prompt and then token by token, "
      "and compares the predictions over coded caches with those over exact ones.\n"
      "Windows and codings advance together, a batch row each; each has a cache of its own, so every "
      "query meets the state it would meet alone.\n" +
      cache_spec_help());
  arguments.add_options(app);
  app.add_option("--codings", arguments.codings, "Codings to compare with exact")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--batch", arguments.batch,
                 "Most caches that advance together: a window needs one for every coding and an exact "
                 "one; one window goes at least. More read the weights less often and take more memory")
      ->check(CLI::Range(1, 1024))
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
  } catch (const std::exception &error) {
    fmt::print(stderr, "evaluate: {}\n", error.what());
    return 1;
  }
  return 0;
}
