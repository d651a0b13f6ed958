#pragma once

// The HTTP front, in the shape of OpenAI's API.

#include <cstddef>
#include <memory>
#include <string>

#include "inbox.hpp"
#include "tokenizer.hpp"

namespace engine::serve {

struct HttpLimits {
  std::size_t body_bytes = std::size_t{1} << 20;
  std::size_t prompt_tokens = std::size_t{1} << 20;
  int open_requests = 64;
};

/// /v1/completions, /v1/chat/completions, /v1/models and /health. What is wrong with a request is said
/// in OpenAI's shape of errors. A client that goes away leaves its channel.
class HttpServer {
 public:
  HttpServer(const Tokenizer &tokenizer, std::string model, Inbox &inbox, const HttpLimits &limits);
  ~HttpServer();

  /// Throws std::runtime_error where that is not to be had. port 0: any. Returns the port.
  int bind(const std::string &host, int port);
  /// Takes requests until stop(), which another thread calls.
  void listen();
  void stop();

 private:
  class Front;  // over cpp-httplib, whose macros stay out of here
  std::unique_ptr<Front> front_;
};

}  // namespace engine::serve
