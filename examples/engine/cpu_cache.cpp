#include "cache_of.hpp"
#include "cache_spec.hpp"

namespace engine {
namespace {

template <int KeyBits, int ValueBits>
using CpuCache = CacheOf<squat::KVCache<squat::half, KeyBits, ValueBits>, squat::Cpu::Stream>;

template <int KeyBits>
std::unique_ptr<Cache> make_with_keys(int value_bits, const squat::Options &options) {
  switch (value_bits) {
    case 2:
      return std::make_unique<CpuCache<KeyBits, 2>>(options);
    case 3:
      return std::make_unique<CpuCache<KeyBits, 3>>(options);
    case 4:
      return std::make_unique<CpuCache<KeyBits, 4>>(options);
    case 8:
      return std::make_unique<CpuCache<KeyBits, 8>>(options);
    default:
      return std::make_unique<CpuCache<KeyBits, 16>>(options);
  }
}

}  // namespace

std::unique_ptr<Cache> make_cpu_cache(const CacheSpec &spec, const squat::Options &options) {
  switch (spec.key_bits) {
    case 2:
      return make_with_keys<2>(spec.value_bits, options);
    case 3:
      return make_with_keys<3>(spec.value_bits, options);
    case 4:
      return make_with_keys<4>(spec.value_bits, options);
    case 8:
      return make_with_keys<8>(spec.value_bits, options);
    default:
      return make_with_keys<16>(spec.value_bits, options);
  }
}

}  // namespace engine
