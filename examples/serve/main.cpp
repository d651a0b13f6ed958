// Serves requests to a model over a packed cache: many at once, in a budget of memory.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "figures.hpp"
#include "request_lines.hpp"
#include "serve_http.hpp"
#include "service.hpp"
#include "tokenizer.hpp"

namespace {

using namespace engine;
using namespace engine::serve;

struct Arguments {
  std::string model, requests, learn_from, coding = "subspace:k2v2", device = "cpu";
  double megabytes = 64;
  bool compare = false;
  Limits limits;
  HttpOptions http;
};

/// Serves all lines. Returns how many were refused.
std::size_t serve_lines(Scheduler &scheduler, const Tokenizer &tokenizer, std::istream &in,
                        std::ostream &out) {
  Inbox inbox;
  RequestLines lines(tokenizer, inbox, out);
  std::jthread reader([&] { lines.read(in); });
  serve::serve(scheduler, inbox);
  reader.join();
  return lines.refused();
}

std::string read_all(std::istream &in) {
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

int run(const Arguments &arguments) {
  const CacheSpec spec = parse_cache_spec(arguments.coding);
  const Gguf file = Gguf::open(arguments.model);
  const Tokenizer tokenizer(file);
  const std::unique_ptr<Engine> engine = make_engine(arguments.device, file);
  std::vector<int> text;
  if (!arguments.learn_from.empty()) text = encode_file(arguments.learn_from, tokenizer);
  std::ifstream opened(arguments.requests);
  if (!arguments.requests.empty() && arguments.requests != "-" && !opened)
    throw std::invalid_argument("cannot open " + arguments.requests);
  std::istream &in = arguments.requests == "-" ? std::cin : opened;

  std::size_t refused = 0;
  std::vector<Run> runs;
  const auto with_cache = [&](const CacheSpec &coding, auto &&serve_with) {
    const std::unique_ptr<ModelCache> cache = make_served_cache(*engine, coding, text);
    Scheduler scheduler(*engine, *cache, tokenizer, arguments.limits);
    serve_with(scheduler);
    runs.push_back({coding.text, scheduler.figures()});
  };
  if (arguments.requests.empty()) {
    with_cache(spec, [&](Scheduler &scheduler) { serve_http(scheduler, tokenizer, arguments.http); });
  } else if (!arguments.compare) {
    with_cache(
        spec, [&](Scheduler &scheduler) { refused = serve_lines(scheduler, tokenizer, in, std::cout); });
  } else {
    std::istringstream lines(read_all(in)), again(lines.str());
    std::ostream nowhere(nullptr);
    with_cache(spec, [&](Scheduler &scheduler) {
      refused = serve_lines(scheduler, tokenizer, lines, std::cout);
    });
    with_cache(parse_cache_spec("exact"), [&](Scheduler &scheduler) {
      refused += serve_lines(scheduler, tokenizer, again, nowhere);
    });
  }
  fmt::print(stderr, "{}", table_of(runs));
  return refused > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  Limits &limits = arguments.limits;
  HttpOptions &http = arguments.http;
  CLI::App app(
      "Serves requests to a model (GGUF) over a squat::ModelCache: continuous batching, "
      "prefixes shared, requests that wait on disk where memory runs out.\n" +
      cache_spec_help());
  app.add_option("MODEL", arguments.model, "GGUF file")->required();
  CLI::Option_group &source =
      *app.add_option_group("source", "Where requests come from, one of the two");
  source.require_option(1);
  source.add_option("--requests", arguments.requests,
                    "File with a request a line in JSON: prompt, and if wanted id, max_tokens, "
                    "temperature, seed, stop, and parent, the id of a line whose text stands before the "
                    "prompt. -: standard input");
  CLI::Option *port =
      source
          .add_option("--port", http.port, "Takes HTTP there, in the shape of OpenAI's API. 0: any port")
          ->check(CLI::Range(0, 65535));
  app.add_option("--host", http.host, "Address to listen on")->capture_default_str();
  app.add_option("--open", http.limits.open_requests, "Most requests over HTTP that are open")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--body-bytes", http.limits.body_bytes, "Most bytes of a request over HTTP")
      ->capture_default_str();
  app.add_option("--prompt-tokens", http.limits.prompt_tokens,
                 "Most tokens of a prompt over HTTP; the model's context and the memory are limits too");
  app.add_option("--coding", arguments.coding, "How the cache is coded")->capture_default_str();
  app.add_option("--learn-from", arguments.learn_from,
                 "Text that the coding learns from before the first request, which else teaches it");
  app.add_option("--megabytes", arguments.megabytes, "Memory of the cache")
      ->check(CLI::Range(0.01, 1e6))
      ->capture_default_str();
  app.add_option("--running", limits.running, "Most requests that run at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--chunk", limits.chunk, "Tokens of a prompt that a step takes")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--disk", limits.disk, "Folder for requests that wait on disk");
  app.add_flag("--compare", arguments.compare,
               "Serves the lines again over an exact cache in the same memory");
  app.add_option("--device", arguments.device, "Where the model and its cache are")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    if (port->count() > 0) block_signals();
    http.model = std::filesystem::path(arguments.model).stem().string();
    limits.bytes = static_cast<std::size_t>(1e6 * arguments.megabytes);
    return run(arguments);
  } catch (const std::exception &error) {
    fmt::print(stderr, "serve: {}\n", error.what());
    return 1;
  }
}
