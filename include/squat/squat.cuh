#pragma once

/// @file
/// All of squat with its CUDA backend: squat::KVCache<T, KeyBits, ValueBits, squat::Cuda>. For nvcc, as
/// C++20, with EIGEN_NO_CUDA defined. Caches of the CPU ask for squat.hpp too.

#include "squat/cache/kv_cache.hpp"
#include "squat/cache/options.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/parallel.hpp"
#include "squat/core/tensor.hpp"
#include "squat/core/version.hpp"
#include "squat/cuda/operations.hpp"
