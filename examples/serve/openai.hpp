#pragma once

// The shapes of OpenAI's API: what a call asks for, and what it is answered.

#include <string>

#include "json_fields.hpp"
#include "request.hpp"
#include "tokenizer.hpp"

namespace engine::serve {

struct ApiCall {
  Request request;
  bool chat = false;
  bool stream = false;
  bool include_usage = false;  // in a stream
};

/// Bodies of /v1/completions and /v1/chat/completions. Throw BadRequest.
ApiCall parse_completion(const std::string &body, const Tokenizer &tokenizer);
ApiCall parse_chat(const std::string &body, const Tokenizer &tokenizer);

/// type: such as invalid_request_error.
Json error_of(const std::string &type, const std::string &message, const std::string &field = "");

/// Answers of one call.
class ApiAnswer {
 public:
  ApiAnswer(const ApiCall &call, std::string model);

  /// All of it at once.
  Json whole(const std::string &text, const Outcome &outcome) const;

  // Pieces of a stream.
  Json first_piece() const;  // of a chat: who speaks
  Json piece(const std::string &text) const;
  Json last_piece(const Outcome &outcome) const;
  Json usage_piece(const Outcome &outcome) const;

 private:
  Json choice_of(const char *name, Json content, Json finish_reason) const;
  Json frame(const char *object, Json choices) const;
  const char *stream_object() const;

  bool chat_;
  std::string model_, id_;
  long created_;
};

/// The answer of /v1/models.
Json models(const std::string &model);

}  // namespace engine::serve
