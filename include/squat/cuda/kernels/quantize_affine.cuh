#pragma once

// Asymmetric codes of a group that lies in the registers of several lanes, as coding/affine.hpp has
// them: the same formulas in the same order, sums over the lanes in another.

#include <cuda_fp16.h>

#include "squat/coding/coding.hpp"
#include "squat/cuda/kernels/warp.cuh"

namespace squat::cuda {

__device__ inline __half saturated_half(float x) {
  constexpr float largest = 65504.0f;
  return __float2half_rn(fminf(fmaxf(x, -largest), largest));
}

/// What a group's codes stand for: zero + scale * code.
struct HalfScale {
  __half zero, scale;
};

/// float16's least positive number, the least scale.
__device__ inline __half smallest_half() { return __ushort_as_half(1); }

/// Codes as integers, in floats, of one zero and scale.
struct AffineRange {
  __device__ AffineRange(HalfScale fit, float top_code)
      : zero(__half2float(fit.zero)),
        scale(__half2float(fit.scale)),
        inverse(1.0f / scale),
        top(top_code) {}

  __device__ float code(float x) const { return rintf(fminf(fmaxf((x - zero) * inverse, 0.0f), top)); }
  __device__ float error(float x, float code) const { return zero + scale * code - x; }

  float zero, scale, inverse, top;
};

struct Extremes {
  float low, high;
};

template <int FirstStep, int Count>
__device__ inline Extremes extremes(const float (&x)[Count]) {
  float low = x[0], high = x[0];
#pragma unroll
  for (int i = 1; i < Count; ++i) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  }
  return {reduce_lanes<FirstStep>(low, [](float a, float b) { return fminf(a, b); }),
          reduce_lanes<FirstStep>(high, [](float a, float b) { return fmaxf(a, b); })};
}

/// The range about the middle of x, `fraction` times as wide as x.
__device__ inline HalfScale fraction_range(Extremes x, float fraction, float top) {
  const float middle = (x.low + x.high) / 2, half_width = (x.high - x.low) / 2 * fraction;
  return {saturated_half(middle - half_width),
          __hmax(saturated_half(2 * half_width / top), smallest_half())};
}

/// This lane's part of the squared error of x in a range.
template <int Count>
__device__ inline float range_error(const float (&x)[Count], const AffineRange &range) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float error = range.error(x[i], range.code(x[i]));
    sum += error * error;
  }
  return sum;
}

/// The clipped range of least squared error among 1, .95 ... .5 of the whole.
template <int FirstStep, int Count>
__device__ inline HalfScale search_clip(const float (&x)[Count], Extremes all, float top) {
  HalfScale best{};
  float least = __int_as_float(0x7f800000);
#pragma unroll 1
  for (int twentieths = 20; twentieths >= 10; --twentieths) {
    const float fraction = static_cast<float>(twentieths) / (top > 1 ? 20.0f : 40.0f);
    const HalfScale fit = fraction_range(all, fraction, top);
    const float error = sum_lanes<FirstStep>(range_error(x, AffineRange(fit, top)));
    if (error >= least) continue;
    least = error;
    best = fit;
  }
  return best;
}

/// Rescales about the group's mean by gain = sum dx dx / sum dx dq, held to [1, 2]. size: of the whole
/// group.
template <int FirstStep, int Count>
__device__ inline HalfScale apply_gain(const float (&x)[Count], const float (&codes)[Count], float size,
                                       float scale) {
  float sum = 0, code_sum = 0;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    sum += x[i];
    code_sum += codes[i];
  }
  const float mean = sum_lanes<FirstStep>(sum) / size, code_mean = sum_lanes<FirstStep>(code_sum) / size;
  float squares = 0, code_products = 0;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float deviation = x[i] - mean;
    squares += deviation * deviation;
    code_products += deviation * (codes[i] - code_mean);
  }
  squares = sum_lanes<FirstStep>(squares);
  const float products = scale * sum_lanes<FirstStep>(code_products);
  const float gain = fminf(fmaxf(squares / fmaxf(products, 1e-12f), 1.0f), 2.0f);
  return {saturated_half(mean - gain * scale * code_mean), saturated_half(gain * scale)};
}

/// Codes a group, `Count` numbers in each of its lanes, in place, and adds this lane's part of the
/// squared error to `error`.
template <int FirstStep, int Count>
__device__ inline HalfScale quantize_affine(float (&x)[Count], int bits, AffineFit method,
                                            float &error) {
  constexpr float size = Count * warp_lanes / FirstStep;
  const float top = static_cast<float>((1 << bits) - 1);
  const Extremes all = extremes<FirstStep>(x);
  const bool clips = method == AffineFit::clip_and_gain && bits <= 2;
  HalfScale fit = clips ? search_clip<FirstStep>(x, all, top) : fraction_range(all, 1, top);
  const AffineRange range(fit, top);
  float codes[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) codes[i] = range.code(x[i]);
  if (method == AffineFit::clip_and_gain) fit = apply_gain<FirstStep>(x, codes, size, range.scale);
  const AffineRange decoded(fit, top);
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float difference = decoded.error(x[i], codes[i]);
    error += difference * difference;
    x[i] = codes[i];
  }
  return fit;
}

}  // namespace squat::cuda
