#include "http_server.hpp"

#include <fmt/format.h>
#include <httplib.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>

#include "channel.hpp"
#include "openai.hpp"

namespace engine::serve {
namespace {

constexpr const char *json_type = "application/json";

void set_error(httplib::Response &response, int status, const std::string &message,
               const std::string &field = "") {
  const char *type = status == 429   ? "rate_limit_error"
                     : status >= 500 ? "server_error"
                                     : "invalid_request_error";
  response.status = status;
  response.set_content(dump(error_of(type, message, field)), json_type);
}

/// Counts a request that is answered.
class Slot {
 public:
  explicit Slot(std::atomic<int> &open) : open_(open), count_(++open) {}
  ~Slot() { --open_; }
  Slot(const Slot &) = delete;
  Slot &operator=(const Slot &) = delete;

  int count() const { return count_; }

 private:
  std::atomic<int> &open_;
  int count_;
};

/// A call that is being answered.
class Conversation {
 public:
  Conversation(const ApiCall &call, const std::string &model, std::shared_ptr<Channel> channel,
               std::shared_ptr<Slot> slot)
      : stream_(call.stream),
        usage_(call.include_usage),
        chat_(call.chat),
        answer_(call, model),
        channel_(std::move(channel)),
        slot_(std::move(slot)) {}
  ~Conversation() { channel_->leave(); }
  Conversation(const Conversation &) = delete;
  Conversation &operator=(const Conversation &) = delete;

  /// Writes what there is, or waits for some time. Returns whether to go on: not where the client has
  /// gone, or the server goes, which cuts the answer off.
  bool write(httplib::DataSink &sink) {
    if (!std::exchange(begun_, true) && stream_ && chat_) send(sink, answer_.first_piece());
    const auto event = channel_->next(std::chrono::milliseconds(50));
    if (!event) return sink.is_writable();
    if (stream_) {
      if (!event->text.empty()) send(sink, answer_.piece(event->text));
    } else {
      text_ += event->text;
    }
    return !event->end || finish(sink, *event->end);
  }

 private:
  bool finish(httplib::DataSink &sink, const Outcome &outcome) {
    if (outcome.finish == Finish::cancelled) return false;
    if (stream_) {
      send(sink, answer_.last_piece(outcome));
      if (usage_) send(sink, answer_.usage_piece(outcome));
      write(sink, "data: [DONE]\n\n");
    } else {
      write(sink, dump(answer_.whole(text_, outcome)));
    }
    sink.done();
    return true;
  }

  static void write(httplib::DataSink &sink, const std::string &text) {
    sink.write(text.data(), text.size());
  }
  static void send(httplib::DataSink &sink, const Json &json) {
    write(sink, "data: " + dump(json) + "\n\n");
  }

  bool stream_, usage_, chat_, begun_ = false;
  ApiAnswer answer_;
  std::shared_ptr<Channel> channel_;
  std::shared_ptr<Slot> slot_;
  std::string text_;
};

}  // namespace

class HttpServer::Front {
 public:
  Front(const Tokenizer &tokenizer, std::string model, Inbox &inbox, const HttpLimits &limits);

  httplib::Server &server() { return server_; }
  int bind(const std::string &host, int port);

 private:
  using Parse = ApiCall (*)(const std::string &, const Tokenizer &);

  void answer_errors();
  void answer(const httplib::Request &request, httplib::Response &response, Parse parse);
  void answer_call(ApiCall call, httplib::Response &response);

