// Requests that are served together get the tokens they get alone, in the memory they may take.

#include "scheduler.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "serve/serving.hpp"

namespace engine::serve::test::scheduler_test {
namespace {

constexpr std::size_t plenty = 1 << 24;

class Schedulers : public Serving {
 protected:
  /// Six requests of different lengths, temperatures and seeds.
  std::vector<Request> requests() const {
    std::vector<Request> all;
    for (int i = 0; i < 6; ++i) {
      all.push_back({.prompt = prompt(i, 40 + 17 * static_cast<std::size_t>(i)),
                     .max_tokens = 90 - 10 * i,
                     .temperature = i % 2 == 0 ? 0 : .8,
                     .seed = static_cast<std::uint64_t>(i)});
    }
    return all;
  }

  /// Serves them over one cache. Returns their tokens.
  std::vector<std::vector<int>> serve(const std::string &coding, const std::vector<Request> &all,
                                      const Limits &limits) {
    const std::unique_ptr<ModelCache> cache = make_cache(coding);
    Scheduler scheduler(*engine, *cache, tokenizer, limits);
    std::vector<std::shared_ptr<Recorder>> clients;
    for (const Request &request : all) {
      clients.push_back(std::make_shared<Recorder>());
      scheduler.submit(request, clients.back());
    }
    serve_all(scheduler);
    figures = scheduler.figures();
    EXPECT_LE(figures.most_bytes, limits.bytes);
    std::vector<std::vector<int>> tokens;
    for (const auto &client : clients) tokens.push_back(client->tokens);
    return tokens;
  }

  Figures figures;  // of the last call
};

TEST_F(Schedulers, GiveEachRequestTheTokensItGetsAlone) {
  for (const std::string coding : {"exact:g16:w16", "plain:k2v2:g16:w16", "plain:k4v4:g16:w16:t8"}) {
    SCOPED_TRACE(coding);
    std::vector<std::vector<int>> alone;
    for (const Request &request : requests())
      alone.push_back(serve(coding, {request}, {.bytes = plenty, .chunk = 24})[0]);
    EXPECT_EQ(serve(coding, requests(), {.bytes = plenty, .chunk = 24}), alone);
    EXPECT_EQ(figures.most_running, 6u);
    EXPECT_EQ(figures.preemptions, 0u);

    // In memory for about two of them.
    const std::unique_ptr<ModelCache> cache = make_cache(coding);
    const std::size_t bytes = 2 * Budget(*cache, 0).bytes_of(190);
    EXPECT_EQ(serve(coding, requests(), {.bytes = bytes, .chunk = 24}), alone);
    EXPECT_GT(figures.preemptions, 0u);
    EXPECT_LT(figures.most_running, 6u);
  }
}

TEST_F(Schedulers, RunNoMoreThanTheyMay) {
  serve("exact", requests(), {.bytes = plenty, .running = 2, .chunk = 64});
  EXPECT_EQ(figures.most_running, 2u);
  EXPECT_EQ(figures.requests, 6u);
}

TEST_F(Schedulers, ShareWhatRequestsBeginWith) {
  const std::unique_ptr<ModelCache> cache = make_cache("plain:k2v2:g16:w16");
  Scheduler scheduler(*engine, *cache, tokenizer, {.bytes = plenty, .chunk = 64});
  const std::vector<int> beginning = prompt(1, 150);
  std::vector<std::shared_ptr<Recorder>> clients;
  const auto submit = [&](const std::vector<int> &start, int number) {
    Request request{.prompt = start, .max_tokens = 10};
    for (int token : prompt(number, 30)) request.prompt.push_back(token);
    clients.push_back(std::make_shared<Recorder>());
    scheduler.submit(request, clients.back());
  };
  for (int number : {2, 3}) submit(beginning, number);
  serve_all(scheduler);
  EXPECT_EQ(clients[0]->outcome->shared_tokens, 0u);
  EXPECT_EQ(clients[1]->outcome->shared_tokens, 150u) << "of one that runs";
  EXPECT_GT(scheduler.figures().most_shared_pages, 0u);
  submit(beginning, 4);
  submit(clients[0]->tokens, 5);
  submit(prompt(6, 150), 5);
  serve_all(scheduler);
  EXPECT_EQ(clients[2]->outcome->shared_tokens, 150u) << "of one that is done";
  EXPECT_EQ(clients[3]->outcome->shared_tokens, clients[0]->tokens.size() - 1)
      << "all that the cache has seen: not the last token";
  EXPECT_EQ(clients[4]->outcome->shared_tokens, 0u);
  EXPECT_EQ(scheduler.kept(), 4u) << "the first is a part of the fourth";
}

/// A model of which five layers of six attend through a window.
struct Windowed {
  explicit Windowed(int layers)
      : file(engine::test::small_model({.architecture = "gemma3", .layers = layers, .window = 24})),
        engine(make_engine("cpu", file)),
        cache(engine->make_cache(parse_cache_spec("exact:g16:w16").options_for(engine->config()))) {}

