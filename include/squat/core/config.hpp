#pragma once

// What every header of squat agrees on: the index type and the element types.

#include <Eigen/Core>
#include <cassert>
#include <concepts>
#include <cstddef>

#define SQUAT_ASSERT(condition) assert(condition)

/// Of functions that kernels call too.
#ifdef __CUDACC__
#define SQUAT_HOST_DEVICE __host__ __device__
#else
#define SQUAT_HOST_DEVICE
#endif

namespace squat {

/// Counts, extents and strides, in elements.
using Index = std::ptrdiff_t;

/// Channels of a head at most: DeepSeek's latents and their rotary part.
inline constexpr Index largest_head_dim = 576;

using Eigen::bfloat16;
using Eigen::half;

/// Rows one behind the other, as tensors have them.
using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// What codings learn is computed in matrices of this kind; Real is double unless said. Functions
/// that call Eigen's products and decompositions are templates over it, so that a translation unit
/// that does not call them does not instantiate them.
template <std::floating_point Real>
using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;

/// An element of a tensor the engine hands over, and of the rows the cache
/// keeps exact.
template <class Scalar>
concept Element =
    std::same_as<Scalar, float> || std::same_as<Scalar, half> || std::same_as<Scalar, bfloat16>;

}  // namespace squat