  const Tokenizer &tokenizer_;
  std::string model_;
  Inbox &inbox_;
  HttpLimits limits_;
  std::atomic<int> open_ = 0;
  socket_t socket_ = INVALID_SOCKET;
  httplib::Server server_;
};

HttpServer::Front::Front(const Tokenizer &tokenizer, std::string model, Inbox &inbox,
                         const HttpLimits &limits)
    : tokenizer_(tokenizer), model_(std::move(model)), inbox_(inbox), limits_(limits) {
  constexpr int spare = 8;  // threads that refuse what is too much
  server_.new_task_queue = [this] {
    return new httplib::ThreadPool(static_cast<std::size_t>(limits_.open_requests + spare));
  };
  server_.set_payload_max_length(limits.body_bytes);
  server_.set_keep_alive_timeout(1);
  server_.set_tcp_nodelay(true);
  // Without SO_REUSEPORT, which the default has: a port that another server listens on is taken.
  server_.set_socket_options([this](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    socket_ = socket;
  });
  server_.Get("/health", [this](const httplib::Request &, httplib::Response &response) {
    if (inbox_.closed()) return set_error(response, 503, "the server is shutting down");
    response.set_content(R"({"status":"ok"})", json_type);
  });
  server_.Get("/v1/models", [this](const httplib::Request &, httplib::Response &response) {
    response.set_content(dump(models(model_)), json_type);
  });
  const auto post = [this](const char *path, Parse parse) {
    server_.Post(path, [this, parse](const httplib::Request &request, httplib::Response &response) {
      answer(request, response, parse);
    });
  };
  post("/v1/completions", parse_completion);
  post("/v1/chat/completions", parse_chat);
  answer_errors();
}

int HttpServer::Front::bind(const std::string &host, int port) {
  const int bound = port == 0                          ? server_.bind_to_any_port(host)
                    : server_.bind_to_port(host, port) ? port
                                                       : -1;
  // The library lets 5 clients wait to be accepted; one more would be dropped and come again in seconds.
  if (bound < 0 || ::listen(socket_, SOMAXCONN) != 0)
    throw std::runtime_error(fmt::format("cannot listen on {}:{}", host, port));
  return bound;
}

void HttpServer::Front::answer_errors() {
  server_.set_exception_handler(
      [](const httplib::Request &, httplib::Response &response, const std::exception_ptr &) {
        set_error(response, 500, "the server has failed");
      });
  server_.set_error_handler([this](const httplib::Request &request, httplib::Response &response) {
    if (!response.body.empty()) return;
    if (response.status == 413) {
      set_error(response, 413, fmt::format("the body may have {} bytes", limits_.body_bytes));
    } else if (response.status == 404) {
      set_error(response, 404, fmt::format("there is no {} {}", request.method, request.path));
    } else {
      set_error(response, response.status, "the request is no HTTP that this server understands");
    }
  });
}

void HttpServer::Front::answer(const httplib::Request &request, httplib::Response &response,
                               Parse parse) {
  try {
    answer_call(parse(request.body, tokenizer_), response);
  } catch (const BadRequest &error) {
    set_error(response, 400, error.what(), error.field());
  }
}

void HttpServer::Front::answer_call(ApiCall call, httplib::Response &response) {
  if (call.request.prompt.size() > limits_.prompt_tokens) {
    throw BadRequest("prompt", fmt::format("the prompt has {} tokens, at most {} are taken",
                                           call.request.prompt.size(), limits_.prompt_tokens));
  }
  const auto slot = std::make_shared<Slot>(open_);
  if (slot->count() > limits_.open_requests) {
    return set_error(response, 429,
                     fmt::format("{} requests are open, try again later", limits_.open_requests));
  }
  const auto channel = std::make_shared<Channel>();
  if (!inbox_.push(std::move(call.request), channel))
    return set_error(response, 503, "the server is shutting down");
  channel->wait_until_taken();
  const auto conversation = std::make_shared<Conversation>(call, model_, channel, slot);
  response.set_chunked_content_provider(
      call.stream ? "text/event-stream" : json_type,
      [conversation](std::size_t, httplib::DataSink &sink) { return conversation->write(sink); });
}

HttpServer::HttpServer(const Tokenizer &tokenizer, std::string model, Inbox &inbox,
                       const HttpLimits &limits)
    : front_(std::make_unique<Front>(tokenizer, std::move(model), inbox, limits)) {}

HttpServer::~HttpServer() = default;

int HttpServer::bind(const std::string &host, int port) { return front_->bind(host, port); }

void HttpServer::listen() { front_->server().listen_after_bind(); }

void HttpServer::stop() { front_->server().stop(); }

}  // namespace engine::serve
