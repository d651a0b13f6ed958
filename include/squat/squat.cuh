#pragma once

/// All of squat with its CUDA backend: squat::KVCache<T, KeyBits, ValueBits, squat::Cuda>. For nvcc, as
/// C++20, with EIGEN_NO_CUDA defined. Caches of the CPU ask for squat.hpp too.

#include "squat/cache/kv_cache.hpp"
#include "squat/config.hpp"
#include "squat/cuda/operations.hpp"
#include "squat/error.hpp"
#include "squat/options.hpp"
#include "squat/parallel.hpp"
#include "squat/tensor.hpp"
#include "squat/version.hpp"
