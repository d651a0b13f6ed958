// Measures what each coding of the cache does to the predictions of a model that stock llama.cpp runs,
// beside llama.cpp's own quantized KV caches.
//
// Nothing of llama.cpp is patched: where its graph has computed a layer's attention, the layer's
// queries, keys and values go through squat::ModelCache, whose result takes the place of llama.cpp's
// (AttentionTap). So the model runs over our cache, and what a coding errs in one layer reaches the
// next. That gains neither speed nor memory, as llama.cpp computes its own attention too.
//
// Teacher-forced, as evaluate of the example engine: windows of the text, one behind the other; each is
// fed as a prompt in one piece and then token by token.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <Eigen/Core>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "attention_node.hpp"
#include "attention_tap.hpp"
#include "cache_spec.hpp"
#include "layer_groups.hpp"
#include "llama_model.hpp"
#include "metrics.hpp"
#include "squat/model.hpp"
#include "text_windows.hpp"

namespace {

using namespace squat_llama;
using engine::CacheSpec;
using engine::Prediction;
using LogitRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Window = std::span<const llama_token>;

/// What our 16 bits may differ from llama.cpp's float16 cache, in nats: both round keys and values to
/// float16, and sum in different orders. More means that the program does not compute what the model
/// does; but where llama.cpp with and without flash attention differ as much, the order of sums alone
/// does it.
constexpr double most_kl_of_exact = 1e-3, most_over_order_of_sums = 2;

struct Arguments : engine::TextWindows {
  Arguments() : TextWindows{.windows = 2, .length = 1536, .prompt = 512} {}

  std::string weights = "f16";
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<std::string> codings = {"plain:k2v2:g32:w80", "subspace:k2v2",
                                      "subspace:k2v2:layer:trellis", "subspace:k3v3", "subspace:k4v4"};
  std::vector<std::string> types = {"q8_0", "q5_1", "q4_0", "iq4_nl"};
};

/// A row of the table: a cache of llama.cpp's of some type, or one of ours.
struct Run {
  std::string name;
  std::optional<ggml_type> type{};
  bool flash_attention = true;
  std::optional<squat::ModelOptions> options{};
  std::vector<Prediction> predictions{};  // of every window's tokens behind its prompt
  double packed_bits = 0, total_bits = 0;
};

ggml_type type_named(const std::string &name) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
    const auto candidate = static_cast<ggml_type>(type);
    if (ggml_blck_size(candidate) > 0 && name == ggml_type_name(candidate)) return candidate;
  }
  throw std::invalid_argument(fmt::format("--types: llama.cpp has no type {}", name));
}

Run run_of_type(ggml_type type) {
  const double bits =
      8.0 * static_cast<double>(ggml_type_size(type)) / static_cast<double>(ggml_blck_size(type));
  Run run{.name = std::string("llama.cpp ") + ggml_type_name(type), .type = type};
  run.packed_bits = run.total_bits = bits;
  return run;
}

std::vector<llama_token> read_windows(const Arguments &arguments, const LlamaModel &model) {
  std::ifstream in(arguments.text, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in || text.empty()) throw std::invalid_argument("cannot read " + arguments.text);
  return arguments.cut(model.encode(text), model.begin_of_text());
}

/// The model's layers with attention, from a call with a whole window, in which every mask shows.
std::vector<squat::Options> shapes_of(const LlamaModel &model, Window window, int threads) {
  std::vector<squat::Options> shapes;
  AttentionTap tap([&](int, const Attention &attention) { shapes.push_back(shape_of(attention)); });
  const int length = static_cast<int>(window.size());
  LlamaContext context(model, {.length = length, .batch = length, .threads = threads, .tap = &tap});
  context.decode(window);
  if (shapes.empty()) throw std::invalid_argument("the model has no layers of attention");
  for (squat::Options &shape : shapes) shape.keys_have_biases = model.keys_have_biases();
  return shapes;
}

squat::ModelOptions options_for(const CacheSpec &spec, std::span<const squat::Options> shapes,
                                int prompt) {
  return group_layers(shapes, [&](const squat::Options &shape) {
    squat::LayerGroup group = spec.group_for(shape);
    int &tokens_to_learn = group.options.statistics_tokens;
    tokens_to_learn = std::min(prompt, tokens_to_learn);  // short prompts count as such
    return group;
  });
}

