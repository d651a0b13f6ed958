#include "openai.hpp"

#include <fmt/format.h>

#include <atomic>
#include <ctime>
#include <random>
#include <utility>

#include "chat.hpp"

namespace engine::serve {
namespace {

constexpr int most_tokens = 1 << 20;

/// What is not offered is refused, and not passed over.
void refuse_others(const Json &json) {
  const auto only = [&](const char *name, const Json &value) {
    if (has(json, name) && json.at(name) != value)
      throw BadRequest(
          name, fmt::format("{} is {}, only {} is offered", name, dump(json.at(name)), dump(value)));
  };
  for (const char *name : {"n", "best_of", "top_p"}) only(name, 1);
  for (const char *name : {"frequency_penalty", "presence_penalty"}) only(name, 0);
  for (const char *name : {"echo", "logprobs"}) only(name, false);
  for (const char *name : {"suffix", "logit_bias", "tools", "functions", "response_format"}) {
    if (has(json, name) && !json.at(name).empty())
      throw BadRequest(name, fmt::format("{} is not offered", name));
  }
}

ApiCall parse_common(const Json &json, int max_tokens) {
  refuse_others(json);
  ApiCall call;
  call.request.temperature = 1;
  call.request.seed = std::random_device()();
  call.request.max_tokens = max_tokens;
  read_sampling(json, call.request);
  for (const char *name : {"max_tokens", "max_completion_tokens"}) {
    if (has(json, name)) call.request.max_tokens = integer_field(json, name, 0, most_tokens);
  }
  call.stream = flag_field(json, "stream", false);
  if (has(json, "stream_options") && json.at("stream_options").is_object())
    call.include_usage = flag_field(json.at("stream_options"), "include_usage", false);
  return call;
}

std::vector<int> parse_prompt(const Json &json, const Tokenizer &tokenizer) {
  if (!has(json, "prompt")) throw BadRequest("prompt", "prompt is missing");
  Json prompt = json.at("prompt");
  if (prompt.is_array() && prompt.size() == 1 && !prompt[0].is_number()) prompt = Json(prompt[0]);
  if (prompt.is_string()) return tokenizer.encode_prompt(prompt.get_ref<const std::string &>());
  std::vector<int> tokens;
  for (const Json &token : prompt.is_array() ? prompt : Json::array({nullptr})) {
    if (!token.is_number_integer() || token < 0 || token >= tokenizer.size())
      throw BadRequest("prompt", "prompt must be one text or the tokens of one");
    tokens.push_back(token.get<int>());
  }
  return tokens;
}

/// The text of a message: as such, or in parts.
std::string content_of(const Json &message) {
  if (has(message, "content") && message.at("content").is_array()) {
    std::string text;
    for (const Json &part : message.at("content")) {
      if (!part.is_object() || !has(part, "type") || part.at("type") != "text")
        throw BadRequest("messages", "messages.content has parts that are no text");
      text += text_field(part, "text");
    }
    return text;
  }
  return text_field(message, "content");
}

Json usage_of(const Outcome &outcome) {
  return {{"prompt_tokens", outcome.prompt_tokens},
          {"completion_tokens", outcome.completion_tokens},
          {"total_tokens", outcome.prompt_tokens + outcome.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", outcome.shared_tokens}}}};
}

}  // namespace

ApiCall parse_completion(const std::string &body, const Tokenizer &tokenizer) {
  const Json json = parse_object(body);
  ApiCall call = parse_common(json, 16);  // OpenAI's own
  call.request.prompt = parse_prompt(json, tokenizer);
  return call;
}

ApiCall parse_chat(const std::string &body, const Tokenizer &tokenizer) {
  const Json json = parse_object(body);
  ApiCall call = parse_common(json, 256);
  call.chat = true;
  if (!has(json, "messages") || !json.at("messages").is_array() || json.at("messages").empty())
    throw BadRequest("messages", "messages is missing, or no list of messages");
  std::vector<Message> messages;
  for (const Json &message : json.at("messages")) {
    if (!message.is_object()) throw BadRequest("messages", "messages holds what is no object");
    messages.push_back({text_field(message, "role"), content_of(message)});
  }
  call.request.prompt = chat_prompt(messages, tokenizer);
  return call;
}

Json error_of(const std::string &type, const std::string &message, const std::string &field) {
  return {{"error",
           {{"message", message},
            {"type", type},
            {"param", field.empty() ? Json(nullptr) : Json(field)},
            {"code", nullptr}}}};
}

ApiAnswer::ApiAnswer(const ApiCall &call, std::string model)
    : chat_(call.chat), model_(std::move(model)), created_(static_cast<long>(std::time(nullptr))) {
  static std::atomic<long> calls = 0;
  id_ = fmt::format("{}-{}-{}", chat_ ? "chatcmpl" : "cmpl", created_, ++calls);
}

Json ApiAnswer::whole(const std::string &text, const Outcome &outcome) const {
  const Json content = chat_ ? Json{{"role", "assistant"}, {"content", text}} : Json(text);
  Json json = frame(chat_ ? "chat.completion" : "text_completion",
                    choice_of(chat_ ? "message" : "text", content, name_of(outcome.finish)));
  json["usage"] = usage_of(outcome);
  return json;
}

Json ApiAnswer::first_piece() const {
  return frame(stream_object(), choice_of("delta", {{"role", "assistant"}, {"content", ""}}, nullptr));
}

Json ApiAnswer::piece(const std::string &text) const {
  return frame(stream_object(), chat_ ? choice_of("delta", {{"content", text}}, nullptr)
                                      : choice_of("text", text, nullptr));
}

Json ApiAnswer::last_piece(const Outcome &outcome) const {
  const char *reason = name_of(outcome.finish);
  return frame(stream_object(),
               chat_ ? choice_of("delta", Json::object(), reason) : choice_of("text", "", reason));
}

Json ApiAnswer::usage_piece(const Outcome &outcome) const {
  Json json = frame(stream_object(), Json::array());
  json["usage"] = usage_of(outcome);
  return json;
}

const char *ApiAnswer::stream_object() const {
  return chat_ ? "chat.completion.chunk" : "text_completion";
}

Json ApiAnswer::choice_of(const char *name, Json content, Json finish_reason) const {
  return Json::array({{{"index", 0},
                       {name, std::move(content)},
                       {"logprobs", nullptr},
                       {"finish_reason", std::move(finish_reason)}}});
}

Json ApiAnswer::frame(const char *object, Json choices) const {
  return {{"id", id_},
          {"object", object},
          {"created", created_},
          {"model", model_},
          {"choices", std::move(choices)}};
}

Json models(const std::string &model) {
  return {{"object", "list"},
          {"data",
           Json::array({{{"id", model}, {"object", "model"}, {"created", 0}, {"owned_by", "squat"}}})}};
}

}  // namespace engine::serve
