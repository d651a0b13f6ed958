#include "request_lines.hpp"

#include <fmt/format.h>

#include <utility>
#include <vector>

namespace engine::serve {

struct RequestLines::Line : Client {
  Line(RequestLines &all, std::string name, Request wanted)
      : lines(all), id(std::move(name)), request(std::move(wanted)) {}

  void on_refused(const std::string &why) override {
    lines.write({{"id", id}, {"error", why}});
    lines.end(*this, std::nullopt);
  }
  void on_text(std::string_view text) override { lines.write({{"id", id}, {"text", text}}); }
  void on_end(const Outcome &outcome) override {
    lines.write({{"id", id},
                 {"finish_reason", name_of(outcome.finish)},
                 {"prompt_tokens", outcome.prompt_tokens},
                 {"shared_tokens", outcome.shared_tokens},
                 {"completion_tokens", outcome.completion_tokens},
                 {"seconds_to_first_token", outcome.seconds_to_first_token}});
    lines.end(*this, outcome.finish == Finish::cancelled ? std::nullopt
                                                         : std::optional<Tokens>(outcome.tokens));
  }

  RequestLines &lines;
  const std::string id;
  const Request request;  // its prompt: without what stands before it

  // Under the mutex of all lines.
  bool done = false;
  std::optional<std::vector<int>> tokens{};  // once it is done, unless it has failed
  std::vector<std::shared_ptr<Line>> children{};
};

void RequestLines::read(std::istream &in) {
  {
    const std::lock_guard lock(mutex_);
    ++open_;
  }
  std::string text;
  for (std::size_t number = 1; std::getline(in, text); ++number) {
    if (!text.empty()) read_line(text, std::to_string(number));
  }
  count_down();
}

void RequestLines::read_line(const std::string &text, const std::string &number) {
  try {
    constexpr int most = 1 << 20;
    const Json json = parse_object(text);
    const std::string &prompt = text_field(json, "prompt");
    Request request{.prompt = has(json, "parent") ? tokenizer_.encode(prompt)
                                                  : tokenizer_.encode_prompt(prompt)};
    read_sampling(json, request);
    if (has(json, "max_tokens")) request.max_tokens = integer_field(json, "max_tokens", 0, most);
    const std::string id = has(json, "id") ? text_field(json, "id") : number;
    const auto line = std::make_shared<Line>(*this, id, std::move(request));
    std::optional<std::vector<int>> before = std::vector<int>();
    {
      const std::lock_guard lock(mutex_);
      std::shared_ptr<Line> parent;
      if (has(json, "parent")) {
        const auto found = lines_.find(text_field(json, "parent"));
        if (found == lines_.end()) throw BadRequest("parent", "parent is no id of a line before");
        parent = found->second;
      }
      if (!lines_.emplace(id, line).second)
        throw BadRequest("id", fmt::format("id is {}, which is that of a line before", id));
      ++open_;
      if (parent && !parent->done) return parent->children.push_back(line);
      if (parent) before = parent->tokens;
    }
    submit(line, before);
  } catch (const BadRequest &error) {
    write({{"line", number}, {"error", error.what()}});
  }
}

void RequestLines::write(const Json &json) {
  const std::lock_guard lock(mutex_);
  refused_ += json.contains("error") ? 1 : 0;
  out_ << dump(json) << std::endl;
}

void RequestLines::submit(const std::shared_ptr<Line> &line, std::optional<Tokens> before) {
  if (!before) return line->on_refused("its parent has failed");
  Request request = line->request;
  request.prompt.insert(request.prompt.begin(), before->begin(), before->end());
  if (!inbox_.push(std::move(request), line)) line->on_refused("nothing is served any more");
}

void RequestLines::end(Line &line, std::optional<Tokens> tokens) {
  std::vector<std::shared_ptr<Line>> children;
  {
    const std::lock_guard lock(mutex_);
    line.done = true;
    if (tokens) line.tokens.emplace(tokens->begin(), tokens->end());
    children = std::exchange(line.children, {});
  }
  for (const auto &child : children) submit(child, tokens);
  count_down();
}

void RequestLines::count_down() {
  const std::lock_guard lock(mutex_);
  if (--open_ == 0) inbox_.close();
}

}  // namespace engine::serve
