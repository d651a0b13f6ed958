#pragma once

// The namespace of everything whose machine code depends on the instruction set
// it is compiled for. Two objects built with different flags would otherwise
// share one inline function, and one of them would run instructions its machine
// may not have.

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define SQUAT_CPU_NAMESPACE avx512vnni
#elif defined(__AVX512F__)
#define SQUAT_CPU_NAMESPACE avx512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SQUAT_CPU_NAMESPACE avx2
#elif defined(__ARM_NEON)
#define SQUAT_CPU_NAMESPACE neon
#else
#define SQUAT_CPU_NAMESPACE portable
#endif