/// Feeds a window: its prompt at once, then token by token. on_logits(step, logits) gets those of each
/// token behind the prompt, which predict the one that follows.
void feed(LlamaContext &context, Window window, int prompt,
          const std::function<void(int, std::span<const float>)> &on_logits) {
  context.decode(window.first(static_cast<std::size_t>(prompt)));
  for (auto position = static_cast<std::size_t>(prompt); position + 1 < window.size(); ++position)
    on_logits(static_cast<int>(position) - prompt, context.decode(window.subspan(position, 1)));
}

/// The logits of llama.cpp over its float16 cache: [tokens behind the prompt, vocabulary].
LogitRows reference_of(const LlamaModel &model, Window window, const Arguments &arguments) {
  LogitRows rows(arguments.length - arguments.prompt - 1, model.vocabulary());
  LlamaContext context(
      model, {.length = arguments.length, .batch = arguments.prompt, .threads = arguments.threads});
  feed(context, window, arguments.prompt, [&](int step, std::span<const float> logits) {
    std::copy(logits.begin(), logits.end(), rows.row(step).data());
  });
  return rows;
}

void run_window(const LlamaModel &model, Window window, const LogitRows &reference,
                const Arguments &arguments, Run &run) {
  std::optional<squat::ModelCache> cache;
  squat::SequenceId sequence{};
  AttentionTap tap([&](int layer, const Attention &attention) {
    const int attention_window = cache->group_of(layer).options().attention_window;
    check_window(attention, cache->length(sequence, layer), attention_window);
    cache->attend(sequence, layer, attention.q, attention.k, attention.v, attention.out);
  });
  ContextOptions options{
      .length = arguments.length, .batch = arguments.prompt, .threads = arguments.threads};
  if (run.options) {
    cache.emplace(*run.options, squat::make_cpu_group);
    sequence = cache->add_sequence();
    options.tap = &tap;
  } else {
    options.type = *run.type;
    options.flash_attention = run.flash_attention;
  }
  LlamaContext context(model, options);
  feed(context, window, arguments.prompt, [&](int step, std::span<const float> logits) {
    const Eigen::Map<const Eigen::RowVectorXf> row(logits.data(),
                                                   static_cast<Eigen::Index>(logits.size()));
    const auto next = static_cast<std::size_t>(arguments.prompt + step + 1);
    run.predictions.push_back(engine::compare(reference.row(step), row, window[next]));
    if (cache && cache->length(sequence) != static_cast<squat::Index>(next))
      throw std::runtime_error("not every layer's attention passed through the cache");
  });
  if (cache) {
    const squat::MemoryReport memory = cache->memory_report();
    run.packed_bits = memory.packed_bits_per_element;
    run.total_bits += memory.total_bits_per_element / arguments.windows;
  }
}

void show_progress(const std::string &name, int window, int windows) {
  if (isatty(STDERR_FILENO))
    fmt::print(stderr, "\r\033[Kwindow {} of {}: {}", window + 1, windows, name);
}

void print_table(const std::vector<Run> &runs) {
  fmt::print("{:<34} {:>7} {:>7} {:>10} {:>9} {:>9} {:>7}\n", "coding", "packed", "total", "perplexity",
             "KL mean", "KL p99", "top-1 %");
  for (const Run &run : runs) {
    const engine::Summary s = engine::summarize(run.predictions);
    fmt::print("{:<34} {:>7.3f} {:>7.3f} {:>10.3f} {:>9.5f} {:>9.4f} {:>7.2f}\n", run.name,
               run.packed_bits, run.total_bits, s.perplexity, s.kl_mean, s.kl_p99, 100 * s.top1);
  }
}

