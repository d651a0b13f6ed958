// Serves requests to a model over a packed cache: many at once, in a budget of memory.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "figures.hpp"
#include "request_lines.hpp"
#include "service.hpp"
#include "tokenizer.hpp"

namespace {

using namespace llama;
using namespace llama::serve;

struct Arguments {
  std::string model, requests, learn_from, coding = "subspace:k2v2", device = "cpu";
  double megabytes = 64;
  bool compare = false;
  Limits limits;
};

/// Serves all lines over a cache of its own. Returns what came of it, and counts lines with errors.
Figures serve_lines(Engine &engine, const Tokenizer &tokenizer, const CacheSpec &spec,
                    const Arguments &arguments, std::istream &in, std::ostream &out,
                    std::size_t &refused) {
  std::vector<int> text;
  if (!arguments.learn_from.empty()) text = encode_file(arguments.learn_from, tokenizer);
  const std::unique_ptr<Cache> cache = make_served_cache(engine, spec, text);
  Scheduler scheduler(engine, *cache, tokenizer, arguments.limits);
  Inbox inbox;
  RequestLines lines(tokenizer, inbox, out);
  std::thread reader([&] { lines.read(in); });
  serve::serve(scheduler, inbox);
  reader.join();
  refused += lines.refused();
  return scheduler.figures();
}

std::string read_all(const std::string &path) {
  std::stringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
  } else {
    std::ifstream in(path);
    if (!in) throw std::invalid_argument("cannot open " + path);
    text << in.rdbuf();
  }
  return text.str();
}

int run(const Arguments &arguments) {
  const CacheSpec spec = parse_cache_spec(arguments.coding);
  const Gguf file = Gguf::open(arguments.model);
  const Tokenizer tokenizer(file);
  const std::unique_ptr<Engine> engine = make_engine(arguments.device, file);
  std::size_t refused = 0;
  std::vector<Run> runs;
  const auto serve_with = [&](const CacheSpec &coding, std::istream &in, std::ostream &out) {
    runs.push_back({coding.text, serve_lines(*engine, tokenizer, coding, arguments, in, out, refused)});
  };
  if (arguments.requests == "-" && !arguments.compare) {
    serve_with(spec, std::cin, std::cout);
  } else {
    const std::string lines = read_all(arguments.requests);
    std::istringstream in(lines);
    serve_with(spec, in, std::cout);
    if (arguments.compare) {
      std::istringstream again(lines);
      std::ostream nowhere(nullptr);
      serve_with(parse_cache_spec("exact"), again, nowhere);
    }
  }
  fmt::print(stderr, "{}", table_of(runs));
  return refused > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app(
      "Serves requests to a Llama-architecture model (GGUF) over a squat::KVCache: continuous batching, "
      "prefixes shared, requests that wait on disk where memory runs out.\n" +
      cache_spec_help());
  app.add_option("MODEL", arguments.model, "GGUF file")->required();
  app.add_option(
         "--requests", arguments.requests,
         "File with a request a line in JSON: prompt, and if wanted id, max_tokens, temperature, "
         "seed, stop, and parent, the id of a line whose text stands before the prompt. -: "
         "standard input")
      ->required();
  app.add_option("--coding", arguments.coding, "How the cache is coded")->capture_default_str();
  app.add_option("--learn-from", arguments.learn_from,
                 "Text that the coding learns from before the first request, which else teaches it");
  app.add_option("--megabytes", arguments.megabytes, "Memory of the cache")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app.add_option("--running", arguments.limits.running, "Most requests that run at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--chunk", arguments.limits.chunk, "Tokens of a prompt that a step takes")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--disk", arguments.limits.disk, "Folder for requests that wait on disk");
  app.add_flag("--compare", arguments.compare,
               "Serves the lines again over an exact cache in the same memory");
  app.add_option("--device", arguments.device, "Where the model and its cache are")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    arguments.limits.bytes = static_cast<std::size_t>(1e6 * arguments.megabytes);
    return run(arguments);
  } catch (const std::exception &error) {
    fmt::print(stderr, "serve: {}\n", error.what());
    return 1;
  }
}
