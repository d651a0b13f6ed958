#pragma once

// The instruction set this translation unit is compiled for: which kernels it
// takes, and the namespace of everything whose machine code depends on it. Two
// objects built with different flags would otherwise share one inline function,
// and one of them would run instructions its machine may not have.

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SQUAT_CPU_AVX2
#endif
#if defined(SQUAT_CPU_AVX2) && defined(__AVX512F__) && defined(__AVX512BW__) && \
    defined(__AVX512VL__) && defined(__AVX512DQ__)
#define SQUAT_CPU_AVX512
#endif
#if defined(SQUAT_CPU_AVX512) && defined(__AVX512VNNI__)
#define SQUAT_CPU_AVX512_VNNI
#endif
#if defined(__ARM_NEON) && defined(__aarch64__)
#define SQUAT_CPU_NEON
#endif

#if defined(SQUAT_CPU_AVX512_VNNI)
#define SQUAT_CPU_NAMESPACE avx512_vnni
#elif defined(SQUAT_CPU_AVX512)
#define SQUAT_CPU_NAMESPACE avx512
#elif defined(SQUAT_CPU_AVX2)
#define SQUAT_CPU_NAMESPACE avx2
#elif defined(SQUAT_CPU_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define SQUAT_CPU_NAMESPACE neon_dotprod
#elif defined(SQUAT_CPU_NEON)
#define SQUAT_CPU_NAMESPACE neon
#elif defined(__AVX__)
#define SQUAT_CPU_NAMESPACE avx
#else
#define SQUAT_CPU_NAMESPACE portable
#endif

// The namespace of what an engine hands over and gets back. Header-only, it follows the instruction
// set like all the rest. With squat::compiled it is one for all objects, which share the library's
// kernels whatever they are compiled for.
#if defined(SQUAT_COMPILED)
#define SQUAT_API_NAMESPACE any_cpu
#else
#define SQUAT_API_NAMESPACE SQUAT_CPU_NAMESPACE
#endif
