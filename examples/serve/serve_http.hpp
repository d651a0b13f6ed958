#pragma once

// Serving over HTTP.

#include <string>

#include "http_server.hpp"
#include "scheduler.hpp"
#include "tokenizer.hpp"

namespace engine::serve {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 0;
  std::string model;  // its name
  HttpLimits limits{};
};

/// Keeps SIGINT and SIGTERM from threads that are made from now on, for serve_http() to wait for.
void block_signals();

/// Serves until one of the two comes. Answers that are open then are cut off.
void serve_http(Scheduler &scheduler, const Tokenizer &tokenizer, const HttpOptions &options);

}  // namespace engine::serve
