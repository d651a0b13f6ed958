#include "service.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "squat/parallel/openmp.hpp"
#include "status_line.hpp"

namespace engine::serve {
namespace {

void submit(Scheduler &scheduler, Inbox::Entry &entry) {
  try {
    scheduler.submit(std::move(entry.request), entry.client, entry.arrival);
  } catch (const std::invalid_argument &error) {
    return entry.client->on_refused(error.what());
  }
  entry.client->on_taken();
}

void serve_until_closed(Scheduler &scheduler, Inbox &inbox) {
  StatusLine status;
  while (true) {
    const bool closed = inbox.closed();  // and then nothing comes any more
    for (Inbox::Entry &entry : inbox.take(scheduler.idle())) submit(scheduler, entry);
    if (closed) return scheduler.cancel_all();
    if (!scheduler.idle()) scheduler.step();
    status.show(scheduler);
  }
}

}  // namespace

std::unique_ptr<ModelCache> make_served_cache(Engine &engine, const CacheSpec &spec,
                                              std::span<const int> text) {
  squat::ModelOptions options = spec.options_for(engine.config());
  options.parallel = squat::openmp_parallel();
  std::unique_ptr<ModelCache> cache = engine.make_cache(options);
  const squat::Options &chosen = cache->group(0).options();
  const int wanted = std::min(engine.config().context, chosen.statistics_tokens + chosen.page_tokens);
  text = text.first(std::min(text.size(), static_cast<std::size_t>(wanted)));
  if (!text.empty()) {
    const SequenceRows rows{cache.get(), cache->add_sequence(), static_cast<squat::Index>(text.size())};
    engine.forward(text, std::span(&rows, 1));
    cache->remove_sequence(rows.sequence);
  }
  return cache;
}

void serve(Scheduler &scheduler, Inbox &inbox) {
  try {
    serve_until_closed(scheduler, inbox);
  } catch (...) {
    inbox.close();
    scheduler.cancel_all();
    for (const Inbox::Entry &entry : inbox.take(false))
      entry.client->on_refused("the server has failed");
    throw;
  }
}

}  // namespace engine::serve
