// Continues a prompt with a model over a packed cache.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "cache_spec.hpp"
#include "chat.hpp"
#include "engine.hpp"
#include "sample.hpp"
#include "tokenizer.hpp"

namespace {

using namespace engine;

struct Arguments {
  std::string model, prompt, prompt_file, coding = "subspace:k2v2", device = "cpu";
  int tokens = 128, prompt_tokens = 1 << 20;
  std::uint64_t seed = 1;
  double temperature = 0;
  bool chat = false;
};

std::vector<int> read_prompt(const Arguments &arguments, const Tokenizer &tokenizer) {
  if (!arguments.prompt_file.empty()) {
    std::vector<int> tokens =
        encode_file(arguments.prompt_file, tokenizer, static_cast<std::size_t>(arguments.prompt_tokens));
    if (tokenizer.begin_of_text() >= 0) tokens.insert(tokens.begin(), tokenizer.begin_of_text());
    return tokens;
  }
  if (arguments.prompt.empty()) throw std::invalid_argument("the prompt is empty");
  if (arguments.chat) return chat_prompt({{"user", arguments.prompt}}, tokenizer);
  return tokenizer.encode_prompt(arguments.prompt);
}

/// The text that the continuation is printed behind: of a file's tokens only the last.
void show_prompt(const Arguments &arguments, const Tokenizer &tokenizer, std::span<const int> prompt) {
  constexpr std::size_t most = 60;
  if (!arguments.prompt_file.empty()) {
    fmt::print("The prompt, {} tokens of {}, ends:\n", prompt.size(), arguments.prompt_file);
    if (prompt.size() > most) {
      prompt = prompt.last(most);
      fmt::print("...");
    }
  }
  for (int token : prompt) fmt::print("{}", tokenizer.decode(token));
  fmt::print("{}", arguments.prompt_file.empty() ? "" : " >>>");
  std::fflush(stdout);
}

/// What the cache takes, line by line, and what the same tokens would take in 16 bits.
void report_memory(const ModelCache &cache, const CacheSpec &spec, const Config &config, int tokens) {
  const squat::MemoryReport report = cache.memory_report();
  const bool tail_in_bytes = cache.group(0).options().tail == squat::TailCoding::int8;
  const auto line = [](std::size_t bytes, const std::string &what) {
    if (bytes > 0) fmt::print("{:>8.2f} MB  {}\n", 1e-6 * static_cast<double>(bytes), what);
  };
  const auto count = [](int x) { return static_cast<std::size_t>(x); };
  const std::size_t exact = 2 * sizeof(squat::half) * count(config.layers) * count(config.kv_heads) *
                            count(config.head_dim) * count(tokens);
  fmt::print("\nThe cache ({}) holds {} tokens in {} layers:\n", spec.text, tokens, config.layers);
  line(report.pages_used,
       fmt::format("packed pages: {} tokens at {:.3g} bits an element, all that grows with the text",
                   report.packed_tokens / config.layers, report.packed_bits_per_element));
  line(report.exact,
       fmt::format("not packed: the first tokens in 16 bits, the newest in {}, {} now, with room for a "
                   "page to fill",
                   tail_in_bytes ? 8 : 16, report.exact_tokens / config.layers));
  line(report.bases, "what the coding learnt: the same at any length, and all sequences share it");
  line(report.statistics,
       fmt::format("statistics that the coding learns from: dropped once it has seen {} tokens",
                   spec.options.statistics_tokens));
  line(report.pages - report.pages_used, "free pages, laid in for the tokens to come");
  line(report.workspace, "workspace of the calls: all sequences share it");
  line(report.total(), "together");
  line(exact, fmt::format("would hold the same tokens in 16 bits, {:.1f} times as much",
                          static_cast<double>(exact) / static_cast<double>(report.total())));
}

void run(const Arguments &arguments) {
  const CacheSpec spec = parse_cache_spec(arguments.coding);
  const Gguf file = Gguf::open(arguments.model);
  const Tokenizer tokenizer(file);
  const std::vector<int> prompt = read_prompt(arguments, tokenizer);
  const std::unique_ptr<Engine> engine = make_engine(arguments.device, file);
  const Config &config = engine->config();
  const auto room = static_cast<std::size_t>(config.context);
  if (prompt.size() + static_cast<std::size_t>(arguments.tokens) > room) {
    throw std::invalid_argument(fmt::format("prompt and tokens are {} + {}, the model's context is {}",
                                            prompt.size(), arguments.tokens, room));
  }
  const std::unique_ptr<ModelCache> cache = engine->make_cache(spec.options_for(config));
  const squat::SequenceId sequence = cache->add_sequence();
  const auto forward = [&](std::span<const int> tokens) -> Eigen::RowVectorXf {
    const SequenceRows rows{cache.get(), sequence, static_cast<squat::Index>(tokens.size())};
    return engine->forward(tokens, std::span(&rows, 1)).row(0);
  };
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  show_prompt(arguments, tokenizer, prompt);
  std::mt19937_64 random(arguments.seed);
  int generated = 0;
  const auto start = Clock::now();
  Eigen::RowVectorXf logits = forward(prompt);
  const auto prompt_end = Clock::now();
  while (generated < arguments.tokens) {
    const int token = sample(logits, arguments.temperature, random);
    if (token == tokenizer.end_of_text() || (arguments.chat && token == end_of_message(tokenizer)))
      break;
    fmt::print("{}", tokenizer.decode(token));
    std::fflush(stdout);
    ++generated;
    logits = forward(std::span(&token, 1));
  }
  const Seconds reading = prompt_end - start, writing = Clock::now() - prompt_end;
  fmt::print(
      "\n\nprompt: {} tokens in {:.1f} s, all at once; then {} tokens in {:.1f} s, {:.1f} a second\n",
      prompt.size(), reading.count(), generated, writing.count(), generated / writing.count());
  report_memory(*cache, spec, config, static_cast<int>(cache->length(sequence)));
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app("Continues a prompt with a model (GGUF) over a squat::ModelCache.\n" + cache_spec_help());
  app.add_option("MODEL", arguments.model, "GGUF file")->required();
  CLI::Option_group &prompt = *app.add_option_group("prompt", "The text to continue, one of the two");
  prompt.require_option(1);
  CLI::Option *text = prompt.add_option("--prompt", arguments.prompt, "Text to continue");
  CLI::Option *prompt_file = prompt.add_option("--prompt-file", arguments.prompt_file,
                                               "File (UTF-8) with the text to continue");
  app.add_option("--prompt-tokens", arguments.prompt_tokens,
                 "Tokens of the file to take, from its start")
      ->check(CLI::Range(1, 1 << 20))
      ->needs(prompt_file);
  app.add_flag(
         "--chat", arguments.chat,
         "The text is a message to the assistant, who answers: in the model's form of a conversation")
      ->needs(text);
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
  } catch (const std::exception &error) {
    fmt::print(stderr, "generate: {}\n", error.what());
    return 1;
  }
  return 0;
}
