#pragma once

// A client in another thread than the one that serves it.

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "json_fields.hpp"
#include "request.hpp"

namespace engine::serve {

class Channel : public Client {
 public:
  // The thread that serves.

  void on_taken() override {
    change([&] { taken_ = true; });
  }
  void on_refused(const std::string &why) override {
    change([&] { refusal_ = why; });
  }
  void on_text(std::string_view text) override {
    change([&] { text_ += text; });
  }
  void on_end(const Outcome &outcome) override {
    change([&] {
      end_ = outcome;
      end_->tokens = {};
    });
  }
  bool is_gone() const override {
    const std::lock_guard lock(mutex_);
    return gone_;
  }

  // The client's thread.

  /// Throws BadRequest where the request was refused.
  void wait_until_taken() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return taken_ || refusal_ || end_; });
    if (refusal_) throw BadRequest("", *refusal_);
  }

  struct Event {
    std::string text;            // all that came since the last
    std::optional<Outcome> end;  // where nothing follows
  };
  /// What came, or nothing if nothing does for so long.
  std::optional<Event> next(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, patience, [&] { return end_ || !text_.empty(); })) return std::nullopt;
    return Event{std::exchange(text_, {}), end_};
  }

  /// Nobody waits any more.
  void leave() {
    change([&] { gone_ = true; });
  }

 private:
  template <class Change>
  void change(Change &&apply) {
    const std::lock_guard lock(mutex_);
    apply();
    changed_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool taken_ = false, gone_ = false;
  std::optional<std::string> refusal_;
  std::string text_;
  std::optional<Outcome> end_;
};

}  // namespace engine::serve
