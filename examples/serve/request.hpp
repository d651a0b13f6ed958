#pragma once

// What is asked for, and who asked.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace engine::serve {

struct Request {
  std::vector<int> prompt{};  // tokens
  int max_tokens = 128;
  double temperature = 0;  // 0: the most likely token
  std::uint64_t seed = 1;
  std::vector<std::string> stop{};  // texts that the completion ends before
};

enum class Finish {
  stop,       // the model's end of text, or a text of Request::stop
  length,     // as many tokens as asked for, or as there was room for
  cancelled,  // nobody waited for more
};

inline const char *name_of(Finish finish) {
  return finish == Finish::stop ? "stop" : finish == Finish::length ? "length" : "cancelled";
}

/// What came of a request.
struct Outcome {
  Finish finish{};
  std::size_t prompt_tokens = 0;
  std::size_t shared_tokens = 0;  // of these, taken from another sequence instead of computed
  std::size_t completion_tokens = 0;
  double seconds_to_first_token = 0;
  std::span<const int> tokens{};  // prompt and completion, as long as the call lasts
};

/// Who asked: told of a request's progress by the thread that serves it.
class Client {
 public:
  virtual ~Client() = default;

  /// The first call: the request will be served, or why it can never be, and then it is the only one.
  virtual void on_taken() {}
  virtual void on_refused(const std::string &why) = 0;
  /// More of the completion, in whole characters.
  virtual void on_text(std::string_view text) = 0;
  /// The last call.
  virtual void on_end(const Outcome &outcome) = 0;
  /// Whether nobody waits for more.
  virtual bool is_gone() const { return false; }
};

}  // namespace engine::serve
