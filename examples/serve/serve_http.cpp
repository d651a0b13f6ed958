#include "serve_http.hpp"

#include <fmt/format.h>
#include <pthread.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <thread>

#include "inbox.hpp"
#include "service.hpp"

namespace engine::serve {
namespace {

sigset_t ending_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

}  // namespace

void block_signals() {
  const sigset_t signals = ending_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

void serve_http(Scheduler &scheduler, const Tokenizer &tokenizer, const HttpOptions &options) {
  Inbox inbox;
  HttpServer server(tokenizer, options.model, inbox, options.limits);
  const int port = server.bind(options.host, options.port);
  fmt::print(stderr, "listening on http://{}:{}/v1\n", options.host, port);
  std::fflush(stderr);
  std::thread front([&] { server.listen(); });
  std::thread end([&] {
    const sigset_t signals = ending_signals();
    int signal = 0;
    sigwait(&signals, &signal);
    inbox.close();
  });
  std::exception_ptr failure;
  try {
    serve(scheduler, inbox);
  } catch (...) {
    failure = std::current_exception();
    pthread_kill(end.native_handle(), SIGTERM);
  }
  end.join();
  server.stop();
  front.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace engine::serve