/// A table of anything else would be worth nothing.
void check_exact(const Run &exact, const Run &other_order_of_sums) {
  const double kl = engine::summarize(exact.predictions).kl_mean;
  const double of_order = engine::summarize(other_order_of_sums.predictions).kl_mean;
  if (kl < most_kl_of_exact || kl < most_over_order_of_sums * of_order) return;
  throw std::runtime_error(fmt::format(
      "our cache of 16 bits is {:.2g} nats from llama.cpp's of float16, must be below {:.0e} (llama.cpp "
      "without flash attention is {:.2g} from it): this program does not compute the attention of that "
      "model",
      kl, most_kl_of_exact, of_order));
}

void evaluate(const Arguments &arguments) {
  arguments.check_prompt();
  const std::vector<CacheSpec> specs = engine::parse_codings(arguments.codings);
  std::vector<Run> runs = {run_of_type(GGML_TYPE_F16), run_of_type(GGML_TYPE_F16)};
  runs[1].name += ", no flash attention";
  runs[1].flash_attention = false;
  std::vector<Run> runs_of_types;
  for (const std::string &type : arguments.types) {
    if (type != "f16") runs_of_types.push_back(run_of_type(type_named(type)));
  }
  const Weights weights = arguments.weights == "own"   ? Weights::own
                          : arguments.weights == "f16" ? Weights::f16
                                                       : Weights::f32;
  const LlamaModel model(arguments.model, weights, arguments.threads);
  arguments.check_context(model.context());
  const std::vector<llama_token> tokens = read_windows(arguments, model);
  const auto window_at = [&](int window) {
    const auto length = static_cast<std::size_t>(arguments.length);
    return Window(tokens).subspan(static_cast<std::size_t>(window) * length, length);
  };
  const std::vector<squat::Options> shapes = shapes_of(model, window_at(0), arguments.threads);
  for (const CacheSpec &spec : specs)
    runs.push_back({.name = spec.text, .options = options_for(spec, shapes, arguments.prompt)});
  runs.insert(runs.end(), runs_of_types.begin(), runs_of_types.end());

  for (int window = 0; window < arguments.windows; ++window) {
    show_progress(runs[0].name, window, arguments.windows);
    const LogitRows reference = reference_of(model, window_at(window), arguments);
    for (Eigen::Index step = 0; step < reference.rows(); ++step) {
      const auto next = static_cast<std::size_t>(arguments.prompt + step + 1);
      runs[0].predictions.push_back(
          engine::compare(reference.row(step), reference.row(step), window_at(window)[next]));
    }
    for (std::size_t run = 1; run < runs.size(); ++run) {
      show_progress(runs[run].name, window, arguments.windows);
      run_window(model, window_at(window), reference, arguments, runs[run]);
      if (run == 2) check_exact(runs[2], runs[1]);
    }
  }
  if (isatty(STDERR_FILENO)) fmt::print(stderr, "\n");
  fmt::print("{}: {} window{} of {} tokens, prompt {}; weights {}; {} layers of attention\n",
             arguments.text, arguments.windows, arguments.windows == 1 ? "" : "s", arguments.length,
             arguments.prompt, arguments.weights, shapes.size());
  print_table(runs);
}

}  // namespace

int main(int argc, char **argv) {
  Arguments arguments;
  CLI::App app(
      "Feeds windows of a text to a model that llama.cpp runs (GGUF), a prompt and then token by token, "
      "with attention computed over coded caches, and compares the predictions with those over "
      "llama.cpp's float16 cache. Beside them are llama.cpp's own quantized caches, and our exact one "
      "as "
      "a check: where it differs from float16, the program fails.\n" +
      engine::cache_spec_help());
  arguments.add_options(app);
  app.add_option("--codings", arguments.codings, "Our codings to compare with float16")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--types", arguments.types,
                 "Types of llama.cpp's own caches, of keys and values, beside them")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option(
         "--weights", arguments.weights,
         "Weights as in the file (own), or unpacked: over packed ones llama.cpp rounds activations to 8 "
         "bits, which hides differences below some 0.003 nats. The copy takes room in TMPDIR")
      ->check(CLI::IsMember({"own", "f16", "f32"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "Threads of llama.cpp")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    evaluate(arguments);
  } catch (const std::exception &error) {
    fmt::print(stderr, "squat-llama-perplexity: {}\n", error.what());
    return 1;
  }
  return 0;
}
