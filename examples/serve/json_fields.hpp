#pragma once

// Fields of requests in JSON. What is wrong is a BadRequest that says which field, and what was allowed.

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "request.hpp"

namespace engine::serve {

using Json = nlohmann::json;

class BadRequest : public std::invalid_argument {
 public:
  BadRequest(std::string field, const std::string &message)
      : std::invalid_argument(message), field_(std::move(field)) {}
  const std::string &field() const { return field_; }

 private:
  std::string field_;
};

/// An object. Throws BadRequest for any other text.
Json parse_object(const std::string &text);

/// Whether a field is there and not null.
bool has(const Json &object, const char *name);

const std::string &text_field(const Json &object, const char *name);
bool flag_field(const Json &object, const char *name, bool otherwise);
int integer_field(const Json &object, const char *name, int least, int most);

/// Takes temperature, seed and stop where they are there.
void read_sampling(const Json &object, Request &request);

/// As text; bytes that are no UTF-8 are replaced.
std::string dump(const Json &json);

}  // namespace engine::serve
