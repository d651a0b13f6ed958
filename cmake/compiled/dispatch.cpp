// Picks the kernels that squat::compiled runs. Compiled for every machine of the architecture.

#include <array>
#include <cstdlib>
#include <string>
#include <string_view>

#include "instruction_sets.hpp"
#include "squat/compiled/any_operations.hpp"
#include "squat/core/error.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace squat::compiled {

#define SQUAT_DECLARE(name) extern const Kernels kernels_##name;
#define SQUAT_POINT_TO(name) &kernels_##name,
SQUAT_FOR_EACH_INSTRUCTION_SET(SQUAT_DECLARE)

namespace {

/// Slowest first.
constexpr std::array all = {SQUAT_FOR_EACH_INSTRUCTION_SET(SQUAT_POINT_TO)};

/// Whether this machine runs kernels of that name, which instruction_set.hpp gives.
bool runs(std::string_view name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  const bool avx = __builtin_cpu_supports("avx") != 0;
  const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  if (name == "avx") return avx;
  if (name == "avx2") return avx2;
  if (name == "avx512") return avx512;
  if (name == "avx512_vnni") return avx512 && __builtin_cpu_supports("avx512vnni");
#else
  static_cast<void>(name);
#endif
  return true;
}

const Kernels &choose() {
  const char *wanted = std::getenv("SQUAT_INSTRUCTION_SET");
  const Kernels *best = nullptr;
  std::string names;
  for (const Kernels *kernels : all) {
    if (!runs(kernels->name)) continue;
    best = kernels;
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
    if (wanted != nullptr && std::string_view(wanted) == kernels->name) return *kernels;
  }
  if (best == nullptr) throw Error("squat: squat::compiled holds no kernels that this machine runs");
  if (wanted != nullptr && *wanted != '\0') {
    throw Error("squat: SQUAT_INSTRUCTION_SET is " + std::string(wanted) + ", must be one of " + names);
  }
  return *best;
}

}  // namespace

const Kernels &kernels() {
  static const Kernels &chosen = choose();
  return chosen;
}

}  // namespace squat::compiled
