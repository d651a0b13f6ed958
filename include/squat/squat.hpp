#pragma once

/// All of squat on the CPU: quantized KV caches for language model inference.
/// See squat::KVCache.

#include "squat/cache/kv_cache.hpp"
#include "squat/config.hpp"
#include "squat/error.hpp"
#include "squat/options.hpp"
#include "squat/parallel.hpp"
#include "squat/tensor.hpp"
#include "squat/version.hpp"
