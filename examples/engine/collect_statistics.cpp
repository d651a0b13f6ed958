// Collects the statistics of queries and keys over a text, for Options::prior of later caches of the
// same model.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cache_spec.hpp"
#include "model.hpp"
#include "squat/squat.hpp"
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
  Model model(file);
  const Config &config = model.config();
  if (config.attention_window > 0)
    throw std::invalid_argument("layers that attend through a window are in a cache of their own");
  // An exact cache: what it collects is not coloured by any coding.
  squat::Options options = parse_cache_spec("exact").options_for(config);
  options.tile_tokens = arguments.frame;
  options.keep_statistics = true;
  squat::KVCache<squat::half, 16> cache(options);
  for (std::size_t first = 0; first < tokens.size();
       first += static_cast<std::size_t>(arguments.length)) {
    const std::size_t count =
        std::min(tokens.size() - first, static_cast<std::size_t>(arguments.length));
    std::vector<Position> rows;
    for (std::size_t i = 0; i < count; ++i) rows.push_back({tokens[first + i], static_cast<int>(i)});
    const squat::SequenceId sequence = cache.add_sequence();
    const auto view = [&](RowMatrix &matrix, int heads) {
      return squat::TensorView<float>(matrix.data(), matrix.rows(), heads, config.head_dim);
    };
    const auto attention = [&](int layer, RowMatrix &q, RowMatrix &k, RowMatrix &v, RowMatrix &out) {
      cache.attend(sequence, layer, view(q, config.query_heads), view(k, config.kv_heads),
                   view(v, config.kv_heads), view(out, config.query_heads));
    };
    const int last = static_cast<int>(count) - 1;
    model.forward(rows, attention, std::span(&last, 1));
    cache.remove_sequence(sequence);
  }
  std::ofstream out(arguments.out, std::ios::binary);
  if (!out) throw std::invalid_argument("cannot write " + arguments.out);
  cache.statistics().save(out);
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
