#pragma once

// Serving: a cache that has learnt, and the loop over its requests.

#include <memory>
#include <span>

#include "cache_spec.hpp"
#include "engine.hpp"
#include "inbox.hpp"
#include "scheduler.hpp"

namespace engine::serve {

/// A cache whose codings have learnt from `text`, if that is long enough, so that what a request gets
/// does not depend on those before it.
std::unique_ptr<ModelCache> make_served_cache(Engine &engine, const CacheSpec &spec,
                                              std::span<const int> text);

/// Serves what comes to the inbox until that is closed. Requests that are not done then are cancelled.
void serve(Scheduler &scheduler, Inbox &inbox);

}  // namespace engine::serve
