#pragma once

// How groups of layers come to their caches.

#include <functional>
#include <memory>
#include <string>

#include "squat/cache/kv_cache.hpp"
#include "squat/core/any_tensor.hpp"
#include "squat/core/config.hpp"
#include "squat/core/error.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/model/group_cache.hpp"
#include "squat/model/group_cache_of.hpp"

namespace squat::inline SQUAT_API_NAMESPACE {

/// Makes the cache of a group: a function of its options, the type of exact rows, and the bits of keys
/// and values. Throws Error for what it has no kernels for.
using MakeGroup = std::function<std::unique_ptr<GroupCache>(
    const Options &options, ElementType exact_rows, int key_bits, int value_bits)>;

/// Bits of keys and values that kernels are compiled for.
template <int KeyBits, int ValueBits>
struct Widths {
  static constexpr int key_bits = KeyBits;      ///< see supported_bits()
  static constexpr int value_bits = ValueBits;  ///< likewise
};

/// A MakeGroup of a backend with exact rows of T, for a list of widths: what compiles the kernels of a
/// device, each in a translation unit of its own if one likes.
template <class Backend, Element T, class... Listed>
std::unique_ptr<GroupCache> make_group(const Options &options, ElementType exact_rows, int key_bits,
                                       int value_bits) {
  std::unique_ptr<GroupCache> made;
  const auto make = [&]<class W>(W) {
    if (made || exact_rows != element_type<T>() || key_bits != W::key_bits ||
        value_bits != W::value_bits)
      return;
    using Cache = KVCache<T, W::key_bits, W::value_bits, Backend>;
    made = std::make_unique<GroupCacheOf<Cache, typename Backend::Stream>>(options);
  };
  (make(Listed{}), ...);
  if (!made) {
    throw_invalid("key_bits and value_bits",
                  std::to_string(key_bits) + " and " + std::to_string(value_bits),
                  "widths, over exact rows, that this program has kernels for");
  }
  return made;
}

}  // namespace squat::inline SQUAT_API_NAMESPACE
