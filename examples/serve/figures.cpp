#include "figures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

namespace engine::serve {
namespace {

/// The least value that `share` of all do not pass.
double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const double rank = std::ceil(share * static_cast<double>(values.size())) - 1;
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(std::max(rank, 0.0));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

std::string rate(std::size_t tokens, double seconds) {
  return fmt::format("{:.1f}", seconds > 0 ? static_cast<double>(tokens) / seconds : 0);
}

}  // namespace

std::string table_of(const std::vector<Run> &runs) {
  std::string table;
  const auto line = [&](const char *label, const std::function<std::string(const Run &)> &cell) {
    table += fmt::format("{:<30}", label);
    for (const Run &run : runs) table += fmt::format(" {:>24}", cell(run));
    table += '\n';
  };
  const auto count = [&](const char *label, std::size_t Figures::*of) {
    line(label, [&](const Run &run) { return std::to_string(run.figures.*of); });
  };
  const auto first_token = [&](const char *label, double share) {
    line(label, [&](const Run &run) {
      return fmt::format("{:.2f}", quantile(run.figures.seconds_to_first_token, share));
    });
  };
  line("", [](const Run &run) { return run.name; });
  count("requests", &Figures::requests);
  line("seconds", [](const Run &run) { return fmt::format("{:.1f}", run.figures.seconds); });
  line("completion tokens a second",
       [](const Run &run) { return rate(run.figures.completion_tokens, run.figures.seconds); });
  line("all tokens a second", [](const Run &run) {
    return rate(run.figures.prompt_tokens + run.figures.completion_tokens, run.figures.seconds);
  });
  first_token("seconds to first token, median", .5);
  first_token("seconds to first token, p95", .95);
  count("prompt tokens", &Figures::prompt_tokens);
  count("  of these shared", &Figures::shared_tokens);
  count("completion tokens", &Figures::completion_tokens);
  count("most requests at once", &Figures::most_running);
  line("most bytes of the cache, MB", [](const Run &run) {
    return fmt::format("{:.1f}", 1e-6 * static_cast<double>(run.figures.most_bytes));
  });
  count("most shared pages", &Figures::most_shared_pages);
  count("preemptions", &Figures::preemptions);
  count("prefixes given up", &Figures::evictions);
  return table;
}

}  // namespace engine::serve
