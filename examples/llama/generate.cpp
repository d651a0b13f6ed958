// Continues a prompt with a model over a packed cache.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "cache_spec.hpp"
#include "engine.hpp"
#include "tokenizer.hpp"

namespace {

using namespace llama;

struct Arguments {
  std::string model, prompt, coding = "subspace:k2v2", device = "cpu";
  int tokens = 128;
  std::uint64_t seed = 1;
  double temperature = 0;
};

/// The most likely token at temperature 0, otherwise one drawn from softmax(logits / temperature).
int sample(const Eigen::RowVectorXf& logits, double temperature, std::mt19937_64& random) {
  Eigen::Index best = 0;
  const float most = logits.maxCoeff(&best);
  if (temperature <= 0) return static_cast<int>(best);
  const Eigen::ArrayXd weights = ((logits.array() - most).cast<double>() / temperature).exp();
  std::discrete_distribution<int> choose(weights.begin(), weights.end());
  return choose(random);
}

void run(const Arguments& arguments) {
  const CacheSpec spec = parse_cache_spec(arguments.coding);
  const Gguf file = Gguf::open(arguments.model);
  const Tokenizer tokenizer(file);
  const std::unique_ptr<Engine> engine = make_engine(arguments.device, file);
  const Config& config = engine->config();
  const int sequence = engine->add_sequence(spec, spec.options_for(config));

  const std::vector<int> prompt = tokenizer.encode(arguments.prompt);
  if (prompt.empty()) throw std::invalid_argument("the prompt is empty");
  const auto room = static_cast<std::size_t>(config.context);
  if (prompt.size() + static_cast<std::size_t>(arguments.tokens) > room) {
    throw std::invalid_argument(fmt::format("prompt and tokens are {} + {}, the model's context is {}",
                                            prompt.size(), arguments.tokens, room));
  }
  const auto forward = [&](const std::vector<Position>& rows) -> Eigen::RowVectorXf {
    return engine->forward(rows, std::span(&sequence, 1)).row(0);
  };

  fmt::print("{}", arguments.prompt);
  std::fflush(stdout);
  std::mt19937_64 random(arguments.seed);
  std::vector<Position> rows;
  for (int token : prompt) rows.push_back({token, static_cast<int>(rows.size())});
  int position = static_cast<int>(rows.size()), generated = 0;
  Eigen::RowVectorXf logits = forward(rows);
  const auto start = std::chrono::steady_clock::now();
  while (generated < arguments.tokens) {
    const int token = sample(logits, arguments.temperature, random);
    if (token == tokenizer.end_of_text()) break;
    fmt::print("{}", tokenizer.decode(token));
    std::fflush(stdout);
    ++generated;
    logits = forward({{token, position++}});
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  const squat::MemoryReport report = engine->memory_report(sequence);
  const double exact = 2.0 * 2 * config.layers * config.kv_heads * config.head_dim * position;
  fmt::print("\n\n{} tokens, {:.1f} tokens/s, coding {}\n", generated, generated / seconds.count(),
             spec.text);
  fmt::print(
      "cache of {} tokens: {:.2f} MB (packed pages {:.2f}, exact rows {:.2f}, learnt {:.2f}, scratch "
      "{:.2f}); "
      "16 bit would take {:.2f} MB\n",
      position, 1e-6 * static_cast<double>(report.total()),
      1e-6 * static_cast<double>(report.pages_used), 1e-6 * static_cast<double>(report.exact),
      1e-6 * static_cast<double>(report.bases + report.statistics),
      1e-6 * static_cast<double>(report.workspace), 1e-6 * exact);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Continues a prompt with a Llama-architecture model (GGUF) over a squat::KVCache.\n" +
               cache_spec_help());
  app.add_option("MODEL", arguments.model, "GGUF file")->required();
  app.add_option("--prompt", arguments.prompt, "Text to continue")->required();
  app.add_option("--tokens", arguments.tokens, "Most tokens to generate")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--coding", arguments.coding, "How the cache is coded")->capture_default_str();
  app.add_option("--seed", arguments.seed, "Of the sampling")->capture_default_str();
  app.add_option("--temperature", arguments.temperature, "0: the most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_option("--device", arguments.device, "Where the model and its caches are")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(arguments);
  } catch (const std::exception& error) {
    fmt::print(stderr, "generate: {}\n", error.what());
    return 1;
  }
  return 0;
}
