#pragma once

// What make_cpu_group() does.

#include <memory>
#include <utility>

#include "squat/cache/kv_cache.hpp"
#include "squat/cache/options.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/model/group_cache.hpp"
#include "squat/model/group_cache_of.hpp"
#include "squat/squat.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// Bits: int; a template, so that nothing is compiled where it is not called.
template <class Bits>
std::unique_ptr<GroupCache> make_cpu_group(const Options &options, ElementType exact_rows, Bits key_bits,
                                           Bits value_bits) {
  for (const auto &[name, bits] :
       {std::pair{"key_bits", key_bits}, std::pair{"value_bits", value_bits}}) {
    if (!supported_bits(bits)) throw_invalid(name, bits, "2, 3, 4, 8 or 16");
  }
  return with_element(exact_rows, [&]<class T>() -> std::unique_ptr<GroupCache> {
    const auto make = [=](const Options &in_force) {
      return Cpu::make_operations<T>(in_force, key_bits, value_bits);
    };
    // Kernels take widths at run time: one class for all of them.
    using Cache = KVCacheBase<T, decltype(make(options)), Cpu::Stream>;
    return std::make_unique<GroupCacheOf<Cache, Cpu::Stream>>(options, key_bits, value_bits, make);
  });
}

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
