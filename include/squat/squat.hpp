#pragma once

/// @file
/// All of squat on the CPU: quantized KV caches for language model inference.
/// See squat::KVCache.

#include "squat/cache/kv_cache.hpp"
#include "squat/cache/merge_attention.hpp"
#include "squat/cache/options.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/parallel.hpp"
#include "squat/core/tensor.hpp"
#include "squat/core/version.hpp"

// The kernels of the CPU: in this translation unit, or, for targets that link squat::compiled, in
// that library.
#if defined(SQUAT_COMPILED)
#include "squat/compiled/backend.hpp"
#else
#include "squat/cpu/backend.hpp"
#endif
