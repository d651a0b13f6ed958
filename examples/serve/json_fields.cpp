#include "json_fields.hpp"

#include <fmt/format.h>

namespace engine::serve {
namespace {

[[noreturn]] void refuse(const char *name, const Json &value, const char *wanted) {
  constexpr std::size_t most = 60;
  std::string shown = dump(value);
  if (shown.size() > most) shown = shown.substr(0, most) + "...";
  throw BadRequest(name, fmt::format("{} is {}, must be {}", name, shown, wanted));
}

}  // namespace

Json parse_object(const std::string &text) {
  Json object = Json::parse(text, nullptr, false);
  if (object.is_discarded()) throw BadRequest("", "the request is no JSON");
  if (!object.is_object()) throw BadRequest("", "the request is no JSON object");
  return object;
}

bool has(const Json &object, const char *name) {
  return object.contains(name) && !object.at(name).is_null();
}

const std::string &text_field(const Json &object, const char *name) {
  if (!has(object, name)) throw BadRequest(name, fmt::format("{} is missing", name));
  const Json &value = object.at(name);
  if (!value.is_string()) refuse(name, value, "a text");
  return value.get_ref<const std::string &>();
}

bool flag_field(const Json &object, const char *name, bool otherwise) {
  if (!has(object, name)) return otherwise;
  const Json &value = object.at(name);
  if (!value.is_boolean()) refuse(name, value, "true or false");
  return value.get<bool>();
}

int integer_field(const Json &object, const char *name, int least, int most) {
  const Json &value = object.at(name);
  if (!value.is_number_integer() || value.get<std::int64_t>() < least ||
      value.get<std::int64_t>() > most)
    refuse(name, value, fmt::format("a whole number from {} to {}", least, most).c_str());
  return value.get<int>();
}

void read_sampling(const Json &object, Request &request) {
  constexpr double hottest = 100;
  constexpr std::size_t most_stops = 4, longest_stop = 256;
  if (has(object, "temperature")) {
    const Json &value = object.at("temperature");
    if (!value.is_number() || value.get<double>() < 0 || value.get<double>() > hottest)
      refuse("temperature", value, "a number from 0 to 100");
    request.temperature = value.get<double>();
  }
  if (has(object, "seed")) {
    const Json &value = object.at("seed");
    if (!value.is_number_integer()) refuse("seed", value, "a whole number");
    request.seed = value.get<std::uint64_t>();
  }
  if (has(object, "stop")) {
    const Json &value = object.at("stop");
    const Json stops = value.is_string() ? Json::array({value}) : value;
    if (!stops.is_array() || stops.size() > most_stops)
      refuse("stop", value, "a text or up to 4 of them");
    for (const Json &stop : stops) {
      if (!stop.is_string() || stop.get_ref<const std::string &>().empty() ||
          stop.get_ref<const std::string &>().size() > longest_stop)
        refuse("stop", stop, "a text of 1 to 256 bytes");
      request.stop.push_back(stop.get<std::string>());
    }
  }
}

std::string dump(const Json &json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace engine::serve
