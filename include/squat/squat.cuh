#pragma once

/// All of squat, with its CUDA backend: squat::KVCache<T, KeyBits, ValueBits, squat::Cuda>. For nvcc, as
/// C++20, with EIGEN_NO_CUDA defined.

#include "squat/cuda/operations.hpp"
#include "squat/squat.hpp"
