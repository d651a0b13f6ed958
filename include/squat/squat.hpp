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

// The kernels of the CPU: in this translation unit, or, for targets that link squat::compiled, in
// that library.
#if defined(SQUAT_COMPILED)
#include "squat/compiled/backend.hpp"
#else
#include "squat/cpu/backend.hpp"
#endif
