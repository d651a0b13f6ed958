#pragma once

// What serving came to.

#include <cstddef>
#include <string>
#include <vector>

namespace engine::serve {

struct Figures {
  std::size_t requests = 0;  // that are done
  std::size_t prompt_tokens = 0;
  std::size_t shared_tokens = 0;  // of these, taken from another sequence
  std::size_t completion_tokens = 0;
  std::size_t preemptions = 0;
  std::size_t evictions = 0;
  std::size_t most_running = 0;
  std::size_t most_bytes = 0;
  std::size_t most_shared_pages = 0;
  std::vector<double> seconds_to_first_token{};  // of each request
  double seconds = 0;                            // of all steps
};

/// A column of the final table.
struct Run {
  std::string name;
  Figures figures;
};

std::string table_of(const std::vector<Run> &runs);

}  // namespace engine::serve
