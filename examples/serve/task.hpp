#pragma once

// A request in progress.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "request.hpp"
#include "squat/squat.hpp"
#include "text_stream.hpp"

namespace engine::serve {

struct Task {
  Task(std::uint64_t order, Request wanted, std::shared_ptr<Client> asker)
      : number(order),
        request(std::move(wanted)),
        client(std::move(asker)),
        tokens(request.prompt),
        random(request.seed),
        text(request.stop) {}

  std::size_t generated() const { return tokens.size() - request.prompt.size(); }
  bool in_prompt() const { return fed < request.prompt.size(); }

  /// The tokens to be fed next, up to a multiple of `chunk`: where a prompt is cut does not depend on
  /// what else is served.
  std::span<const int> next(std::size_t chunk) const {
    const std::size_t count = std::min(tokens.size() - fed, chunk - fed % chunk);
    return std::span(tokens).subspan(fed, count);
  }

  std::uint64_t number;  // in the order of arrival
  Request request;
  std::shared_ptr<Client> client;
  std::vector<int> tokens;       // prompt and completion
  std::size_t fed = 0;           // of these, the first that the cache holds
  std::size_t shared = 0;        // of these, the first that came from another sequence
  squat::SequenceId sequence{};  // while it runs
  std::mt19937_64 random;
  TextStream text;
  Clock::time_point arrival = Clock::now();
  double seconds_to_first_token = 0;
  std::optional<Finish> finish{};  // once it is done
};

}  // namespace engine::serve
