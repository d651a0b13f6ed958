#include "cache_spec.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "squat/cache/kv_cache.hpp"

namespace engine {
namespace {

struct CodingName {
  const char *name;
  squat::Coding coding;
};
constexpr CodingName coding_names[] = {{"plain", squat::Coding::plain},
                                       {"orthogonal", squat::Coding::orthogonal},
                                       {"subspace", squat::Coding::subspace}};

[[noreturn]] void refuse(std::string_view text, const std::string &why) {
  throw std::invalid_argument("coding '" + std::string(text) + "': " + why + "\n" + cache_spec_help());
}

std::vector<std::string_view> split(std::string_view text, char mark) {
  std::vector<std::string_view> parts;
  for (std::size_t first = 0;;) {
    const std::size_t last = text.find(mark, first);
    parts.push_back(text.substr(first, last - first));
    if (last == std::string_view::npos) return parts;
    first = last + 1;
  }
}

/// Takes a number off the front of `text`.
bool take_number(std::string_view &text, int &number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool supported(int bits) { return squat::supported_bits(bits); }

/// "k2v2"
bool parse_bits(std::string_view part, CacheSpec &spec) {
  if (!part.starts_with('k')) return false;
  part.remove_prefix(1);
  if (!take_number(part, spec.key_bits) || !part.starts_with('v')) return false;
  part.remove_prefix(1);
  return take_number(part, spec.value_bits) && part.empty() && supported(spec.key_bits) &&
         supported(spec.value_bits);
}

/// "g64", "w80", "s0", "f256", "t16", "t8"
bool parse_option(std::string_view part, CacheSpec &spec) {
  if (part.empty()) return false;
  if (part == "t16" || part == "t8") {
    spec.options.tail = part == "t8" ? squat::TailCoding::int8 : squat::TailCoding::exact;
    return true;
  }
  if (part[0] == 'f') spec.options.tile_tokens = 0;
  int *const number = part[0] == 'g'   ? &spec.options.page_tokens
                      : part[0] == 'w' ? &spec.options.residual
                      : part[0] == 's' ? &spec.options.sinks
                      : part[0] == 'f' ? &*spec.options.tile_tokens
                                       : nullptr;
  part.remove_prefix(1);
  return number != nullptr && take_number(part, *number) && part.empty();
}

}  // namespace

std::string cache_spec_help() {
  std::string names;
  for (const CodingName &coding : coding_names)
    names += std::string(names.empty() ? "" : ", ") + coding.name;
  return "A coding is 'exact' or CODING:kKvV with CODING one of " + names +
         " and K, V one of 2, 3, 4, 8, 16.\nOptions behind it: :gN tokens of a page, :wN exact window, "
         ":sN "
         "exact sinks, :fN tokens of a tile, whose keys are coded in a rotary frame of their own (0: in "
         "that of their position; default 256 for subspace, 0 otherwise), :t8 or :t16 (the exact window "
         "in 8 "
         "bits, the default of up to 3 bits but for plain and for models with biases, or exact indeed), "
         ":layer (subspace: bits are "
         "shared "
         "out among the KV heads of a layer, by what attention does with them), :model (among the heads "
         "of all layers), :trellis (trellis codes "
         "where "
         "there are 1 to 3 bits: less error for more work), :published (orthogonal: the settings of the "
         "paper).\nExamples: exact, subspace:k2v2, subspace:k2v2:layer:trellis, plain:k2v2:g32:s0, "
         "orthogonal:k2v2:g64:f256.";
}

CacheSpec parse_cache_spec(std::string_view text) {
  CacheSpec spec;
  spec.text = text;
  const auto parts = split(text, ':');
  spec.coding = parts[0];
  std::size_t next = 1;
  if (spec.coding == "exact") {
    spec.options.coding = squat::Coding::plain;
  } else {
    const auto *coding = std::find_if(std::begin(coding_names), std::end(coding_names),
                                      [&](const CodingName &c) { return c.name == spec.coding; });
    if (coding == std::end(coding_names)) refuse(text, "no such coding");
    spec.options.coding = coding->coding;
    if (parts.size() < 2 || !parse_bits(parts[1], spec)) refuse(text, "kKvV must follow the coding");
    next = 2;
  }
  for (const auto part : std::span(parts).subspan(std::min(next, parts.size()))) {
    if (part == "layer" || part == "model") {
      spec.options.allocation = part == "layer" ? squat::Allocation::layer : squat::Allocation::model;
    } else if (part == "published" && spec.options.coding == squat::Coding::orthogonal) {
      spec.published = true;
      const auto names_group = [](std::string_view other) { return other.starts_with('g'); };
      if (std::none_of(parts.begin(), parts.end(), names_group)) spec.options.page_tokens = 32;
    } else if (part == "trellis" && spec.coding != "exact") {
      spec.options.codes = squat::Codes::trellis;
    } else if (!parse_option(part, spec)) {
      refuse(text, "no such option: '" + std::string(part) + "'");
    }
  }
  return spec;
}

std::vector<CacheSpec> parse_codings(const std::vector<std::string> &codings) {
  std::vector<CacheSpec> specs = {parse_cache_spec("exact")};
  for (const std::string &coding : codings) {
    if (coding != "exact") specs.push_back(parse_cache_spec(coding));
  }
  return specs;
}

squat::LayerGroup CacheSpec::group_for(const squat::Options &shape) const {
  squat::LayerGroup group{.options = options, .key_bits = key_bits, .value_bits = value_bits};
  squat::Options &of_group = group.options;
  of_group.query_heads = shape.query_heads;
  of_group.kv_heads = shape.kv_heads;
  of_group.head_dim = shape.head_dim;
  of_group.value_dim = shape.value_dim;
  of_group.keys_have_biases = shape.keys_have_biases;
  of_group.attention_scale = shape.attention_scale;
  of_group.soft_cap = shape.soft_cap;
  of_group.attention_window = shape.attention_window;
  of_group.rotary = shape.rotary;
  if (published) {
    of_group = squat::published_squat(of_group);
    of_group.page_tokens = options.page_tokens;
  }
  return group;
}

squat::ModelOptions CacheSpec::options_for(const Config &config) const {
  squat::ModelOptions model{.layers = config.layers};
  for (const bool local : {false, true}) {
    std::vector<int> layers;
    for (int layer = 0; layer < config.layers; ++layer) {
      if (config.is_local(layer) == local) layers.push_back(layer);
    }
    if (layers.empty()) continue;
    squat::Options shape{.query_heads = config.query_heads,
                         .kv_heads = config.kv_heads,
                         .head_dim = config.head_dim,
                         .keys_have_biases = config.differences.biases,
                         .attention_scale = config.attention_scale,
                         .attention_window = local ? config.attention_window : 0,
                         .soft_cap = config.attention_soft_cap};
    shape.rotary = {{config.inverse_frequencies_of(layers.front()), config.differences.rotary_pairs}};
    model.groups.push_back(group_for(shape));
    model.groups.back().layers = std::move(layers);
  }
  return model;
}

}  // namespace engine
