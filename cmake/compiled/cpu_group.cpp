// The caches of groups of layers on the CPU.

#include "squat/model/cpu_group.hpp"

#include <memory>

#include "squat/model/cpu_group_of.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

std::unique_ptr<GroupCache> make_cpu_group(const Options &options, ElementType exact_rows, int key_bits,
                                           int value_bits) {
  return detail::make_cpu_group(options, exact_rows, key_bits, value_bits);
}

}  // namespace squat::inline SQUAT_API_NAMESPACE
