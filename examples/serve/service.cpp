#include "service.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "squat/parallel/openmp.hpp"
#include "status_line.hpp"

namespace llama::serve {

std::unique_ptr<Cache> make_served_cache(Engine &engine, const CacheSpec &spec,
                                         std::span<const int> text) {
  squat::Options options = spec.options_for(engine.config());
  options.parallel = squat::openmp_parallel();
  std::unique_ptr<Cache> cache = engine.make_cache(spec, options);
  const squat::Options &chosen = cache->options();
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
  StatusLine status;
  while (true) {
    const bool idle = scheduler.idle();
    std::vector<Inbox::Entry> entries = inbox.take(idle);
    if (idle && entries.empty()) return;
    for (Inbox::Entry &entry : entries) {
      try {
        scheduler.submit(std::move(entry.request), entry.client, entry.arrival);
        entry.client->on_taken();
      } catch (const std::invalid_argument &error) {
        entry.client->on_refused(error.what());
      }
    }
    if (!scheduler.idle()) scheduler.step();
    status.show(scheduler);
  }
}

}  // namespace llama::serve
