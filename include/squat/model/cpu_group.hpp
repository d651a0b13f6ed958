#pragma once

// Groups on the CPU, of every width.

#include <memory>

#include "squat/core/any_tensor.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/model/group_cache.hpp"
#include "squat/squat.hpp"

#if !defined(SQUAT_COMPILED)
#include "squat/model/cpu_group_of.hpp"
#endif

namespace squat::inline SQUAT_API_NAMESPACE {

#if defined(SQUAT_COMPILED)
/// A MakeGroup.
std::unique_ptr<GroupCache> make_cpu_group(const Options &options, ElementType exact_rows, int key_bits,
                                           int value_bits);
#else
/// A MakeGroup. It is part of squat::compiled. Without that library, a translation unit that uses it
/// compiles all the kernels of the CPU, which takes a minute.
inline constexpr auto make_cpu_group = [](const Options &options, ElementType exact_rows, int key_bits,
                                          auto value_bits) {
  return detail::make_cpu_group(options, exact_rows, key_bits, value_bits);
};
#endif

}  // namespace squat::inline SQUAT_API_NAMESPACE