  const Gguf file;
  const std::unique_ptr<Engine> engine;
  const std::unique_ptr<ModelCache> cache;
};

TEST_F(Schedulers, CountWhatAWindowKeeps) {
  const Windowed model(5);  // all of them
  const std::unique_ptr<ModelCache> &cache = model.cache;
  ASSERT_EQ(cache->groups(), 1u);
  const std::size_t bytes = Budget(*cache, 0).bytes_of(250);
  EXPECT_EQ(Budget(*cache, 0).bytes_of(4000), bytes);
  Scheduler scheduler(*model.engine, *cache, tokenizer, {.bytes = bytes});
  const auto client = std::make_shared<Recorder>();
  scheduler.submit({.prompt = prompt(1, 300), .max_tokens = 100}, client);
  serve_all(scheduler);
  EXPECT_EQ(client->refusal, "");
  ASSERT_TRUE(client->outcome);
  EXPECT_EQ(client->outcome->completion_tokens, 100u);
  EXPECT_LE(cache->memory_report().pages_used, bytes);
}

TEST_F(Schedulers, ComputeAnewWhatAWindowHasPassed) {
  const Windowed model(7);
  Scheduler scheduler(*model.engine, *model.cache, tokenizer, {.bytes = plenty});
  std::vector<std::vector<int>> tokens;
  for (int i = 0; i < 2; ++i) {
    const auto client = std::make_shared<Recorder>();
    scheduler.submit({.prompt = prompt(1, 100), .max_tokens = 100}, client);
    serve_all(scheduler);
    EXPECT_EQ(client->outcome->shared_tokens, 0u);
    tokens.push_back(client->tokens);
  }
  EXPECT_EQ(tokens[0], tokens[1]);
}

TEST_F(Schedulers, GiveUpKeptSequencesBeforeRequestsWait) {
  const std::unique_ptr<ModelCache> cache = make_cache("exact:g16:w16");
  const std::size_t bytes = 3 * Budget(*cache, 0).bytes_of(130);
  Scheduler scheduler(*engine, *cache, tokenizer, {.bytes = bytes, .chunk = 64});
  for (int number = 0; number < 8; ++number) {
    const auto client = std::make_shared<Recorder>();
    scheduler.submit({.prompt = prompt(number, 100), .max_tokens = 30}, client);
    serve_all(scheduler);
    EXPECT_LE(scheduler.bytes(), bytes);
  }
  EXPECT_GT(scheduler.kept(), 0u);
  EXPECT_GE(scheduler.figures().evictions, 5u);
  EXPECT_EQ(scheduler.figures().preemptions, 0u);
  const auto again = std::make_shared<Recorder>();
  scheduler.submit({.prompt = prompt(7, 100), .max_tokens = 1}, again);
  serve_all(scheduler);
  EXPECT_EQ(again->outcome->shared_tokens, 99u) << "the one used last is kept";
}

TEST_F(Schedulers, FreeThePagesOfAClientThatHasGone) {
  const std::unique_ptr<ModelCache> cache = make_cache("exact:g16:w16");
  {
    const std::size_t bytes = 2 * Budget(*cache, 0).bytes_of(190);
    Scheduler scheduler(*engine, *cache, tokenizer, {.bytes = bytes, .chunk = 24});
    std::vector<std::shared_ptr<Recorder>> clients;
    for (const Request &request : requests()) {
      clients.push_back(std::make_shared<Recorder>());
      scheduler.submit(request, clients.back());
    }
    while (scheduler.preempted() == 0) scheduler.step();
    ASSERT_GT(scheduler.running(), 0u);
    ASSERT_GT(scheduler.waiting(), 0u);
    for (const auto &client : clients) client->gone = true;
    scheduler.step();
    EXPECT_TRUE(scheduler.idle());
    for (const auto &client : clients) {
      ASSERT_TRUE(client->outcome);
    }
  }
  EXPECT_EQ(cache->memory_report().pages_used, 0u);
  EXPECT_EQ(cache->memory_report().exact, 0u);
}

TEST_F(Schedulers, StopWhereTheyAreTold) {
  const std::unique_ptr<ModelCache> cache = make_cache("exact");
  Scheduler scheduler(*engine, *cache, tokenizer, {.bytes = plenty});
  const auto ask = [&](int max_tokens, std::vector<std::string> stop) {
    const auto client = std::make_shared<Recorder>();
    scheduler.submit({.prompt = prompt(1, 50), .max_tokens = max_tokens, .stop = std::move(stop)},
                     client);
    serve_all(scheduler);
    return client;
  };
  const auto whole = ask(40, {});
  EXPECT_EQ(whole->outcome->finish, Finish::length);
  EXPECT_EQ(whole->outcome->completion_tokens, 40u);
  const std::string stop = whole->text.substr(12, 6);
  const auto cut = ask(40, {"never in it", stop});
  EXPECT_EQ(cut->outcome->finish, Finish::stop);
  EXPECT_EQ(cut->text, whole->text.substr(0, whole->text.find(stop)));
  const auto none = ask(0, {});
  EXPECT_EQ(none->outcome->finish, Finish::length);
  EXPECT_EQ(none->text, "");
}

TEST_F(Schedulers, RefuseWhatCanNeverRun) {
  const std::unique_ptr<ModelCache> cache = make_cache("exact");
  Scheduler scheduler(*engine, *cache, tokenizer, {.bytes = Budget(*cache, 0).bytes_of(300)});
  const auto client = std::make_shared<Recorder>();
  EXPECT_THROW(scheduler.submit({}, client), std::invalid_argument);
  EXPECT_THROW(scheduler.submit({.prompt = prompt(1, 500), .max_tokens = 13}, client),
               std::invalid_argument)
      << "the context is 512";
  EXPECT_THROW(scheduler.submit({.prompt = prompt(1, 400), .max_tokens = 100}, client),
               std::invalid_argument)
      << "more than the budget";
  EXPECT_TRUE(scheduler.idle());
  scheduler.submit({.prompt = prompt(1, 290), .max_tokens = 10}, client);
  serve_all(scheduler);
  EXPECT_EQ(client->outcome->completion_tokens, 10u);
}

}  // namespace
}  // namespace engine::serve::test::scheduler_test
