// Collects the statistics of queries and keys over a text, for Options::prior of later caches of the
// same model: of each group of layers, one behind the other.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <exception>
#include <fstream>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "cache_spec.hpp"
#include "engine.hpp"
#include "tokenizer.hpp"

namespace {

using namespace engine;

struct Arguments {
  std::string model, text, out;
  int tokens = 16384, length = 2048, frame = 256;
};

void collect(const Arguments &arguments) {
  const Gguf file = Gguf::open(arguments.model);
  const Tokenizer tokenizer(file);
  const std::vector<int> tokens =
      encode_file(arguments.text, tokenizer, static_cast<std::size_t>(arguments.tokens));
  const std::unique_ptr<Engine> engine = make_engine("cpu", file);
  // An exact cache: what it collects is not coloured by any coding.
  squat::ModelOptions options = parse_cache_spec("exact").options_for(engine->config());
  for (squat::LayerGroup &group : options.groups) {
    group.options.tile_tokens = arguments.frame;
    group.options.keep_statistics = true;
  }
  const std::unique_ptr<ModelCache> cache = engine->make_cache(options);
  for (std::size_t first = 0; first < tokens.size();
       first += static_cast<std::size_t>(arguments.length)) {
    const std::size_t count =
        std::min(tokens.size() - first, static_cast<std::size_t>(arguments.length));
    const SequenceRows rows{cache.get(), cache->add_sequence(), static_cast<squat::Index>(count)};
    engine->forward(std::span(tokens).subspan(first, count), std::span(&rows, 1));
    cache->remove_sequence(rows.sequence);
  }
  std::ofstream out(arguments.out, std::ios::binary);
  if (!out) throw std::invalid_argument("cannot write " + arguments.out);
  for (std::size_t group = 0; group < cache->groups(); ++group) cache->statistics(group).save(out);
  fmt::print("{}: statistics of {} tokens\n", arguments.out, tokens.size());
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app(
      "Collects the statistics of queries and keys that a model (GGUF) shows on a "
      "text.");
  app.add_option("MODEL", arguments.model, "GGUF file")->required();
  app.add_option("TEXT", arguments.text, "Text, UTF-8")->required();
  app.add_option("OUT", arguments.out, "File for the statistics")->required();
  app.add_option("--tokens", arguments.tokens, "Tokens of the text, at most")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--length", arguments.length, "Tokens of a sequence")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--frame", arguments.frame, "Tokens of a tile of the caches that use them")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    collect(arguments);
  } catch (const std::exception &error) {
    fmt::print(stderr, "collect_statistics: {}\n", error.what());
    return 1;
  }
  return 0;
}
